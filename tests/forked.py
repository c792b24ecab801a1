"""Commands of `estl` in processes that are forked from one which has imported everything.

Importing PyTorch and Lightning takes ten times as long as most runs of the tests. Python's fork
server does that once; a run is a process of its own all the same, which can be killed.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch.multiprocessing

from estl.commands import main

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        *("__main__", "sklearn.datasets", "torch.utils.tensorboard"),
        *("estl.commands.fit", "estl.report.html", "estl.training.run"),
    ]
)


def start(
    words: Sequence[str],
    out: Path | str = os.devnull,
    err: Path | str = os.devnull,
    command: Callable[[Sequence[str]], int] = main,
    environment: Mapping[str, str] = os.environ,
) -> ForkServerProcess:
    """`estl WORDS` in a new process, whose `exitcode` is None while it runs.

    Args:
        words: of the command line.
        out: file for standard output.
        err: file for standard error, which may be the same.
        command: takes the words, and returns the exit status.
        environment: of the process.
    """
    args = command, list(words), dict(environment), str(out), str(err)
    process = FORKED.Process(target=_run, args=args)
    process.start()
    return process


def _run(
    command: Callable[[Sequence[str]], int],
    words: list[str],
    environment: dict[str, str],
    *said: str,
) -> None:
    multiprocessing.set_start_method(None, force=True)  # again as anywhere
    sys.argv = ["estl", *words]
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(said, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    # What a shell runs in the background ignores Ctrl-C, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(command(words))


def start_processes(work: Callable[..., None], args: tuple[object, ...], count: int) -> None:
    """`work(rank, *args)` in so many processes at once, until all have ended well."""
    torch.multiprocessing.start_processes(
        work, args, nprocs=count, start_method=FORKED.get_start_method()
    )
