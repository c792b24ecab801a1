"""The command `estl`: each command is a function, and its options are the function's signature.

Only what parsing needs is imported here. A command imports what it needs when it runs: PyTorch and
Lightning take seconds, and `--help` does not wait for them.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cyclopts import App, CycloptsError

from estl.commands.flags import DEFAULTS
from estl.commands.process import keep_freed_memory, wait_without_spinning_long

app = App(
    name="estl",
    help="Spiking neural networks for vision, trained with better supervision.\n\n"
    "estl COMMAND --help lists the options of a command.",
    help_format="plaintext",
    version_flags=[],
    default_parameter=DEFAULTS,
    suppress_keyboard_interrupt=False,
)
app.command("estl.commands.fit:fit", help="Train a student.")
app.command("estl.commands.test:test", help="Measure the accuracy of a checkpoint.")
app.command("estl.commands.predict:predict", help="Classify event files.")
app.command(
    "estl.commands.calibrate:calibrate", help="Choose how sure a student has to be to answer early."
)
app.command(
    "estl.commands.export:export", help="Export a student to other frameworks and runtimes."
)
app.command("estl.commands.report:report", help="Write what runs learned as one HTML file.")
app.command("estl.commands.watch:watch", help="Update the report of a run while it trains.")
app.command("estl.commands.data:app", name="data", help="Fetch, check, show or pack a data set.")
app.command("estl.commands.recipes:recipes", help="List the recipes that come with ESTL.")
app.command("estl.commands.demo:demo", help="Train a teacher and two students on digits.")
app.command("estl.commands.doctor:doctor", help="Show versions, devices, and what is missing.")
app.command(
    "estl.commands.train_teacher:train_teacher", help="Train a small CLIP vision tower as teacher."
)
app.command(
    "estl.commands.ablate:ablate", help="Measure what each part of the guided distillation adds."
)
app.command("estl.commands.compare:compare", help="Compare plain, TET and TSE side by side.")
app.command("estl.commands.bench:bench", help="Measure time and memory beside other frameworks.")
app.command("estl.commands.tune:tune", help="Search the thresholds of TSE on validation.")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it: whatever cleans up after Ctrl-C also does so after it."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `estl` with the arguments of a command line; returns the exit status.

    A user's mistake ends with one line on standard error and status 2. As in a shell, Ctrl-C gives
    130, SIGTERM 143, and an output whose reader has ended, such as `head`, 141.
    """
    args = list(sys.argv[1:] if args is None else args)
    keep_freed_memory()
    wait_without_spinning_long()
    command = " ".join(["estl", *args[:1]]) if args and not args[0].startswith("-") else "estl"
    try:
        with _stoppable():
            status = app(args, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (CycloptsError, ValueError, OSError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        _after_the_first()
        print(f"{command}: {said(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        what = "terminated" if isinstance(stop, Terminated) else "interrupted"
        go_on = str(stop) or "the same command"
        print(f"{command}: {what}; go on with {go_on}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


def _nobody_reads() -> bool:
    """Whether standard output is a pipe without a reader; then nothing more is written to it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def said(error: Exception) -> str:
    """The text of an error on one line; for one of the system's own, with what can be done."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}: give another path, or make this one usable"
    return " ".join(str(error).split())


def _after_the_first() -> None:
    """Let the first of several processes say what is wrong with all of them.

    A launcher ends the others as soon as the first has ended, whose imports may be seconds slower.
    """
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    if next((int(os.environ[name]) for name in names if name in os.environ), 0) > 0:
        time.sleep(30)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, and as soon as the sweep that has started this run is gone."""

    def terminate(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if (parent := os.environ.pop("ESTL_PARENT", None)) is not None:
        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow(parent: int) -> None:
    """End this process when its parent has ended, killed or not."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
