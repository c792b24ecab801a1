"""Shards as a data set that is streamed: every sample once per epoch, whoever reads.

`estl.data.shards` writes them.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import webdataset as wds
from lightning import Trainer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from estl.data.frames import Standard, normalize
from estl.data.loader import Loader, batch_share
from estl.data.module import EventData
from estl.data.samples import Sample
from estl.data.shards import Parts, read_index, read_shard, unpack_sample


class Stream(IterableDataset[Sample]):
    """One process's part of a split, in a new order each epoch if it is shuffled.

    The shards, in an order drawn from (seed, epoch), are one line of n samples. Of R processes,
    process r takes the r-th of R pieces of n // R (training: up to R - 1 leftover samples are
    skipped this epoch) or of ceil(n / R) (other splits: the last pieces overlap). So every process
    has equally many batches. Loading workers cut the piece further, at whole batches,
    and each mixes its own in a buffer: together they give each sample once.

    The first pass is the trainer's epoch, or 0; each pass is the next one.
    """

    def __init__(
        self, data: "Shards", split: str, *, shuffle: bool = False, rank: int = 0, R: int = 1
    ) -> None:
        self.root, self.shards = data.root, data.shards[split]
        self.number = {name: i for i, name in enumerate(data.classes)}
        self.T, self.batch_size, self.scaling = (
            data.T,
            batch_share(data.batch_size, R),
            data.scaling(shuffle),
        )
        self.shuffle, self.buffer, self.seed, self.rank = shuffle, data.buffer, data.seed, rank
        self.images = data.training_images or not shuffle
        self.epoch = 0
        n = data.sizes[split]
        if shuffle and 0 < n < R:
            raise ValueError(f"{n} training samples are too few for {R} processes: start fewer")
        share = n // R if shuffle else -(-n // R)
        self.start = max(0, min(rank * share, n - share))
        # A batch of one sample has no statistics.
        self.size = share - (shuffle and share > 1 and share % self.batch_size == 1)

    def __len__(self) -> int:
        return self.size

    def parts(self) -> Iterator[Parts]:
        """The samples of this worker, undecoded."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        batches = -(-self.size // self.batch_size)
        first, last = (
            self.start + min(batches * w // workers * self.batch_size, self.size)
            for w in (worker, worker + 1)
        )
        if not self.shuffle:
            return self._between(self.shards, first, last)
        name, shards = f"{self.seed}/{self.epoch}", list(self.shards)
        random.Random(name).shuffle(shards)
        rng = random.Random(f"{name}/{self.rank}/{worker}")
        mix = wds.shuffle(self.buffer, initial=self.buffer, rng=rng)
        return iter(mix(self._between(shards, first, last)))

    def _between(
        self, shards: Sequence[Mapping[str, Any]], first: int, last: int
    ) -> Iterator[Parts]:
        """Samples first to last - 1 of all; shards outside of this are not opened."""
        edges = accumulate((shard["samples"] for shard in shards), initial=0)
        for shard, (start, stop) in zip(shards, pairwise(edges), strict=True):
            if start < last and stop > first:
                for i, parts in enumerate(read_shard(self.root, shard), start):
                    if first <= i < last:
                        yield parts

    def set_epoch(self, epoch: int) -> None:
        """Take the next pass for this epoch."""
        self.epoch = epoch

    def follow(self, trainer: Trainer) -> None:
        """Take the next pass for the trainer's epoch."""
        self.set_epoch(trainer.current_epoch)

    def __iter__(self) -> Iterator[Sample]:
        samples = self.parts()
        self.epoch += 1  # each worker counts, and is kept from epoch to epoch
        for parts in samples:
            item, frames, image = unpack_sample(parts, self.T, images=self.images)
            yield normalize(frames, self.scaling), self.number[item.label], image


class Shards(EventData):
    """A data set that `estl data shard` (`write_shards`) has packed, streamed.

    Classes, splits, T and fingerprint are those of the set it was made from. A shard is read whole
    and its checksum verified before any sample of it is used. The order of training batches
    depends on `seed`, the epoch and the numbers of processes and workers alone, so a run that was
    killed and resumed sees the batches it would have seen; how processes share the samples is said
    in `Stream`. There are no single items: a command that needs them takes the set itself.

    Args:
        root: folder with the shards and their index, or its address: http://, https://, s3://.
        buffer: training samples that a worker mixes at a time; they are kept undecoded.
        loading: arguments of `EventData`: batch_size, seed, num_workers, augment, normalize,
            allow_leaks.

    Raises:
        FileNotFoundError: no index.
        ValueError: an index of another format, or leaks that were allowed when it was written and
            are not here; on loading, a broken shard.
    """

    def __init__(self, root: str | Path, *, buffer: int = 1000, **loading: Any) -> None:
        if buffer < 1:
            raise ValueError(f"buffer={buffer}: at least 1")
        root = str(root).rstrip("/")
        index = read_index(root)
        self.shards: dict[str, list[dict[str, Any]]] = index["splits"]
        super().__init__(
            index["classes"],
            {split: sum(s["samples"] for s in shards) for split, shards in self.shards.items()},
            T=index["T"],
            frame_size=(index["frame_size"][0], index["frame_size"][1]),
            in_channels=index["in_channels"],
            **loading,
        )
        if index["allow_leaks"] and not self.allow_leaks:
            raise ValueError(
                f"{root} was written with allow_leaks: the same thing may be in two splits; write "
                "it without, or train with --data.init_args.allow_leaks=true"
            )
        self.root, self.buffer = root, buffer
        if index["standard"]:  # the set's pictures are standardized, whatever `normalize` says
            self.normalize = Standard(**{k: tuple(v) for k, v in index["standard"].items()})
        self.fingerprint = index["fingerprint"]

    def loader(
        self, split: str, *, shuffle: bool = False, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Sample]:
        """Batches of a split, see `EventData.loader`."""
        stream = Stream(self, split, shuffle=shuffle, rank=rank, R=world_size)
        loader = Loader(stream, **self._loading(world_size))
        if self.trainer is not None:
            loader.begin = partial(stream.follow, self.trainer)
        return loader
