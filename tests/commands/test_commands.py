"""The command: what a user types, and what she gets when it is wrong."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from estl.commands import main
from estl.commands.flags import spell_out
from estl.training.checkpoint import load_student, read_checkpoint
from estl.training.recipe import parse

SMALL = [
    "--dataset=digits",
    "--arch=vggsnn-pooled",
    "--student.init_args.layers=[8,AP,16]",
    "--T=3",
    "--data.init_args.per_class=4",
    "--epochs=2",
]


def fails(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line that `estl WORDS` ends with."""
    assert main(words) == 2
    text = capsys.readouterr().err.strip()
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1, text
    return text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert main(["fit", *SMALL, "--tse", "--seed=3", f"--output-dir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_a_run_folder_holds_recipe_results_and_checkpoints(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    recipe = yaml.safe_load((finished / "config.yaml").read_text())
    assert recipe["student"]["init_args"]["classes"] == 10
    assert recipe["supervision"]["class_path"].endswith("TSE")
    assert recipe["seed"] == results["seed"] == 3
    assert len(list(finished.glob("best*.ckpt"))) == 1
    for weights in ("final", "best_on_validation"):
        test = results["test"][weights]
        assert len(test["per_step"]) == 3
        assert test["accuracy"] == test["per_step"][-1]
    assert results["test"]["samples"] == results["data"]["sizes"]["test"]
    assert len(results["data"]["fingerprint"]) >= 8
    assert results["versions"]["torch"] == torch.__version__
    assert results["train_seconds"] > 0
    assert list((finished / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_a_checkpoint_gives_the_student_and_the_same_accuracy(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = finished / "last.ckpt"
    student = load_student(last)
    assert student.state_dict().keys() == read_checkpoint(last)["state_dict"].keys()
    assert not student.training
    assert main(["test", f"--ckpt={last}", f"--output-dir={tmp_path}"]) == 0
    found = json.loads((tmp_path / "test.json").read_text())["test"]
    results = json.loads((finished / "results.json").read_text())
    assert found["per_step"] == results["test"]["final"]["per_step"]
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_written_over(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fails(capsys, ["fit", *SMALL, f"--output-dir={finished}"])
    assert "--resume" in text


def test_tse_and_tet_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave one out" in fails(capsys, ["fit", *SMALL, "--tse", "--tet"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--student.init_args.layerz=3"], "layerz"),
        (["--trainer.max_epoch=3"], "max_epoch"),
        (["--arch=resnet20"], "choose from"),
        (["--dataset=imagenet22k"], "choose from"),
        (["--T"], "--T"),
        (["--T=many"], "many"),
        (["--epochs=x"], "x"),
        (["--tau-f=0.3"], "--tse"),
        (["--lamb=0.3", "--tse"], "--tet"),
        (["--student.init_args.classes=7"], "classes"),
        (["--student.init_args.in_channels=3"], "in_channels"),
        (
            ["--dataset=nmnist", "--data-path=/nowhere"],
            "fit: no recordings <class>/<name>.bin in /nowhere",
        ),
        (["--student.init_args.layers=[AP]"], "fit: layers="),
        (["--config=/nowhere/recipe.yaml"], "/nowhere/recipe.yaml"),
        (["--resume", "/nowhere/run"], "--resume"),
        (["--supervision=estl.supervision.NoSuch"], "NoSuch"),
        (["--student=no.such.Student"], "no.such"),
        (["--tse", "--tau-f=-1"], "fit: tau_f must be"),
        (["--lr=0"], "lr"),
    ],
)
def test_a_mistake_gets_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, ["fit", *SMALL, *words])


def test_a_recipe_with_a_wrong_key_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sed: 3\n")
    assert "sed" in fails(capsys, ["fit", "--config", str(recipe)])
    recipe.write_text("seed: [1\n")
    assert str(recipe) in fails(capsys, ["fit", "--config", str(recipe)])


def test_nothing_chosen_says_what_to_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config" in fails(capsys, ["fit"])
    assert "choose from" in fails(capsys, ["fitt"])


def test_a_file_that_is_no_checkpoint_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.ckpt"
    assert "no checkpoint" in fails(capsys, ["test", f"--ckpt={broken}"])
    broken.write_bytes(b"not a checkpoint")
    assert "cannot be read" in fails(capsys, ["predict", f"--ckpt={broken}", "x.bin"])
    torch.save({"state_dict": {}}, broken)
    with pytest.raises(ValueError, match="no recipe"):
        read_checkpoint(broken)


def test_flags_choose_the_supervision() -> None:
    def chosen(*words: str) -> str:
        return str(parse([*SMALL, *words])[0].supervision.class_path.rpartition(".")[2])

    tse = ["--supervision=estl.supervision.TSE"]
    assert chosen() == "MeanCE"
    assert chosen("--tse", "--no-tet") == "TSE"
    assert chosen("--no-tse", "--tet") == "TET"
    assert chosen("--no-tse", "--no-tet") == "MeanCE"
    assert chosen(*tse, "--no-tse") == "MeanCE"
    assert chosen(*tse, "--no-tet") == "TSE"
    assert chosen(*tse, "--tet") == "TET"


def test_short_flags_set_the_values_of_the_recipe() -> None:
    words = ["--tse", "--tau-f", "0.3", "--kappa=0.5", "--lr", "0.1", "--batch-size", "7"]
    config, given = parse([*SMALL, *words])
    assert config.supervision.init_args.tau_f == 0.3
    assert config.supervision.init_args.kappa == 0.5
    assert config.learner.lr == 0.1
    assert config.data.init_args.batch_size == 7
    assert config.trainer.max_epochs == 2
    assert "classes" not in given.student.init_args
    assert spell_out(["--arch", "ResNet-19"]) == ["--student=estl.students.resnet19"]
