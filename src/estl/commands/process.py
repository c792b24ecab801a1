"""What a process of `estl` asks of the libraries below it: to keep memory, and not to spin."""

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


def wait_without_spinning_long() -> None:
    """Let the threads of GNU OpenMP sleep after 10,000 turns of waiting, instead of 300,000.

    If another process wants the same cores, spinning threads keep each other from working: beside
    ten other processes, a training step on two threads took 0.22 to 2.4 s without this and 0.15 to
    0.19 s with it; on an idle machine, 39 ms either way (docs/log.md). An environment variable of
    the user that says how to wait leaves everything as it is. Call this before importing PyTorch.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"
