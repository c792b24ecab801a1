"""`estl predict` by windows, of files and of events as they come: what the data set would cut."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from estl.commands import main
from estl.data import Recordings
from estl.data.recorded import read_parts
from estl.evaluation.accuracy import running_mean
from estl.training.checkpoint import load_student
from tests.encoders import dat, evt3, write
from tests.small_students import save_changeable
from tests.tiny_sets import write_recordings

CUT = {"window": "200ms", "stride": "100ms"}
OPTIONS = {"T": 3, "size": 16, "by": "count", "normalize": "max"}


def save(path: Path, data: dict[str, Any]) -> Path:
    """A checkpoint of a student that answers otherwise after every step."""
    torch.manual_seed(0)
    events = torch.rand(8, 3, 2, 16, 16).round()
    own = {"class_path": "estl.data.Recordings", "init_args": data}
    return save_changeable(path, events, own, ["chair", "cup"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 590 ms, of which windows of `CUT` are four, and a checkpoint."""
    root = write_recordings(tmp_path_factory.mktemp("own"), suffix="raw")
    save(root / "run" / "last.ckpt", OPTIONS | CUT)
    return root


def words(root: Path, *more: str, ckpt: str = "run/last.ckpt") -> list[str]:
    return ["predict", f"--ckpt={root / ckpt}", *more]


Spoken = list[dict[str, Any]]


