"""Commands under torchrun: they share their work, or their first process does it."""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from estl.commands import main
from estl.training.checkpoint import read_checkpoint
from estl.training.processes import launched
from tests.forked import FORKED, start
from tests.small_runs import same

DATA = [
    *("--dataset=digits", "--T=3", "--data.init_args.size=16", "--data.init_args.per_class=4"),
    *("--data.init_args.val_fraction=0.05", "--data.init_args.test_fraction=0.05"),
    "--batch-size=16",
]
STUDENT = ["--arch=vggsnn-pooled", "--student.init_args.layers=[4,AP,4]"]
TOWER = ["--image-size=16", "--patch=8", "--dim=16", "--depth=1", "--heads=2"]
COMPARE = ["compare", *DATA, *STUDENT, "--epochs=1", "--only=plain", "--seeds=0"]
TUNE = ["tune", *DATA, *STUDENT, "--epochs=1", "--trials=1"]
EPOCHS = 10
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "ESTL_COMPILE": "0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"
}  # fmt: skip


def two(
    words: list[str], folder: Path, restarts: int = 0, interval: float = 0.1
) -> tuple[bool, str]:
    """`torchrun estl WORDS` in a folder, with torchrun in this process and what it starts forked.

    Args:
        words: of the command line.
        folder: in which they are said.
        restarts: at most so many.
        interval: seconds after which torchrun looks whether all go on.

    Returns:
        Whether all ended well, and what they said.
    """
    logs = DefaultLogsSpecs(log_dir=f"{folder}.logs", redirects=Std.ALL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=interval,
        start_method=FORKED.get_start_method(), logs_specs=logs,
    )  # fmt: skip
    # In another thread torchrun leaves this process's signals alone.
    with ThreadPool(1) as other, pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"TORCHELASTIC_SIGNALS_TO_HANDLE": ""}).items():
            patch.setenv(name, value)  # the last one is set by torchrun
        try:
            other.apply_async(elastic_launch(config, one), (words, str(folder))).get(600)
            well = True
        except ChildFailedError:
            well = False
    return well, "".join(path.read_text() for path in Path(f"{folder}.logs").rglob("std*.log"))


def one(words: list[str], folder: str) -> None:
    """A process of `two`; its number is in a file."""
    rank = os.environ["RANK"]
    Path(f"{folder}.logs", rank).write_text(str(os.getpid()))
    os.environ |= ENVIRONMENT
    os.chdir(folder)
    rank_zero_only.rank = int(rank)  # type: ignore[attr-defined]  # as if imported with it
    if status := main(words):
        sys.exit(status)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes, which has chosen it itself. torchrun starts these."""
    place = tmp_path_factory.mktemp("launched")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "estl.commands", "fit", *DATA, *STUDENT, f"--epochs={EPOCHS}"],
        cwd=place, env=os.environ | ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = done.stdout
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert said.count("16 samples, 8 for each of 2 processes") == 1
    (folder,) = (place / "runs").iterdir()
    assert said.count("run folder: ") == 1
    assert read_checkpoint(folder / "last.ckpt")["epoch"] == EPOCHS - 1
    return folder


@pytest.mark.slow
def test_a_lost_process_is_started_again_and_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["fit", *DATA, *STUDENT, f"--epochs={EPOCHS}", f"--output-dir={folder}"]

    def kill() -> None:
        while not (folder / "last.ckpt").exists():
            time.sleep(0.01)
        os.kill(int(Path(f"{tmp_path}.logs", "1").read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    well, said = two(words, tmp_path, restarts=1)
    assert well, said
    assert list(Path(f"{tmp_path}.logs").rglob("attempt_1"))
    unbroken, broken = (read_checkpoint(path / "last.ckpt") for path in (whole, folder))
    for part in ("epoch", "state_dict", "optimizer_states"):
        assert same(unbroken[part], broken[part]), part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "made"),
    [
        (["train-teacher", *DATA, *TOWER, "--epochs=1"], ["config.json", "teacher.json"]),
        # In whose trials no process group may be begun; a sweep's own processes: see below.
        (TUNE, ["trial000/results.json", "tune.json"]),
    ],
    ids=["they share it", "the first does it"],
)
def test_other_commands_end_well(words: list[str], made: list[str], tmp_path: Path) -> None:
    well, said = two([*words, f"--output-dir={tmp_path / 'out'}"], tmp_path)
    assert well, said
    assert "Traceback" not in said
    for name in made:
        assert (tmp_path / "out" / name).is_file()
    shared = "8 for each of 2 processes" in said
    assert shared == (words[0] == "train-teacher")
    if not shared:
        assert said.count("table, figure and run folders: ") == 1  # the others leave


@pytest.mark.slow
@pytest.mark.usefixtures("in_process", "without_compiling")
@pytest.mark.parametrize(
    ("words", "made"),
    [
        ([*TUNE, "--trials=2"], "trial001/results.json"),
        (COMPARE, "plain/seed0/results.json"),
        (
            [
                *("ablate", "--config=digits_guided", "--data.init_args.bridge=null", "--epochs=1"),
                *("--rungs=1", "--seeds=0", *STUDENT, *DATA),
            ],
            "1/seed0/results.json",
        ),
    ],
    ids=["tune", "compare", "ablate"],
)
def test_a_sweep_is_done_by_the_first_process(
    words: list[str], made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main([*words, f"--output-dir={tmp_path}"]) == 0
        assert (tmp_path / made).is_file() == (rank == "0")
        assert any(tmp_path.iterdir()) == (rank == "0")
    assert launched() is None  # and its runs are not told


@pytest.mark.slow
def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    # Both could say it before torchrun ends the other.
    well, said = two(["fit", *DATA, *STUDENT, "--T=0"], tmp_path, interval=2.0)
    assert not well
    assert said.count("estl fit: --T (data.init_args.T) is 0: give a number at least 1") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_may_be_spawned(tmp_path: Path) -> None:
    strategy = ["--devices=2", "--trainer.strategy=ddp_spawn", "--trainer.accelerator=cpu"]
    words = ["fit", *DATA, *STUDENT, "--epochs=2", *strategy, f"--output-dir={tmp_path / 'run'}"]
    run = start(words, *(tmp_path / name for name in ("out", "err")))
    run.join(600)
    assert run.exitcode == 0, (tmp_path / "err").read_text()
    assert "8 for each of 2 processes" in (tmp_path / "out").read_text()
    assert '"epochs": 2' in (tmp_path / "run" / "results.json").read_text()


def test_a_spawned_process_that_imports_the_command_does_not_run_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["estl", "recipes"])
    runpy.run_module("estl.commands", run_name="__mp_main__", alter_sys=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("estl.commands", run_name="__main__", alter_sys=True)
    assert "digits_tse" in capsys.readouterr().out
