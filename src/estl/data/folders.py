"""Folders that are written into: by one process at a time, and which of them is full."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_one(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, made if it is missing, within the block: one process at a time.

    The lock is the system's: it ends with this process, however that ends, and processes forked
    from it, which may outlive it for seconds, do not hold it. On a file system without locks, the
    block runs without one.

    Args:
        folder: the folder; the lock is on `.lock` in it.
        wait: whether to wait for the other process to end.

    Raises:
        ValueError: another process is at work, and is not to be waited for.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if isinstance(error, BlockingIOError | PermissionError):  # taken; others: no locks here
                raise ValueError(
                    f"{folder}: another process writes there: wait for its end, or choose another "
                    "folder"
                ) from None
        yield
    finally:
        os.close(lock)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path`, the file being written, to an error of a full disk that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
