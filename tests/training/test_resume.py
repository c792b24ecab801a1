"""A run that is killed and resumed ends where an unbroken one ends, bit for bit."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

RUN = [
    *(sys.executable, "-m", "estl.commands", "fit", "--dataset=digits", "--arch=vggsnn-pooled"),
    *("--student.init_args.layers=[8,AP,16]", "--T=3", "--data.init_args.per_class=20", "--tse"),
    *("--epochs=12", "--batch-size=16", "--learner.warmup=1"),
]


def epoch_of(checkpoint: Path) -> int:
    """The epoch in a checkpoint, -1 where there is none."""
    return int(torch.load(checkpoint, weights_only=True)["epoch"]) if checkpoint.exists() else -1


def history(run: Path) -> list[dict[str, str]]:
    """The rows of `history.csv`, but for the seconds."""
    with (run / "history.csv").open(newline="") as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*RUN, f"--output-dir={whole}"], check=True, capture_output=True)

    victim = subprocess.Popen(
        [*RUN, f"--output-dir={broken}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while epoch_of(broken / "last.ckpt") < 1:
        assert victim.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert epoch_of(broken / "last.ckpt") < 11
    assert not (broken / "results.json").exists()

    resume = [sys.executable, "-m", "estl.commands", "fit", "--resume", str(broken)]
    subprocess.run(resume, check=True, capture_output=True)
    one = torch.load(whole / "last.ckpt", weights_only=True)
    two = torch.load(broken / "last.ckpt", weights_only=True)
    assert one["epoch"] == two["epoch"] == 11
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    assert next(whole.glob("best*")).name == next(broken.glob("best*")).name
    assert (broken / "results.json").exists()
    assert [row["epoch"] for row in history(broken)] == [str(n) for n in range(1, 13)]
    assert history(broken) == history(whole)
