"""What is stopped leaves a whole checkpoint, says how to go on, and takes its runs with it."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from estl.training.checkpoint import read_checkpoint
from tests.forked import start

pytestmark = pytest.mark.usefixtures("without_compiling")

LONG = [
    *("--dataset=digits", "--arch=vggsnn-pooled", "--student.init_args.layers=[4,AP,4]", "--T=3"),
    *("--data.init_args.size=16", "--data.init_args.per_class=4", "--epochs=5000"),
]


def wait(until: Callable[[], bool], process: BaseProcess | None = None) -> None:
    deadline = time.monotonic() + 600
    while not until():
        assert process is None or process.exitcode is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_run_that_is_stopped_says_how_to_go_on(
    how: signal.Signals, status: int, word: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    last = folder / "last.ckpt"
    run = start(["fit", *LONG, f"--output-dir={folder}"], err=tmp_path / "said")
    wait(last.exists, run)
    os.kill(run.pid, how)
    run.join(300)
    assert run.exitcode == status
    said = (tmp_path / "said").read_text()
    assert said == f"estl fit: {word}; go on with estl fit --resume {folder}\n"
    assert read_checkpoint(last)["epoch"] >= 0
    assert not list(folder.glob("*.new"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_runs_of_a_sweep_end_with_it(how: signal.Signals, tmp_path: Path) -> None:
    words = ["compare", *LONG, "--only=plain", "--seeds=0", f"--output-dir={tmp_path}"]
    sweep = start(words, err=tmp_path / "said")
    folder = tmp_path / "plain" / "seed0"
    wait((folder / "last.ckpt").exists, sweep)
    os.kill(sweep.pid, how)
    sweep.join(300)
    end = f"estl fit: terminated; go on with estl fit --resume {folder}\n"
    if how == signal.SIGTERM:
        assert sweep.exitcode == 143
        assert (
            tmp_path / "said"
        ).read_text() == "estl compare: terminated; go on with the same command\n"
    log = folder / "log.txt"
    wait(lambda: log.read_text().endswith("\n"))
    assert log.read_text() == end
