"""How the C library hands out memory in a process of `estl`."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system.

    It maps every block of more than 32 MiB anew, and the kernel fills each of its pages with zeros
    when it is first touched: a tenth to a third of the time of a training step on two cores. What
    is kept is up to a quarter more at the peak (docs/log.md). An environment variable MALLOC_* of
    the user or another C library leaves everything as it is.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
