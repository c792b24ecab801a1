"""A run that is killed and resumed ends where an unbroken one ends, bit for bit."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from estl.commands import main
from estl.data.sets.digits import Digits
from estl.data.shards import write_shards
from estl.training.recipe import parse_recipe
from estl.training.results import Results, command_line
from estl.training.resume import commands, note_command
from estl.training.run import fit
from tests.forked import start
from tests.small_runs import recipe, same, train

RUN = [
    *("fit", "--dataset=digits", "--arch=vggsnn-pooled", "--student.init_args.layers=[8,AP,16]"),
    *("--T=3", "--data.init_args.size=16", "--data.init_args.per_class=20", "--tse"),
    *("--batch-size=16", "--learner.warmup=1"),
    *("--data.init_args.val_fraction=0.05", "--data.init_args.test_fraction=0.05"),
]


def stopped(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends that cannot do its work."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Of a run's last checkpoint."""
    return dict(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])


def epoch_of(checkpoint: Path) -> int:
    """The epoch in a checkpoint, -1 where there is none."""
    return int(torch.load(checkpoint, weights_only=True)["epoch"]) if checkpoint.exists() else -1


def history(run: Path) -> list[dict[str, str]]:
    """The rows of `history.csv`, but for seconds and memory."""
    apart = dict.fromkeys(("seconds", "step_seconds", "memory_mib"), "")
    with (run / "history.csv").open(newline="") as file:
        return [row | apart for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_killed_and_resumed_equals_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = [*RUN, "--epochs=6"]
    assert main([*run, f"--output-dir={whole}"]) == 0

    victim = start([*run, f"--output-dir={broken}"])
    deadline = time.monotonic() + 600
    while epoch_of(broken / "last.ckpt") < 1:
        assert victim.exitcode is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert epoch_of(broken / "last.ckpt") < 5
    assert not (broken / "results.json").exists()

    monkeypatch.setattr(sys, "argv", ["estl", "fit", "--resume", str(broken)])
    assert main(sys.argv[1:]) == 0
    one = torch.load(whole / "last.ckpt", weights_only=True)
    two = torch.load(broken / "last.ckpt", weights_only=True)
    assert one["epoch"] == two["epoch"] == 5
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    assert next(whole.glob("best*")).name == next(broken.glob("best*")).name
    of = Results.read(broken / "results.json").of
    assert of.command == shlex.join(["estl", *run, f"--output-dir={broken}"])
    assert of.resumed == (f"estl fit --resume {broken}",)
    assert Results.read(whole / "results.json").of.resumed == ()
    assert [row["epoch"] for row in history(broken)] == [str(n) for n in range(1, 7)]
    assert history(broken) == history(whole)


def test_commands_are_kept_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(*words: str, new: bool = False) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["/bin/estl", *words])
        note_command(tmp_path, new=new)
        return commands(tmp_path)

    assert commands(tmp_path) == []
    assert note("fit", "--resume", "old") == ["estl fit --resume old"]  # none was kept before
    assert note("fit", "--x={a:\n b}", "[c]", new=True) == ["estl fit '--x={a: b}' '[c]'"]
    assert note("fit", "--resume", "é") == ["estl fit '--x={a: b}' '[c]'", "estl fit --resume 'é'"]
    assert len(note("fit", "--resume", "é")) == 3
    monkeypatch.setenv("ESTL_RESTART_COUNT", "1")
    assert len(note("fit", "--resume", "é")) == 3  # a launcher has started it again
    assert note("fit", "--resume", "b")[2:] == ["estl fit --resume 'é'", "estl fit --resume b"]


def test_no_password_of_a_database_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (
        "--storage postgresql+psycopg://me:a.B-1@host/x",
        "--storage=b://me:c%2Fd@host/x",
    ):
        monkeypatch.setattr(sys, "argv", ["estl", "tune", *words.split()])
        assert command_line().endswith("://me:...@host/x")


def resume(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run that is continued to its end."""
    fit(*parse_recipe(yaml.safe_load((folder / "config.yaml").read_text())), folder, test=False)
    return dict(torch.load(folder / "last.ckpt", weights_only=True))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "loading",
    [
        {"augment": {"shift": 0.1, "flip": 0.5}},
        {"augment": {"mixup": 0.4, "drop_time": 0.3}, "num_workers": 2},
        {"augment": {"shift": 0.1}, "num_workers": 2, "shards": True},
    ],
    ids=str,
)
def test_augmented_runs_are_resumed_bit_for_bit(loading: dict[str, Any], tmp_path: Path) -> None:
    loading = dict(loading)
    if loading.pop("shards", False):
        write_shards(Digits(T=3, size=16, per_class=4), tmp_path / "shards", shard_size=8)
        loading["root"] = str(tmp_path / "shards")
    whole = train(recipe(**loading), tmp_path / "whole")
    for kill in (1, 2):
        broken = tmp_path / f"broken{kill}"
        assert train(recipe(**loading), broken, kill)["epoch"] == kill - 1
        continued = resume(broken)
        assert continued["epoch"] == 2
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert same(whole[part], continued[part]), (kill, part)
        assert history(broken) == history(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("without_compiling", "undrawn")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*RUN, "--epochs=2", "--student.init_args.layers=[4,AP,8]"]
    whole, disk = tmp_path / "whole", tmp_path / "disk"
    disk.mkdir()
    assert main([*run, f"--output-dir={whole}"]) == 0
    sizes = {path.name: path.stat().st_size for path in whole.glob("*.*")}
    room = 12 + 3 * sizes["last.ckpt"] // 2048 + sizes["start.npz"] // 1024  # for one and a half
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", disk], check=True)
    try:
        line = stopped([*run, f"--output-dir={disk / 'run'}"], capsys)
        assert "ckpt cannot be written (No space left on device): make room there" in line
        assert line.endswith(f"then go on with estl fit --resume {disk / 'run'}")
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        assert main(["fit", "--resume", str(disk / "run")]) == 0
        assert same(weights_of(whole), weights_of(disk / "run"))
        assert not list(disk.rglob("*.new"))
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("without_compiling", "undrawn")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_folder_that_cannot_be_written_is_one_line_and_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, disk = tmp_path / "whole", tmp_path / "disk"
    run, again = disk / "run", ["fit", "--resume", str(disk / "run")]
    disk.mkdir()
    train(recipe(), whole)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], check=True)
    try:
        begun = ["fit", f"--config={whole / 'config.yaml'}", f"--output-dir={run}"]
        lines = [stopped(begun, capsys)]
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        train(recipe(), run, kill=1)
        before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        lines.append(stopped(again, capsys))
        for line in lines:
            assert "Read-only file system: give another path, or make this one usable" in line
        assert all(path.read_bytes() == content for path, content in before.items())
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert main(again) == 0
        assert same(weights_of(whole), weights_of(run))
    finally:
        subprocess.run(["umount", disk], check=True)
