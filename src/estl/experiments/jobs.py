"""Jobs of a sweep, each a command of `estl` in a process of its own, and how they run here."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch

from estl.training.processes import alone
from estl.training.resume import taken


class Job(NamedTuple):
    """One command of `estl`, for a process of its own.

    Args:
        name: for the screen.
        folder: folder of its log; for `fit` the run folder, in which a run is continued.
        args: arguments of the command line, beginning with the command.
        place: folder that paths in it are relative to.
    """

    name: str
    folder: Path
    args: tuple[str, ...]
    place: str


Ended = Generator[tuple[Job, str], None, None]
"""Each job that has ended, and what went wrong with it ("" if nothing did)."""


def local(jobs: Sequence[Job], at_once: int) -> Ended:
    """Jobs on this machine: each has its share of the cores, and its GPU where there are several.

    The environment variable OMP_NUM_THREADS takes precedence. The jobs end with this process.
    """
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    gpu_of = SimpleQueue[dict[str, str]]()
    for gpu in gpus(at_once):
        gpu_of.put(gpu)
    running: list[subprocess.Popen[bytes]] = []

    def work(job: Job) -> tuple[Job, str]:
        gpu = gpu_of.get()
        environment = {"OMP_NUM_THREADS": threads} | alone() | gpu
        problem = complete(job, environment, shown=at_once == 1, started=running)
        gpu_of.put(gpu)
        return job, problem

    with ThreadPoolExecutor(at_once) as pool:
        tasks = [pool.submit(work, job) for job in jobs]
        try:
            yield from (task.result() for task in as_completed(tasks))
        except BaseException:  # where a job failed, too: those beside it are gone on with later
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def complete(
    job: Job,
    environment: Mapping[str, str] | None = None,
    *,
    shown: bool = False,
    started: list[subprocess.Popen[bytes]] | None = None,
) -> str:
    """Run or resume a job in a process of its own; return what went wrong, "" if nothing.

    Args:
        job: the job; nothing is done if its folder has results.
        environment: of the process; None takes this one's, without what a launcher has set.
        shown: whether its output is on the screen, and only its errors in the log.
        started: holds the process while it runs.
    """
    running = [] if started is None else started
    job.folder.mkdir(parents=True, exist_ok=True)
    with _only(job.folder) as lock:
        if (job.folder / "results.json").exists():
            return ""
        again = taken(job.folder)
        print(f"{job.name}: {'going on' if again else 'begins'}", flush=True)
        command = [sys.executable, "-m", "estl.commands", *job.args]
        own = dict(alone() if environment is None else environment)
        # A run folder that holds a run is gone on with.
        own |= {"ESTL_PARENT": str(os.getpid()), "ESTL_RESTART_COUNT": str(int(again))}
        log = job.folder / "log.txt"
        with log.open("w") as file:
            out = None if shown else file
            with _deaf():
                popen = subprocess.Popen(
                    command, stdout=out, stderr=file, env=own, cwd=job.place, pass_fds=(lock,)
                )
            with popen as process:
                running.append(process)
                try:
                    status = process.wait()
                except BaseException:  # as a scheduler stops it
                    process.terminate()
                    raise
                finally:
                    running.remove(process)
        last = log.read_text().strip().splitlines()[-1:]
        return f"{job.name} failed ({log}): {last}" if status else ""


@contextmanager
def _only(folder: Path) -> Iterator[int]:
    """Wait until nobody else works on a folder; gives the lock, held as long as it is open.

    A machine that is lost, or believed to be, may have left its process running. That process
    inherits the lock, so that its replacement begins only when it has ended.
    """
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


@contextmanager
def _deaf() -> Iterator[None]:
    """Let processes that are started within ignore SIGUSR2.

    SLURM sends it to all processes of a job, so that submitit requeues the job at the end of its
    time, and it would kill the run before that.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def gpus(jobs: int) -> list[dict[str, str]]:
    """Environments for `jobs` runs at a time: each has one GPU, if there are several.

    A run alone has them all.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    if jobs == 1 or len(names) < 2:
        return [{}] * jobs
    return [{"CUDA_VISIBLE_DEVICES": names[i % len(names)]} for i in range(jobs)]
