"""The most memory that work holds, as PyTorch's profiler sees its allocator."""

from collections.abc import Callable
from itertools import accumulate

import torch


def most_held(work: Callable[[], object]) -> int:
    """Bytes at the peak, over what was there before."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    # `profiler.events()` has only what no operation took or gave back.
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(accumulate(e.nbytes() for e in events))
