"""When a loader of batches starts."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader


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
