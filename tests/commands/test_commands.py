"""The command: what a user types, and what she gets when it is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from estl.commands import app, main
from estl.commands.flags import TrainingFlags, find_recipe
from estl.students import VGGSNN
from estl.training import run
from estl.training.checkpoint import load_student, read_checkpoint
from estl.training.predict import predict
from estl.training.recipe import parse
from estl.training.results import Results

pytestmark = pytest.mark.usefixtures("without_compiling")

SMALL = [
    "--dataset=digits",
    "--arch=vggsnn-pooled",
    "--student.init_args.layers=[8,AP,16]",
    "--T=3",
    "--data.init_args.per_class=4",
    "--epochs=2",
]
DIGITS = [f"--data.init_args.{x}" for x in ("size=16", "val_fraction=0.05", "test_fraction=0.05")]


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
    assert main(["fit", *SMALL, *DIGITS, "--tse", "--seed=3", f"--output-dir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_a_run_folder_holds_recipe_results_and_checkpoints(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    recipe = yaml.safe_load((finished / "config.yaml").read_text())
    assert recipe["student"]["init_args"]["classes"] == 10
    assert recipe["supervision"]["class_path"].endswith("TSE")
    assert recipe["seed"] == results["of"]["seed"] == 3
    assert len(list(finished.glob("best*.ckpt"))) == 1
    for weights in ("final", "best_on_validation"):
        test = results["test"][weights]
        assert len(test["per_step"]) == 3
        assert test["samples"] == results["of"]["data"]["sizes"]["test"]
    assert len(results["of"]["data"]["fingerprint"]) >= 8
    assert results["of"]["versions"]["torch"] == torch.__version__
    assert Results.read(finished / "results.json").to_json() == json.dumps(results, indent=2) + "\n"
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
def test_without_a_validation_split_the_final_weights_are_reported_alone(tmp_path: Path) -> None:
    words = [*SMALL, *DIGITS, "--tse", "--epochs=1", "--data.init_args.val_fraction=0"]
    assert main(["fit", *words, f"--output-dir={tmp_path}"]) == 0
    results = Results.read(tmp_path / "results.json")
    assert results.of.data.sizes["val"] == 0
    assert results.val == {}
    assert results.test is not None
    assert set(results.test) == {"final"}
    assert not list(tmp_path.glob("best*"))


@pytest.mark.slow
def test_the_last_epoch_is_validated_always(tmp_path: Path) -> None:
    words = [*SMALL, *DIGITS, "--tse", "--epochs=2", "--trainer.check_val_every_n_epoch=5"]
    assert main(["fit", *words, f"--output-dir={tmp_path}"]) == 0
    assert set(Results.read(tmp_path / "results.json").val) == {"final", "best_on_validation"}
    assert [path.name for path in tmp_path.glob("best*")] == ["best-002.ckpt"]


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_written_over(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fails(capsys, ["fit", *SMALL, f"--output-dir={finished}"])
    assert "--resume" in text


def test_tse_and_tet_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave one out" in fails(capsys, ["fit", *SMALL, "--tse", "--tet"])


@pytest.mark.slow
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
        (
            ["--data.init_args.test_fraction=0"],
            "split is empty: Digits has no such items (see test_fraction",
        ),
        (["--trainer.devices=0"], "with trainer.devices 0: `Trainer"),
        (["--trainer.strategy=nosuch"], "strategy"),
        (["--devices=7", "--trainer.accelerator=cpu"], "batch_size=50 is shared by 7 processes"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert says in fails(capsys, ["fit", *SMALL, *words, f"--output-dir={folder}"])
    assert not folder.exists()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "--batch-size=0",
            "--batch-size (data.init_args.batch_size) is 0: give a number at least 1",
        ),
        ("--epochs=-5", "--epochs (trainer.max_epochs) is -5: give a number at least 1"),
        ("--epochs=0", "--epochs (trainer.max_epochs) is 0"),
        ("--T=0", "--T (data.init_args.T) is 0"),
        ("--lr=0", "--lr (learner.lr) is 0.0: give a number above 0"),
        ("--weight-decay=-1", "--weight-decay (learner.weight_decay) is -1.0: give a number at l"),
        ("--learner.warmup=-4", "--learner.warmup is -4.0"),
        ("--trainer.gradient_clip_val=-1", "--trainer.gradient_clip_val is -1"),
        ("--trainer.accumulate_grad_batches=0", "--trainer.accumulate_grad_batches is 0"),
    ],
)
def test_a_number_out_of_range_is_named(
    word: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, ["fit", *SMALL, word])


def test_a_recipe_with_a_wrong_key_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sed: 3\n")
    assert "sed" in fails(capsys, ["fit", "--config", str(recipe)])
    recipe.write_text("seed: [1\n")
    assert str(recipe) in fails(capsys, ["fit", "--config", str(recipe)])


@pytest.mark.slow
def test_every_recipe_is_listed_and_found_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert "digits_tse" in names
    for name in names:
        assert main(["recipes", name]) == 0
        assert capsys.readouterr().out == find_recipe(name).read_text()
        parse(TrainingFlags(config=(name,)).spell_out())
    assert "choose from" in fails(capsys, ["recipes", "nosuch"])


@pytest.mark.parametrize("command", ["recipes", "doctor"])
def test_output_that_nobody_reads_ends_without_a_word(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "estl.commands", command]
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == 141


def test_the_help_of_every_command_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [name for name in app if not name.startswith("-")]
    assert {"fit", "test", "predict", "data", "ablate", "compare", "tune"} <= set(commands)
    for words in [[], *([name] for name in commands), ["data", "check"], ["data", "shard"]]:
        assert main([*words, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 48, words
        assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, estl.commands as c; c.main(['fit', '--help']); print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.splitlines()[-1]
    assert "'cyclopts'" in loaded
    assert not [
        name for name in ("torch", "numpy", "lightning", "transformers") if f"'{name}'" in loaded
    ]


def test_nothing_chosen_says_what_to_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config" in fails(capsys, ["fit"])
    assert "Available commands" in fails(capsys, ["fitt"])


def test_a_file_that_is_no_checkpoint_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.ckpt"
    assert "no checkpoint" in fails(capsys, ["test", f"--ckpt={broken}"])
    said = fails(capsys, ["test", f"--ckpt={tmp_path}"])
    assert f"{tmp_path} is a folder: give {tmp_path}/last.ckpt" in said
    broken.write_bytes(b"not a checkpoint")
    assert "cannot be read" in fails(capsys, ["predict", f"--ckpt={broken}", "x.bin"])
    torch.save({"state_dict": {}}, broken)
    with pytest.raises(ValueError, match="no recipe"):
        read_checkpoint(broken)


@pytest.mark.parametrize(
    ("path", "planted"),
    [("planted.Student", True), ("os.system", False), ("estl.training.run.fit", False)],
)
def test_a_checkpoint_names_only_public_classes_and_trusted_modules(
    path: str, planted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "planted.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom estl.students import VGGSNN as Student\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    init_args = {"layers": [4, "AP"], "frame_size": [8, 8]}
    student = {"class_path": path, "init_args": init_args}
    checkpoint = tmp_path / "stranger.ckpt"
    recipe = {"student": student, "data": {"class_path": path, "init_args": {}}, "seed": 0}
    state = VGGSNN(layers=(4, "AP"), frame_size=(8, 8)).state_dict()
    torch.save({"recipe": recipe, "state_dict": state, "classes": []}, checkpoint)
    name = path.partition(".")[0]
    for use in (
        lambda: load_student(checkpoint),
        lambda: list(predict(checkpoint, [])),
        lambda: run.test(checkpoint),
    ):
        with pytest.raises(ValueError, match=f"names {path}.*--trust {name}"):
            use()
    assert not mark.exists()
    if planted:
        load_student(checkpoint, trust=["planted"])
        assert mark.exists()


def test_flags_choose_the_supervision() -> None:
    def chosen(*more: str, **flags: Any) -> str:
        args = TrainingFlags(dataset="digits", arch="vggsnn-pooled", **flags).spell_out(more)
        return str(parse(args)[0].supervision.class_path.rpartition(".")[2])

    tse = "--supervision=estl.supervision.TSE"
    assert chosen() == "MeanCE"
    assert chosen(tse=True, tet=False) == "TSE"
    assert chosen(tse=False, tet=True) == "TET"
    assert chosen(tse=False, tet=False) == "MeanCE"
    assert chosen(tse, tse=False) == "MeanCE"
    assert chosen(tse, tet=False) == "TSE"
    assert chosen(tse, tet=True) == "TET"
    assert chosen(config=("digits_tse",)) == "TSE"
    assert chosen(config=("digits_tse",), tse=False) == "MeanCE"


def test_the_command_of_the_design_says_how_it_trains() -> None:
    flags = TrainingFlags(
        dataset="DVS-CIFAR10", data_path="x", arch="resnet19", optimizer="sgd", weight_decay=5e-4,
        augment="events", precision="bf16", devices="2",
    )  # fmt: skip
    config, _ = parse(flags.spell_out())
    assert config.data.class_path == "estl.data.CIFAR10DVS"
    assert (config.learner.optimizer, config.learner.weight_decay) == ("sgd", 5e-4)
    assert (config.trainer.precision, str(config.trainer.devices)) == ("bf16-mixed", "2")
    augment = config.data.init_args.augment
    assert (augment.flip, augment.roll, augment.padded_crop) == (0.5, 5, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", None), ("flip=0.25", (0.25, 0, "none")), ("cifar", (0.5, 4, "autoaugment"))],
)
def test_augmentation_of_a_flag_takes_the_place_of_the_recipes(
    text: str, expected: tuple[float, int, str] | None, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {class_path: estl.data.Digits, init_args: {augment: {shift: 0.1}}}")
    flags = TrainingFlags(config=(str(recipe),), arch="vggsnn", augment=text)
    augment = parse(flags.spell_out())[0].data.init_args.augment
    if expected is None:
        assert augment is None
    else:
        assert (augment.flip, augment.padded_crop, augment.policy) == expected
        assert augment.shift == 0.0
    with pytest.raises(ValueError, match=r"--augment strong: give none, cifar, events, or"):
        TrainingFlags(augment="strong").spell_out()


@pytest.mark.parametrize(
    ("words", "images", "augmented"),
    [
        ("--data.init_args.bridge.images null", None, True),
        ("--data.init_args.bridge.images=null", None, True),
        ("--data.init_args.bridge.augment null --data.init_args.bridge.images x", "x", False),
    ],
)
def test_a_null_takes_a_value_of_the_bridge_away(
    words: str, images: str | None, augmented: bool, tmp_path: Path
) -> None:
    flipped = tmp_path / "flipped.yaml"
    flipped.write_text("data: {init_args: {bridge: {augment: {flip: 0.5}}}}")
    flags = TrainingFlags(config=("nmnist_guided", str(flipped)))
    bridge = parse(flags.spell_out(words.split()))[0].data.init_args.bridge
    assert bridge.images == (Path(images) if images else None)
    assert (bridge.augment is not None) == augmented
    assert bridge.per_step == 25


def test_short_flags_set_the_values_of_the_recipe() -> None:
    flags = TrainingFlags(
        dataset="digits", arch="ResNet-19", tse=True, tau_f=0.3, kappa=0.5, lr=0.1, batch_size=7,
        epochs=2,
    )  # fmt: skip
    config, given = parse(flags.spell_out())
    assert config.student.class_path == "estl.students.resnet19"
    assert config.supervision.init_args.tau_f == 0.3
    assert config.supervision.init_args.kappa == 0.5
    assert config.learner.lr == 0.1
    assert config.data.init_args.batch_size == 7
    assert config.trainer.max_epochs == 2
    assert "classes" not in given.student.get("init_args", {})
