"""Files that are whole or not there at all."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def unstopped() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end of the block.

    An exception from their handlers within `torch.save` sometimes aborts the process: its C++
    writer would complete the file when it is closed.
    """
    if threading.current_thread() is not threading.main_thread():  # which is where they are heard
        yield
        return
    heard: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # else a handler in C, which raises nothing
                before[number] = signal.signal(number, lambda number, _: heard.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in heard:
            signal.raise_signal(late)


@contextmanager
def aside(path: Path) -> Iterator[IO[bytes]]:
    """A file that is written beside `path` and takes its place when it is complete.

    Ctrl-C and SIGTERM wait until then.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with unstopped():
            with new.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if (refusal := _refusal(error)) is not None:
            reason = os.strerror(refusal.errno or 0)
            raise OSError(f"{path} cannot be written ({reason}): make room there") from error
        raise


def _refusal(error: BaseException | None) -> OSError | None:
    """The system's error behind `error`, if there is one: torch.save raises an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
