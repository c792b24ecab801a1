"""A sweep on a Ray cluster is complete although a node is lost; what cannot start is one line."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from estl.commands import main
from estl.experiments.jobs import Job, complete
from estl.experiments.launch import launch
from estl.training.checkpoint import read_checkpoint
from estl.training.results import Results
from tests.small_runs import same

pytestmark = pytest.mark.usefixtures("without_compiling")

ABLATE = [
    *("ablate", "--config=digits_guided", "--data.init_args.bridge=null", "--rungs=1"),
    *("--arch=vggsnn-pooled", "--student.init_args.layers=[8,AP,16]", "--T=3", "--lr=0.01"),
    *("--data.init_args.size=16", "--data.init_args.per_class=12", "--epochs=20"),
]


def parent_of(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def run_below(ancestor: int, runs: list[Path]) -> Path | None:
    """The run folder in which a process below another one trains."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text()
        except OSError:
            continue
        process = int(path.name)
        if "\0fit\0" in words and ancestor in (parent_of(process), parent_of(parent_of(process))):
            return next(run for run in runs if words.rstrip("\0").endswith(str(run)))
    return None


def last_epoch(run: Path | None) -> bool:
    return run is not None and (run / "last.ckpt").exists()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with a processor each, on this machine."""
    utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else all that runs beside it comes first
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nodes = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
    made = utils.Cluster(initialize_head=True, head_node_args=nodes | {"include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    try:
        made.add_node(**nodes)
        yield made
    finally:
        made.shutdown()


@pytest.mark.slow
def test_an_ablation_on_two_nodes_is_complete_although_one_is_killed(
    cluster: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "ablation"
    words = [*ABLATE, "--seeds=0,1,2,3", f"--output-dir={folder}"]
    runs = [folder / "1" / f"seed{seed}" for seed in range(4)]
    estl = [sys.executable, "-m", "estl.commands"]
    with (tmp_path / "said").open("w") as said:
        sweep = subprocess.Popen([*estl, *words, "--launcher=ray"], stdout=said, stderr=said)
    try:
        (lost,) = cluster.worker_nodes
        raylet = lost.all_processes["raylet"][0].process.pid
        deadline = time.monotonic() + 600
        while not last_epoch(killed := run_below(raylet, runs)):
            assert time.monotonic() < deadline
            assert sweep.poll() is None
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)
        assert killed is not None
        assert not (killed / "results.json").exists()
        status = sweep.wait(timeout=600)
    finally:
        sweep.terminate()
        sweep.wait()
    text = (tmp_path / "said").read_text()
    assert status == 0, text
    assert f"1, seed {killed.name[-1]}: going on" in text
    assert "Seeds 0, 1, 2, 3;" in (folder / "results.md").read_text()
    found = [Results.read(run / "results.json") for run in runs]
    assert [results.epochs for results in found] == [20] * 4
    whole = tmp_path / "whole"  # the same run, which nobody has killed
    args = [f"--config={folder}/1/recipe.yaml", f"--seed={killed.name[-1]}"]
    subprocess.run([*estl, "fit", *args, f"--output-dir={whole}"], check=True, capture_output=True)
    one, two = (read_checkpoint(path / "last.ckpt")["state_dict"] for path in (whole, killed))
    assert same(one, two)


@pytest.mark.slow
def test_who_takes_a_job_over_begins_when_the_other_has_ended(tmp_path: Path) -> None:
    job = Job("a demo", tmp_path, ("recipes",), str(tmp_path))
    with (tmp_path / "lock").open("w") as lock, ThreadPoolExecutor() as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        problem = pool.submit(complete, job)
        time.sleep(1.0)
        assert not (tmp_path / "log.txt").exists()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert problem.result(300) == ""
    assert "digits_tse" in (tmp_path / "log.txt").read_text()


SBATCH = r"""#!/usr/bin/env python3
# Of SLURM's sbatch what submitit needs: the jobs of an array are run in the background.
import os, re, subprocess, sys
if os.environ.get("IN_BACKGROUND") is None:
    open(os.environ["SUBMITTED"], "a").write(open(sys.argv[-1]).read())
    subprocess.Popen(sys.argv, env=os.environ | {"IN_BACKGROUND": "1"}, start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job 77")
    sys.exit()
from concurrent.futures import ThreadPoolExecutor
first, last, at_once = map(int, re.findall(
    r"^#SBATCH --array=(\d+)-(\d+)%(\d+)$", open(sys.argv[-1]).read(), re.M)[0])
def one(task):
    names = {"SLURM_JOB_ID": str(100 + task), "SLURM_ARRAY_JOB_ID": "77", "SLURM_NTASKS": "1",
             "SLURM_ARRAY_TASK_ID": str(task), "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    subprocess.run(["bash", sys.argv[-1]], env=os.environ | names)
list(ThreadPoolExecutor(at_once).map(one, range(first, last + 1)))
"""
SRUN = r"""#!/bin/bash
while [[ $1 == --* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@" > /dev/null 2>&1
"""


@pytest.mark.slow
def test_a_sweep_is_an_array_of_slurms_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    (tmp_path / "bin").mkdir()
    nothing = "#!/bin/sh\n"
    commands = {"sbatch": SBATCH, "srun": SRUN, "sacct": nothing, "scancel": nothing}
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("SUBMITTED", str(tmp_path / "script"))
    seen = "--per-run=gpus_per_node=0,slurm_partition=gpu,timeout_min=90"
    words = [*ABLATE, "--epochs=1", "--seeds=0,1", f"--output-dir={tmp_path}/a", seen, "--jobs=2"]
    assert main([*words, "--launcher=slurm"]) == 0
    script = (tmp_path / "script").read_text()
    assert "#SBATCH --array=0-1%2\n" in script
    assert "#SBATCH --partition=gpu\n" in script
    assert "#SBATCH --time=90\n" in script
    assert "Seeds 0, 1;" in (tmp_path / "a" / "results.md").read_text()
    capsys.readouterr()
    words = [word for word in words if not word.startswith("--per-run")]
    assert main([*words, "--per-run=nosuch=1", "--seeds=2", "--launcher=slurm"]) == 2
    assert "cannot submit" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("a run", tmp_path, ("fit",), str(tmp_path))
    with pytest.raises(ValueError, match="num_gpus=1 is for a cluster: give --launcher"):
        next(launch("local", [job], tmp_path, per_run="num_gpus=1"))
    with pytest.raises(ValueError, match="--per-run has 'gpus'"):
        next(launch("ray", [job], tmp_path, per_run="gpus"))
    monkeypatch.setenv("PATH", str(tmp_path))
    pytest.importorskip("submitit", reason="no submitit: pip install 'estl[slurm]'")
    with pytest.raises(ValueError, match="slurm finds no sbatch"):
        next(launch("slurm", [job], tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs ray: pip install 'estl\[ray\]'"):
        next(launch("ray", [job], tmp_path))
