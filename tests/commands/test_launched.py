"""Commands under torchrun: they share their work, or their first process does it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from estl.commands import main
from estl.training.checkpoint import read_checkpoint
from estl.training.processes import launched
from tests.small_runs import same

DATA = [
    *("--dataset=digits", "--T=3", "--data.init_args.size=16", "--data.init_args.per_class=4"),
    *("--data.init_args.val_fraction=0.05", "--data.init_args.test_fraction=0.05"),
    "--batch-size=16",
]
STUDENT = ["--arch=vggsnn-pooled", "--student.init_args.layers=[4,AP,4]"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TOWER = ["--image-size=16", "--patch=8", "--dim=16", "--depth=1", "--heads=2"]
COMPARE = ["compare", *DATA, *STUDENT, "--epochs=1", "--only=plain", "--seeds=0"]
TUNE = ["tune", *DATA, *STUDENT, "--epochs=1", "--trials=1"]
EPOCHS = 10
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "ESTL_COMPILE": "0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"
}  # fmt: skip


def launch(words: list[str], folder: Path, *options: str) -> subprocess.Popen[str]:
    """`torchrun OPTIONS estl WORDS` in a folder."""
    return subprocess.Popen(
        [*TWO, *options, "-m", "estl.commands", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ENVIRONMENT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it said."""
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes, which has chosen it itself."""
    place = tmp_path_factory.mktemp("launched")
    said = finish(launch(["fit", *DATA, *STUDENT, f"--epochs={EPOCHS}"], place))
    assert said.count("16 samples, 8 for each of 2 processes") == 1
    (folder,) = (place / "runs").iterdir()
    assert said.count("run folder: ") == 1
    assert read_checkpoint(folder / "last.ckpt")["epoch"] == EPOCHS - 1
    return folder


def processes_of(folder: Path) -> dict[int, int]:
    """Process numbers by rank of those whose command names a folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((path / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        variables = dict(v.split(b"=", 1) for v in environment.split(b"\0") if b"=" in v)
        if str(folder).encode() in words and b"RANK" in variables:
            found[int(variables[b"RANK"])] = int(path.name)
    return found


@pytest.mark.slow
def test_a_lost_process_is_started_again_and_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["fit", *DATA, *STUDENT, f"--epochs={EPOCHS}", f"--output-dir={folder}"]
    run = launch(words, tmp_path, "--max-restarts=1")
    try:
        deadline = time.monotonic() + 600
        while not (folder / "last.ckpt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(processes_of(folder)[1], signal.SIGKILL)
        said = run.communicate(timeout=600)[0]
    finally:
        run.terminate()  # torchrun ends its processes, too
        run.wait()
    assert run.returncode == 0, said
    one, two = (read_checkpoint(path / "last.ckpt") for path in (whole, folder))
    for part in ("epoch", "state_dict", "optimizer_states"):
        assert same(one[part], two[part]), part


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
    said = finish(launch([*words, f"--output-dir={tmp_path / 'out'}"], tmp_path))
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
    run = launch(["fit", *DATA, *STUDENT, "--T=0"], tmp_path)
    said = run.communicate(timeout=600)[0]
    assert run.returncode != 0
    assert said.count("estl fit: --T (data.init_args.T) is 0: give a number at least 1") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_may_be_spawned(tmp_path: Path) -> None:
    strategy = ["--devices=2", "--trainer.strategy=ddp_spawn", "--trainer.accelerator=cpu"]
    words = ["fit", *DATA, *STUDENT, "--epochs=2", *strategy, f"--output-dir={tmp_path}"]
    command = [sys.executable, "-m", "estl.commands", *words]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "8 for each of 2 processes" in said.stdout
    assert '"epochs": 2' in (tmp_path / "results.json").read_text()
