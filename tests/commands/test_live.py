"""`estl calibrate` and `estl predict --until-sure`: what they say is what the student says."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from estl.commands import main
from estl.commands.predict import latency
from estl.data.shards import write_shards
from estl.evaluation.accuracy import running_mean
from estl.training.predict import predict
from estl.training.reopen import reopen
from estl.training.results import CheckpointResults
from tests.small_students import save_changeable
from tests.tiny_sets import write_nmnist


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, and a checkpoint of a student that answers otherwise after every step."""
    folder = tmp_path_factory.mktemp("live")
    write_nmnist(folder / "data", each=8)
    torch.manual_seed(0)
    save_changeable(
        folder / "run" / "last.ckpt",
        torch.poisson(torch.full((8, 4, 2, 34, 34), 0.01)),
        {
            "class_path": "estl.data.NMNISTPairs",
            "init_args": {"root": str(folder / "data"), "T": 4, "by": "count", "val_fraction": 0.5},
        },
        ["0", "1"],
        seed=0,
        supervision={"class_path": "estl.supervision.MeanCE", "init_args": {}},
    )
    return folder


def test_steps_until_sure_are_the_first_of_all_steps(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, files = run / "run" / "last.ckpt", sorted((run / "data").rglob("Test/*/*.bin"))
    whole = list(predict(ckpt, files))
    middle = sorted(found.steps[0][1] for found in whole)[len(whole) // 2]
    early = list(predict(ckpt, files, until_sure=middle))
    for one, all_steps in zip(early, whole, strict=True):
        n = len(one.steps)
        assert one.steps == all_steps.steps[:n]
        assert all(p < middle for _, p in one.steps[:-1])
        assert n == 4 or one.steps[-1][1] >= middle
        assert len(one.seconds) == n
    assert len({len(one.steps) for one in early}) > 1  # some leave early, some do not

    capsys.readouterr()
    words = ["predict", f"--ckpt={ckpt}", *map(str, files)]
    assert main([*words, f"--until-sure={middle!r}", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(x["file"], x["class"], x["step"]) for x in lines] == [
        (str(one.file), one.steps[-1][0], len(one.steps)) for one in early
    ]
    assert main([*words, "--until-sure=0.9"]) == 0
    assert "milliseconds a step" in capsys.readouterr().out.splitlines()[-1]
    assert main([*words, "--until-sure=-1"]) == 2
    assert "until_sure=-1" in capsys.readouterr().err


def test_files_are_standardized_by_the_figures_of_the_set(run: Path, tmp_path: Path) -> None:
    files = sorted((run / "data").rglob("Test/*/*.bin"))[:2]
    ckpt = run / "run" / "last.ckpt"
    saved = torch.load(ckpt, weights_only=True)
    found = []
    for std in (1.0, 0.5):
        own = {"normalize": {"mean": [0.0, 0.0], "std": [std, std]}}
        saved["recipe"]["data"]["init_args"] |= own
        torch.save(saved, tmp_path / "last.ckpt")
        found.append([x.steps for x in predict(tmp_path / "last.ckpt", files)])
    assert found[0] == [x.steps for x in predict(ckpt, files)]
    assert found[1] != found[0]


def test_a_bad_file_is_named_and_the_others_are_predicted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, *_ = sorted((run / "data").rglob("Test/*/*.bin"))
    (tmp_path / "empty.bin").touch()
    bad = [tmp_path / "empty.bin", tmp_path / "nowhere.bin"]
    words = ["predict", f"--ckpt={run / 'run' / 'last.ckpt'}", "--until-sure=0.9"]
    assert main([*words, "--json", *map(str, [one, *bad, two])]) == 2
    found = capsys.readouterr()
    assert [json.loads(line)["file"] for line in found.out.splitlines()] == [str(one), str(two)]
    for path, line in zip(bad, found.err.splitlines(), strict=True):
        assert line.startswith("estl predict: ")
        assert str(path) in line
    assert main([*words, str(bad[0])]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([*words, "--sensor=abc", str(one), str(two)]) == 2  # of all files: said once
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_calibration_is_of_the_validation_split(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = run / "run" / "last.ckpt"
    words = ["calibrate", f"--ckpt={ckpt}", f"--output={run / 'early.json'}"]
    assert main(words) == 2  # half a point of so few
    assert "give at least 199 of them, or --tolerance 0." in capsys.readouterr().err
    assert not (run / "early.json").exists()
    assert main([*words, "--tolerance=0.2"]) == 0
    found = json.loads((run / "early.json").read_text())
    opened = reopen(ckpt, split="val")
    (batch,) = opened.data.loader("val")
    with torch.no_grad():
        last = running_mean(opened.student(batch.events).logits)[:, -1]
    right = (last.argmax(-1) == batch.label).double().mean().item()
    assert found["all_steps"] == pytest.approx(right)
    assert found["samples"] == opened.data.sizes["val"] == len(batch.label)
    told = f"--ckpt {ckpt} --until-sure {found['threshold']:.6g}"
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"estl predict {told} FILES",
        f"estl test {told}",
    ]
    assert main([*words, "--tolerance=0.2", "--trust=one", "--trust=two"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"estl predict {told} --trust one --trust two FILES",
        f"estl test {told} --trust one --trust two",
    ]


def test_where_no_threshold_will_do_no_command_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(*_: object) -> tuple[Tensor, Tensor]:
        right = torch.zeros(50, 4, dtype=torch.bool)
        right[:, -1] = True  # by the last step alone
        return torch.rand(50, 1).expand(-1, 4), right

    monkeypatch.setattr("estl.evaluation.early.confidences", late)
    assert main(["calibrate", f"--ckpt={run / 'run' / 'last.ckpt'}", "--tolerance=0.02"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "no threshold keeps within --tolerance 0.02: answer after all steps"


def test_predict_is_recommended_only_where_it_can_be_used(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = run / "run" / "last.ckpt"
    write_shards(reopen(ckpt).data, tmp_path / "shards")
    saved = torch.load(ckpt, weights_only=True)
    options = {"root": str(tmp_path / "shards")}
    saved["recipe"]["data"] = {"class_path": "estl.data.Shards", "init_args": options}
    torch.save(saved, tmp_path / "last.ckpt")
    for path, lines in (
        (ckpt, ["estl predict", "estl test"]),
        (tmp_path / "last.ckpt", ["estl test"]),
    ):
        assert main(["calibrate", f"--ckpt={path}", "--tolerance=0.2"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert [line.partition(" --")[0] for line in out if line.startswith("estl ")] == lines


def test_a_threshold_is_tested_on_held_out_recordings(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = run / "run" / "last.ckpt"
    opened = reopen(ckpt)
    (batch,) = opened.data.loader("test")
    with torch.no_grad():
        shown = running_mean(opened.student(batch.events).logits).softmax(-1)
    threshold = shown[:, 0].amax(-1).median().item()  # at which half of them leave at once
    right, last, steps, n = 0, 0, 0, len(batch.label)
    for one, label in zip(shown, batch.label, strict=True):
        t = next((t for t in range(4) if one[t].max() >= threshold), 3)
        right += int(one[t].argmax() == label)
        last += int(one[-1].argmax() == label)
        steps += t + 1
    assert n < steps < 4 * n
    words = ["test", f"--ckpt={ckpt}", f"--output-dir={tmp_path}"]
    assert main([*words, f"--until-sure={threshold!r}"]) == 0
    early = CheckpointResults.read(tmp_path / "test.json").early
    assert early is not None
    assert early.accuracy == pytest.approx(right / n)
    assert early.mean_steps == pytest.approx(steps / n)
    assert (early.all_steps, early.samples) == (pytest.approx(last / n), n)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        f"at threshold {threshold:.6g}: {100 * right / n:.2f} % after "
        f"{steps / n:.2f} of 4 steps on average, {100 * (right - last) / n:+.2f} points"
    )
    assert main(words) == 0
    assert CheckpointResults.read(tmp_path / "test.json").early is None
    assert main([*words, "--until-sure=0"]) == 2
    assert "until_sure=0" in capsys.readouterr().err


def test_percentiles_of_latency() -> None:
    text = latency([i / 1000 for i in range(100)])
    assert text == "milliseconds a step: 50.0 (median), 90.0 (90 %), 99.0 (99 %)"
