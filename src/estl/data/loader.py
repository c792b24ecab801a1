"""Which samples a process gets; when a loader starts, for which epoch, and that its processes end
with it.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler


def end_alone(_: int) -> None:
    """End a loader worker if the process that started it is gone; a `worker_init_fn`.

    PyTorch's own watchdog follows whichever process is the parent when the watchdog begins: if the
    real one was killed while the worker started, the worker would wait for work forever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


def batch_share(batch_size: int, world_size: int) -> int:
    """Samples of a batch that each of `world_size` processes has."""
    if batch_size % world_size:
        raise ValueError(
            f"batch_size={batch_size} is shared by {world_size} processes: "
            f"choose a multiple of {world_size}"
        )
    return batch_size // world_size


class Shares(DistributedSampler[Any]):
    """A process's part of a split, so that all processes' k-th batches are the k-th of one process.

    Process r of R has every R-th sample from the r-th on, in PyTorch's order for (seed, epoch).
    PyTorch's own class (which Lightning wants to see) fills up uneven shares with samples of
    others. Here none is read twice: the shares of a last batch that does not divide evenly differ
    by one. But all processes need equally many batches: in validation, those that get none of the
    last batch read one of the first samples again.

    Args:
        size: of the split.
        batch_size: samples per batch, over all processes.
        R: number of processes.
        rank: number of this one.
        shuffle: for training: in an order drawn from (`seed`, epoch), and without a last batch of
            less than two samples for each process (the statistics of one are meaningless), or
            than one where a whole batch has no more than two.
        seed: of the order.

    Raises:
        ValueError: fewer training samples than processes.

    >>> [list(Shares(11, batch_size=8, R=2, rank=rank)) for rank in (0, 1)]
    [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]]
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        R: int = 1,
        rank: int = 0,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(range(size), R, rank, shuffle, seed)  # type: ignore[arg-type]
        if shuffle and 0 < size < R:
            raise ValueError(f"{size} training samples are too few for {R} processes: start fewer")
        last = size % batch_size
        least = R if 1 < R >= batch_size // 2 else 2 * R
        if shuffle:
            self.used = size - last if size > batch_size and last < least else size
        else:
            self.used = size + (R - last if 0 < last < R else 0)
        self.size = size

    def __iter__(self) -> Iterator[int]:
        order = [i % self.size for i in range(self.used)]
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        return iter(order[self.rank : self.used : self.num_replicas])

    def __len__(self) -> int:
        return len(range(self.rank, self.used, self.num_replicas))


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


def at_epoch(loader: DataLoader[Any], epoch: int) -> DataLoader[Any]:
    """`loader`, whose next pass is that of `epoch`, whatever a trainer says."""
    if isinstance(loader, Loader):
        loader.begin = None
    for part in (loader.sampler, loader.dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
    return loader
