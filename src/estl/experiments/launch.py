"""Where the jobs of a sweep run: here, on the machines of a Ray cluster, or as SLURM jobs.

A launcher takes jobs, runs each in a process of its own, and yields each that has ended with
what went wrong. On a cluster all machines need the same Python environment and a file system with
the folders of the jobs and of the data, under the same paths.
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from estl.experiments.jobs import Ended, Job, complete, local
from estl.training.resume import epochs

RETRIES = 10
"""How often a job is restarted, or resumed, after its machine was lost."""

EVERY = 60.0
"""Seconds between two lines that say how far the jobs are."""


def launch(
    launcher: str, jobs: Sequence[Job], folder: Path, at_once: int = 0, per_run: str = ""
) -> Iterator[Job]:
    """Run jobs; yield each one when it has ended.

    Args:
        launcher: local, ray or slurm.
        jobs: those that are not done yet.
        folder: the sweep's.
        at_once: how many at a time; 0 is one here, and on a cluster as many as there is room for.
        per_run: resources that each asks of the cluster, such as `num_gpus=1,num_cpus=4`.

    Raises:
        ValueError: a job failed (the text names its log), the launcher's package is missing, or no
            cluster can be reached.
    """
    if per_run and launcher == "local":
        raise ValueError(f"--per-run {per_run} is for a cluster: give --launcher ray or slurm too")
    options = parse_options(per_run)
    if launcher == "ray":
        ended = ray(jobs, at_once, options)
    elif launcher == "slurm":
        ended = slurm(jobs, folder, at_once, options)
    else:
        ended = local(jobs, at_once or 1)
    with closing(ended):
        for job, problem in ended:
            if problem:
                raise ValueError(problem)
            yield job


def parse_options(text: str) -> dict[str, Any]:
    """The options in `name=value,...`; numbers become numbers.

    Raises:
        ValueError: a part without a name or without a value.

    >>> parse_options("num_gpus=0.5,slurm_partition=gpu,timeout_min=720")
    {'num_gpus': 0.5, 'slurm_partition': 'gpu', 'timeout_min': 720}
    """
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if not name or not value:
            raise ValueError(f"--per-run has {part!r}: write name=value, with commas between them")
        options[name] = value
        for kind in (float, int):  # the last that fits
            with suppress(ValueError):
                options[name] = kind(value)
    return options


def ray(jobs: Sequence[Job], at_once: int, per_run: Mapping[str, Any]) -> Ended:
    """Jobs as tasks of the Ray cluster that RAY_ADDRESS names, or that this machine is part of.

    Each has one GPU, if the cluster has any when the jobs begin, and one CPU; `per_run` is given to
    `ray.remote` (num_cpus, num_gpus, memory, accelerator_type, ...). Where a node or its process is
    lost, the job goes on elsewhere. The jobs end with this process.

    Raises:
        ValueError: no Ray, no cluster, or an option that Ray does not know.
    """
    ray = _package("ray")
    if not jobs:
        return
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(
            f"--launcher ray finds no cluster ({str(error)[:100]}): start one with ray start "
            "--head, or say where it is in RAY_ADDRESS"
        ) from None
    signal.signal(signal.SIGTERM, on_term)  # Ray sets its own
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES} | dict(per_run)
        try:
            task = ray.remote(**options)(complete)
        except (ValueError, TypeError) as error:
            raise ValueError(f"--per-run is refused by Ray: {error}") from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
        if not any(all(node.get(name, 0) >= n for name, n in asked.items()) for node in nodes):
            print(f"no node of the cluster has {asked}: runs wait until one joins", flush=True)
        to_do = list(jobs)
        under_way: dict[Any, Job] = {}
        shown = time.monotonic()
        while to_do or under_way:
            while to_do and (not at_once or len(under_way) < at_once):
                job = to_do.pop(0)
                under_way[task.remote(job)] = job
            ended, _ = ray.wait(list(under_way), num_returns=len(under_way), timeout=0)
            for reference in ended:
                job = under_way.pop(reference)
                try:
                    yield job, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield job, f"{job.name} was lost: {str(error).strip().splitlines()[-1]}"
            if time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                print(progress([*under_way.values(), *to_do]), flush=True)
            time.sleep(0.5)  # not in Ray, which makes a KeyboardInterrupt of every signal
    finally:
        ray.shutdown()


class Work:
    """A job as submitit wants it: a call, and what to call when its time has run out."""

    def __call__(self, job: Job) -> str:
        """What went wrong, "" if nothing did."""
        return complete(job)

    def checkpoint(self, job: Job) -> Any:
        """The same call: a run folder is resumed."""
        return import_module("submitit.helpers").DelayedSubmission(self, job)


def slurm(jobs: Sequence[Job], folder: Path, at_once: int, per_run: Mapping[str, Any]) -> Ended:
    """Jobs as a SLURM array, through submitit, which keeps its files in `folder/slurm`.

    Each has a GPU and a day; `per_run` is given to submitit's `update_parameters` (timeout_min,
    cpus_per_task, gpus_per_node, mem_gb, slurm_partition, slurm_account, ...). One whose time is up
    is queued again, and goes on. All are canceled with this process.

    Raises:
        ValueError: no submitit, no SLURM here, or an option that neither knows.
    """
    submitit = _package("submitit", "slurm")
    if not jobs:
        return
    if shutil.which("sbatch") is None:
        raise ValueError("--launcher slurm finds no sbatch: run this where jobs are submitted")
    logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns at each look without sacct
    options = {"name": "estl", "timeout_min": 1440, "cpus_per_task": 4, "gpus_per_node": 1}
    executor = submitit.AutoExecutor(
        folder=folder / "slurm", cluster="slurm", slurm_max_num_timeout=RETRIES
    )
    submitted: dict[Any, Job] = {}
    try:
        executor.update_parameters(
            slurm_array_parallelism=at_once or len(jobs), **(options | dict(per_run))
        )
        submitted |= zip(executor.map_array(Work(), jobs), jobs, strict=True)
    except (NameError, AssertionError, submitit.core.utils.FailedJobError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"--launcher slurm with --per-run cannot submit: {said}") from None
    try:
        shown = time.monotonic()
        while submitted:
            for handle in [handle for handle in submitted if handle.done()]:
                job = submitted.pop(handle)
                try:
                    yield job, handle.result()
                except submitit.core.utils.UncompletedJobError as error:
                    yield job, f"{job.name} was lost: {str(error).strip().splitlines()[-1]}"
            if time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                print(progress(list(submitted.values())), flush=True)
            time.sleep(1.0)
    finally:
        for handle in submitted:
            handle.cancel(check=False)


def progress(jobs: Sequence[Job]) -> str:
    """A line about jobs that have not ended, by what their folders hold.

    >>> progress([Job("plain, seed 0", Path("nowhere"), ("fit",), ".")] * 2)
    'plain, seed 0: 0 epochs; plain, seed 0: 0 epochs'
    """
    return "; ".join(f"{job.name}: {epochs(job.folder)} epochs" for job in jobs)


def _package(name: str, group: str = "") -> ModuleType:
    """An optional package.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        group = group or name
        raise ValueError(f"--launcher {group} needs {name}: pip install 'estl[{group}]'") from None
