"""What is stopped leaves a whole checkpoint, says how to go on, and takes its runs with it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from estl.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("without_compiling")

ESTL = [sys.executable, "-m", "estl.commands"]
LONG = [
    *("--dataset=digits", "--arch=vggsnn-pooled", "--student.init_args.layers=[4,AP,4]", "--T=3"),
    *("--data.init_args.size=16", "--data.init_args.per_class=4", "--epochs=5000"),
]


def wait(until: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 600
    while not until():
        assert process is None or process.poll() is None, "it ended before it could be stopped"
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
    last = tmp_path / "last.ckpt"
    words = [*ESTL, "fit", *LONG, f"--output-dir={tmp_path}"]
    # What a shell runs in the background ignores Ctrl-C, and so would the run that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    wait(last.exists, run)
    run.send_signal(how)
    said = run.communicate(timeout=300)[1]
    assert run.returncode == status
    assert said == f"estl fit: {word}; go on with estl fit --resume {tmp_path}\n"
    assert read_checkpoint(last)["epoch"] >= 0
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_runs_of_a_sweep_end_with_it(how: signal.Signals, tmp_path: Path) -> None:
    words = [*ESTL, "compare", *LONG, "--only=plain", "--seeds=0", f"--output-dir={tmp_path}"]
    sweep = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "plain" / "seed0"
    wait((folder / "last.ckpt").exists, sweep)
    sweep.send_signal(how)
    said = sweep.communicate(timeout=300)[1]
    end = f"estl fit: terminated; go on with estl fit --resume {folder}\n"
    if how == signal.SIGTERM:
        assert sweep.returncode == 143
        assert said == "estl compare: terminated; go on with the same command\n"
    log = folder / "log.txt"
    wait(lambda: log.read_text().endswith("\n"))
    assert log.read_text() == end
