"""When a loader of batches starts, and that its processes end with it."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader


def end_alone(_: int) -> None:
    """End a process that loads if the one that has started it is gone; a `worker_init_fn`.

    PyTorch's own watch takes whoever is the parent when it begins for the one to follow: where that
    was killed while the process started, the process would wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


class Loader(DataLoader[Any]):
    """Starts when its first batch is asked for, and not before.

    A trainer calls `iter` before it has restored its epoch: workers would then load the first
    batches of another one. Give it a generator too: it draws a number when its workers start, which
    from the global one would shift the augmentation of the epoch in which a run is resumed.

    Attributes:
        begin: called at the start of a pass.
    """

    begin: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches."""
        if self.begin is not None:
            self.begin()
        yield from super().__iter__()