def spoken(capsys: pytest.CaptureFixture[str], words: list[str]) -> Spoken:
    """The lines of JSON, without what time it took."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [{k: v for k, v in x.items() if k not in ("seconds", "latency", "file")} for x in lines]


def test_windows_have_the_frames_of_the_data_set(root: Path) -> None:
    data = Recordings(root, **OPTIONS, **CUT)
    items = [item for part in data.splits.values() for item in part]
    files = sorted({item.events for item in items if item.events is not None})
    assert len(items) == 4 * len(files)
    for file in files:
        own = [item for item in items if item.events == file]
        found = list(read_parts(file, "estl.data.Recordings", OPTIONS, 200_000, 100_000))
        assert [span for span, _ in found] == [
            tuple(map(int, item.number.rpartition("/")[2].split("-"))) for item in own
        ]
        for item, (_, frames) in zip(own, found, strict=True):
            assert torch.equal(frames, data.load(item)[0])
            assert frames.sum() > 0


def test_a_line_a_window(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "cup" / "walk_01.raw"
    found = spoken(capsys, words(root, "--window=200ms", "--stride=100ms", str(file)))
    spans = [(start, start + 200_000) for start in range(0, 400_000, 100_000)]
    assert [(x["begin"], x["end"]) for x in found] == spans
    data = Recordings(root, **OPTIONS, **CUT)
    student = load_student(root / "run" / "last.ckpt")
    items = {i.number: i for part in data.splits.values() for i in part if i.events == file}
    for x in found:
        frames = data.decode(items[f"walk_01/{x['begin']}-{x['end']}"])[0]
        with torch.no_grad():
            mean = running_mean(student((frames / frames.max())[None]).logits)[0]
        probability, label = mean.softmax(-1).max(-1)
        assert [p for _, p in x["steps"]] == probability.tolist()
        assert [name for name, _ in x["steps"]] == [("chair", "cup")[k] for k in label]
    assert len({x["probability"] for x in found}) > 1

    assert main(words(root, "--window=200ms", str(file), str(file))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(file)
    assert lines[1].startswith("  0.000 s to 0.200 s  c")
    assert len(lines) == 1 + 2 * 2


def test_a_long_recording_in_one_prediction_is_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(root / "cup" / "walk_01.raw")
    assert main(words(root, file)) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("trained on windows of 0.2 s: give --window 200ms")
    save(root / "run" / "longer.ckpt", OPTIONS | {"window": "300ms"})  # of which it is not two
    save(root / "run" / "whole.ckpt", OPTIONS | {"window": None})
    for ckpt in ("run/longer.ckpt", "run/whole.ckpt"):
        assert main(words(root, file, ckpt=ckpt)) == 0
        assert capsys.readouterr().err == ""


def piped(path: Path, data: bytes) -> threading.Thread:
    """A pipe into which a thread writes, in pieces."""
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            for start in range(0, len(data), 37):
                pipe.write(data[start : start + 37])

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("more", [[], ["--stride=30ms", "--window=70ms"], ["--until-sure=0.51"]])
def test_what_is_followed_is_answered_as_the_finished_file(
    more: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "chair" / "walk_02.raw"
    cut = more if any("window" in word for word in more) else [*more, *spell(CUT)]
    finished = spoken(capsys, words(root, str(file), *cut))
    assert len(finished) > 3
    pipe = tmp_path / "pipe.raw"
    writer = piped(pipe, file.read_bytes())
    live = spoken(capsys, words(root, f"--follow={pipe}", *more))  # `CUT` is the checkpoint's
    writer.join()
    assert live == finished


def spell(cut: dict[str, str]) -> list[str]:
    return [f"--{key}={value}" for key, value in cut.items()]


def test_standard_input(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "chair" / "walk_02.raw"
    finished = spoken(capsys, words(root, str(file), *spell(CUT)))
    with file.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert spoken(capsys, words(root, "--follow", "-")) == finished
    with file.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("estl.commands.predict.LAST", 2)  # windows are counted on
        assert main(words(root, "--follow=-")) == 0
    *lines, count, waits = capsys.readouterr().out.splitlines()
    assert len(lines) == len(finished)
    assert count.startswith(f"{len(finished)} windows; milliseconds a step: ")
    assert waits.startswith("milliseconds from a window's last events to its answer: ")


def test_windows_go_on_from_each_other_if_asked(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [(1000 * k, (k * k) % 20, k % 16, k % 2) for k in range(400)]
    pipe = tmp_path / "pipe.raw"
    writer = piped(pipe, evt3(events, (16, 20)))
    found = spoken(capsys, words(root, f"--follow={pipe}", "--carry", "--window=100ms"))
    writer.join()
    file = write(tmp_path / "x.raw", evt3(events, (16, 20)))
    parts = read_parts(file, "estl.data.Recordings", OPTIONS, 100_000)
    frames = torch.cat([frames / frames.max() for _, frames in parts])
    with torch.no_grad():
        mean = running_mean(load_student(root / "run" / "last.ckpt")(frames[None]).logits)[0]
    probability = mean.softmax(-1).amax(-1)
    assert [p for x in found for _, p in x["steps"]] == probability.tolist()
    assert len(found) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--follow=udp://127.0.0.1:9", "x.raw"], "takes no files"),
        (["--follow=none.raw"], "no recording none.raw"),
        (["--follow=udp://127.0.0.1:9"], "--sensor 720x1280"),
        (["--follow=-", "--carry"], "carry goes through every event once"),
        (["--follow=-", "--carry", "--window=1s", "--until-sure=0.9"], "leave until_sure out"),
        (["--follow=-", "--window=soon"], "'soon' is no time"),
        (["--follow=-", "--window=3"], "3 is a time without a unit: give 3ms, 3s or 3us"),
        (["--window=3", "x.raw"], "3 is a time without a unit: give 3ms, 3s or 3us"),
        (["--carry", "x.raw"], "--carry is an option of --follow"),
        (["--stride=1s", "x.raw"], "stride=1s without a window"),
    ],
)
def test_what_does_not_go_together(
    more: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(root, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_student_of_whole_recordings_needs_a_window(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(root / "run" / "whole.ckpt", OPTIONS)
    assert main(words(root, "--follow=-", ckpt="run/whole.ckpt")) == 2
    assert "add --window 300ms" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_it_with_the_percentiles(root: Path, tmp_path: Path) -> None:
    events = [(1000 * k, k % 20, k % 16, k % 2) for k in range(450)]
    path = write(tmp_path / "x.dat", dat(events, (16, 20)))
    command = [sys.executable, "-m", "estl.commands", *words(root, f"--follow={path}")]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    first = [run.stdout.readline() for _ in range(3)]  # 450 ms hold three windows that are over
    with path.open("ab") as file:
        file.write(dat([(1000 * k, 0, 0, 1) for k in range(450, 650)], None)[-200 * 8 :])
    first += [run.stdout.readline() for _ in range(2)]
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=300)
    assert [line.split()[0] for line in first] == ["0.000", "0.100", "0.200", "0.300", "0.400"]
    assert out.startswith("5 windows; milliseconds a step")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert run.returncode == 130
