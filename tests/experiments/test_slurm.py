"""On a SLURM of two nodes, both of them this machine: runs of two processes, and a sweep."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from estl.training.checkpoint import read_checkpoint
from estl.training.results import Results
from tests.small_runs import same

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_compiling")]

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=estl
SlurmctldHost={host}
SlurmUser=root
AuthInfo=socket={folder}/munge,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/%n
SlurmctldPort={ports[0]}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_min_interval=100000
ReturnToService=2
SlurmdTimeout=10
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
FIT = [
    *("fit", "--config=digits_tse", "--arch=vggsnn-pooled", "--student.init_args.layers=[8,AP,16]"),
    *("--T=3", "--data.init_args.size=16", "--data.init_args.per_class=12"),
    "--trainer.accelerator=cpu",
]
JOB = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --requeue --open-mode=append --output={log}
export MASTER_ADDR=127.0.0.1 MASTER_PORT={port}
srun {words}
"""


def ports(number: int) -> list[int]:
    """That are free now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def until(true: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Cluster:
    """The daemons, each a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self.daemons[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment
            )

    def node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name)

    def lose(self, name: str) -> None:
        """A node and all that it runs, as when its power goes."""
        marks = {f"SLURMD_NODENAME={name}", f"SLURM_CONF={self.folder}/slurm.conf"}
        for step in found(r"slurmstepd: \["):
            tree = [step, *below(step)]
            if any(marks <= set(environment(process)) for process in tree):
                subprocess.run(["kill", "-KILL", *tree], check=False)
        self.daemons[name].kill()
        self.daemons[name].wait()


def found(pattern: str) -> list[str]:
    """The processes whose command line has a pattern."""
    return subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout.split()


def below(process: str) -> list[str]:
    """All processes that a process has started, and theirs."""
    children = subprocess.run(["pgrep", "-P", process], capture_output=True, text=True).stdout
    return [name for child in children.split() for name in (child, *below(child))]


def environment(process: str) -> list[str]:
    try:
        return Path(f"/proc/{process}/environ").read_text().split("\0")
    except OSError:
        return []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    if os.getuid() or not all(map(shutil.which, DAEMONS)):
        pytest.skip("it needs root and SLURM's daemons: apt-get install slurm-wlm")
    pytest.importorskip("submitit", reason="no submitit: pip install 'estl[slurm]'")
    folder = tmp_path / "slurm"
    folder.mkdir()
    text = CONFIG.format(folder=folder, host=socket.gethostname().split(".")[0], ports=ports(3))
    (folder / "slurm.conf").write_text(text)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Cluster(folder)
    files = {name: str(folder / f"munge.{name}") for name in ("log", "pid", "seed")}
    options = [f"--{name}-file={path}" for name, path in files.items()]
    socket_ = f"--socket={folder}/munge"
    made.start("munge", "munged", "-F", "--force", f"--key-file={folder}/key", socket_, *options)
    try:
        until((folder / "munge").exists)
        made.start("control", "slurmctld", "-D")
        for name in ("n1", "n2"):
            made.node(name)
        until(lambda: said("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")
        yield made
    finally:
        with suppress(AssertionError, subprocess.CalledProcessError):
            said("scancel", "--user=root")
            until(lambda: not said("squeue", "-h").strip(), 60)
        for daemon in made.daemons.values():
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(30)
            daemon.kill()


def submit(run: Path, *words: str) -> str:
    """A run of two processes, one a node."""
    command = [sys.executable, "-m", "estl.commands", *FIT, *words, f"--output-dir={run}"]
    log = run.parent / "log"
    (port,) = ports(1)
    script = run.parent / "job.sh"
    script.write_text(JOB.format(log=log, port=port, words=" ".join(command)))
    return said("sbatch", "--parsable", str(script)).strip()


def state(job: str) -> str:
    found = re.search(r"JobState=(\w+)", said("scontrol", "show", "job", job))
    return found[1] if found else ""


def test_a_run_on_two_nodes_of_which_one_is_lost_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    whole, lost = tmp_path / "whole" / "run", tmp_path / "lost" / "run"
    for run in (whole, lost):
        run.parent.mkdir()
    job = submit(whole, "--epochs=30")
    until(lambda: state(job) in ("COMPLETED", "FAILED"), 600)
    assert state(job) == "COMPLETED", (whole.parent / "log").read_text()
    job = submit(lost, "--epochs=30")
    until((lost / "last.ckpt").exists, 600)
    cluster.lose("n2")
    until(lambda: state(job) != "RUNNING")  # put back into the queue
    assert not (lost / "results.json").exists()
    cluster.node("n2")
    until(lambda: state(job) in ("COMPLETED", "FAILED"), 600)
    text = (lost.parent / "log").read_text()
    assert state(job) == "COMPLETED", text
    assert "batch: 64 samples, 32 for each of 2 processes" in text
    assert len(re.findall(r"^epoch +1/30", text, re.M)) == 1  # it was not begun anew
    one, two = (read_checkpoint(run / "last.ckpt")["state_dict"] for run in (whole, lost))
    assert same(one, two)
    assert Results.read(lost / "results.json").epochs == 30


def test_a_time_limit_ends_a_run_with_143_and_says_how_it_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    job = submit(tmp_path / "run", "--epochs=1000")
    until((tmp_path / "run" / "last.ckpt").exists, 600)
    said("scancel", "--signal=TERM", job)  # as --signal=TERM@120 does
    until(lambda: state(job) == "FAILED")
    text = (tmp_path / "log").read_text()
    assert f"estl fit: terminated; go on with estl fit --resume {tmp_path / 'run'}" in text
    assert "ExitCode=143:0" in said("scontrol", "show", "job", job)


def test_a_sweep_is_complete_although_time_was_up_and_a_node_was_lost(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder, told = tmp_path / "sweep", tmp_path / "told"
    words = [
        *("ablate", "--config=digits_guided", "--data.init_args.bridge=null", "--rungs=1"),
        *FIT[2:],
        *("--epochs=100", "--seeds=0,1", f"--output-dir={folder}", "--launcher=slurm"),
        "--per-run=gpus_per_node=0,cpus_per_task=1,timeout_min=30",
    ]
    runs = [folder / "1" / f"seed{seed}" for seed in (0, 1)]
    with told.open("w") as out:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "estl.commands", *words], stdout=out, stderr=out
        )
    try:
        until(lambda: all((run / "last.ckpt").exists() for run in runs), 600)
        said("scancel", "--signal=USR2", "--user=root")  # which submitit has asked for
        until(lambda: said("squeue", "-h", "-t", "RUNNING").strip() == "")
        assert not all((run / "results.json").exists() for run in runs)
        on_n2 = ("squeue", "-h", "-t", "RUNNING", "-w", "n2", "-o", "%A")
        until(lambda: said(*on_n2).strip() != "")
        time.sleep(5)
        assert said(*on_n2).strip() != ""
        cluster.lose("n2")
        until(lambda: said(*on_n2).strip() == "")  # SLURM has seen it
        cluster.node("n2")
        assert sweep.wait(900) == 0, told.read_text()
    finally:
        sweep.kill()
        sweep.wait()
    assert "Seeds 0, 1;" in (folder / "results.md").read_text()
    whole = tmp_path / "whole"
    fit = [sys.executable, "-m", "estl.commands", "fit", f"--config={folder}/1/recipe.yaml"]
    subprocess.run([*fit, "--seed=0", f"--output-dir={whole}"], check=True, capture_output=True)
    one, two = (read_checkpoint(run / "last.ckpt")["state_dict"] for run in (whole, runs[0]))
    assert same(one, two)
