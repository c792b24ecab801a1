"""What a data set is to the trainer: facts, and batches; and what a set of items adds to that.

The sets are subclasses of `estl.data.splits.SplitData`, whose `__init__` list their items and name
the function that loads one (see `sets/nmnist.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from estl.data.augment import Augment
from estl.data.bridge import Bridge, Pictures
from estl.data.cache import Content, Load, open_cache
from estl.data.draws import drawn, epoch_seed
from estl.data.formats.images import read_rgb
from estl.data.frames import Normalization, check_channels, normalize
from estl.data.items import Item, file_content, fingerprint
from estl.data.loader import Loader, Shares, at_epoch, batch_share, end_alone
from estl.data.samples import Memory, Sample, Split, collate
from estl.types import Batch


class EventData(L.LightningDataModule):
    """What a trainer needs from a data set; a subclass's `loader` makes the batches.

    The order of training batches is a function of `seed` and the epoch alone, so a run that is
    killed and resumed sees the same batches as an unbroken one.

    Args:
        classes: the classes' names; a label is an index into them.
        sizes: number of samples of "train", "val" and "test".
        T: number of frames.
        frame_size: (H,W) of the frames.
        in_channels: C of the frames.
        batch_size: samples per batch, over all processes: each has its equal share.
        seed: seed of the order of the training batches.
        num_workers: processes that load.
        augment: random changes of the training batches, on the device; None for none.
        normalize: how frames are scaled (`estl.data.frames.normalize`): when they are loaded, or,
            of training batches that are augmented, after that.
        allow_leaks: train although the same thing is in two splits (`estl.data.check`).

    Attributes:
        fingerprint: stands for the items, their content and their splits.
        no_training: what is missing if the folder holds only the test split.
        training_images: whether training batches have images; a supervision has to look at them.
    """

    fingerprint: str
    no_training: str | None = None
    training_images: bool = True

    def __init__(
        self,
        classes: Sequence[str],
        sizes: Mapping[str, int],
        *,
        T: int,
        frame_size: tuple[int, int],
        in_channels: int = 2,
        batch_size: int = 50,
        seed: int = 0,
        num_workers: int = 0,
        augment: Augment | None = None,
        normalize: Normalization = "none",
        allow_leaks: bool = False,
    ) -> None:
        super().__init__()
        check_channels(normalize, in_channels)
        self.classes, self.sizes = tuple(classes), dict(sizes)
        self.T, self.frame_size, self.in_channels = T, frame_size, in_channels
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.augment, self.normalize = augment, normalize
        self.allow_leaks = allow_leaks

    def loader(
        self, split: str, *, shuffle: bool = False, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Sample]:
        """Batches of a split as they are loaded; by default all of it, in the order of its items.

        In your own loop, train on `batches`: a loader's are not augmented, a trainer does that.

        Args:
            split: "train", "val" or "test".
            shuffle: for training: in an order drawn from (`seed`, epoch), without a last batch of
                less than two samples for each process (the statistics of one are meaningless), as
                counts if they are augmented.
            rank: number of this process.
            world_size: number of processes that share the split.

        Raises:
            ValueError: a batch that the processes cannot share equally, or fewer training samples
                than they are.
        """
        raise NotImplementedError

    def require(self, split: str) -> None:
        """Raise ValueError, saying why, if a split is empty."""
        if not self.sizes.get(split):
            why = self.no_training or f"{type(self).__name__} has no such items"
            raise ValueError(f"the {split} split is empty: {why} (see test_fraction, val_fraction)")

    def follow(self, classes: Sequence[str]) -> None:
        """Number the labels as in `classes`, those that a checkpoint was trained on.

        Raises:
            ValueError: a class of the data is not among them.
        """
        if unknown := sorted(set(self.classes) - set(classes)):
            raise ValueError(
                f"the data have a class {unknown[0]!r}, none of the {len(classes)} "
                f"of the checkpoint ({', '.join(classes[:3])}, ...): give other data"
            )
        self.classes = tuple(classes)

    def batches(
        self, epoch: int, *, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Training batches of an epoch as the steps of `estl fit` get them, for your own loop.

        They are shuffled and augmented by (`seed`, epoch), then normalized, with a bridge's images,
        on `device`; `rank` and `world_size` as for `loader`. The program's own random numbers are
        not affected, so that a step that draws some gets the same batches.

        >>> from estl import Digits
        >>> data = Digits(T=3, size=16, per_class=4, augment=Augment(flip=0.5), normalize="max")
        >>> {batch.events.max().item() for epoch in range(2) for batch in data.batches(epoch)}
        {1.0}
        """
        self.require("train")
        loader = self.loader("train", shuffle=True, rank=rank, world_size=world_size)
        seed = epoch_seed(self.seed, epoch, rank)
        return drawn(at_epoch(loader, epoch), self.for_training, seed, torch.device(device))

    def for_training(self, batch: Batch) -> Batch:
        """A training batch on its device as a step gets it: augmented, and normalized then."""
        if self.augment is None:
            return batch
        batch = self.augment(batch, len(self.classes))
        return replace(batch, events=normalize(batch.events, self.normalize))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lightning's hook: `for_training` of a training batch."""
        training = self.trainer is not None and self.trainer.training
        return self.for_training(batch) if training else batch

    def train_dataloader(self) -> DataLoader[Sample]:
        """What the trainer's process trains on."""
        return self.loader("train", shuffle=True, **self._place())

    def val_dataloader(self) -> DataLoader[Sample]:
        """What the trainer's process validates on."""
        return self.loader("val", **self._place())

    def test_dataloader(self) -> DataLoader[Sample]:
        """What the trainer's process tests on."""
        return self.loader("test", **self._place())

    def _place(self) -> dict[str, Any]:
        """This process among the trainer's."""
        t = self.trainer
        return {} if t is None else {"rank": t.global_rank, "world_size": t.world_size}

    def scaling(self, shuffle: bool) -> Normalization:
        """How frames are scaled when they are loaded: augmentation is of counts."""
        return "none" if shuffle and self.augment is not None else self.normalize

    def _loading(self, world_size: int) -> dict[str, Any]:
        """What all loaders are given."""
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        memory = {"collate_fn": collate, "pin_memory": torch.cuda.is_available()}
        own = {"generator": torch.Generator().manual_seed(self.seed), "worker_init_fn": end_alone}
        return {"batch_size": batch_share(self.batch_size, world_size)} | workers | memory | own


class ItemData(EventData):
    """A set of items, each of which can be loaded by itself.

    Several processes share a split by `estl.data.loader.Shares`: together they read what one does.

    Args:
        splits: the items of "train", "val" and "test".
        load: loads one item; it must pickle for `num_workers` > 0 (a `functools.partial` of a plain
            function does).
        num_workers: processes that load.
        cache: folder for decoded items (`estl.data.cache`), None for a `Memory` in training.
        skip_broken: leave out items that cannot be read, count them, and list them in the cache;
            otherwise the first one ends the run. It needs `cache`.
        content: what the fingerprint knows of an item; by default its files.
        bridge: further images of each training batch, without recordings.
        loading: arguments of `EventData`.

    Attributes:
        load: gives an item's frames and image, from the cache if there is one.
        decode: the same without the cache.
        unused: training items that `SplitData` left out.

    Raises:
        FileNotFoundError: files of the set, or the image of a recording, are missing.
        ValueError: `skip_broken` without `cache`; when an item is loaded, a broken file, named.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Item]],
        load: Load,
        *,
        num_workers: int = 0,
        cache: Path | str | None = None,
        skip_broken: bool = False,
        content: Content = file_content,
        bridge: Bridge | None = None,
        **loading: Any,
    ) -> None:
        self.decode = load
        if cache is not None:
            everything = [item for items in splits.values() for item in items]
            how: dict[str, Any] = {"num_workers": num_workers, "skip_broken": skip_broken}
            load = kept = open_cache(everything, load, Path(cache), content, **how)
            if kept.broken:
                splits = {name: [i for i in items if i in kept] for name, items in splits.items()}
                rank_zero_only(kept.tell_broken)()
        elif skip_broken:
            raise ValueError(
                "skip_broken=true needs a cache, where broken items are listed: "
                "add --data.init_args.cache=FOLDER"
            )
        self.splits, self.load, self.content = splits, load, content
        super().__init__(
            sorted({item.label for items in splits.values() for item in items}),
            {name: len(items) for name, items in splits.items()},
            num_workers=num_workers,
            **loading,
        )
        self.bridge, self.unused, self.memory = bridge, list[Item](), Memory()
        if bridge is not None:
            bridge.check(self.normalize)

    @cached_property
    def unpaired(self) -> list[Item]:
        """The items of the bridge that are no training pairs; none if it has the pairs' own."""
        return [] if self.bridge is None else self.bridge.items(self.splits["train"], self.unused)

    @cached_property
    def pictures(self) -> Pictures:
        """The bridge's images."""
        if self.unpaired:
            return Pictures(self.unpaired, self._image)
        return Pictures(self.splits["train"], lambda item: self.load(item)[1])

    def _image(self, item: Item) -> Tensor | None:
        """The image of an item of no split, which no cache has."""
        return self.decode(item)[1] if item.image is None else self.read_image(item.image)

    def for_training(self, batch: Batch) -> Batch:
        """A training batch augmented, normalized, and with the bridge's images."""
        batch = super().for_training(batch)
        if self.bridge is None:
            return batch
        return self.bridge.add(batch, self.pictures, len(self.classes))

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Stands for the items, their content and their splits (`estl.data.items`)."""
        return fingerprint(self.splits, self.content)

    def read_image(self, path: Path) -> Tensor:
        """Image (3,h,w) of one file, as this set makes it."""
        return read_rgb(path)

    def dataset(self, split: str, *, shuffle: bool = False) -> Split:
        """The samples of a split; `shuffle` as for `loader`."""
        args = self.splits[split], self.classes, self.load, self.scaling(shuffle)
        if not shuffle:
            return Split(*args)
        return Split(*args, images=self.training_images, memory=self.memory)

    def loader(
        self, split: str, *, shuffle: bool = False, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Sample]:
        """Batches of a split, see `EventData.loader`."""
        dataset = self.dataset(split, shuffle=shuffle)
        place = {"batch_size": self.batch_size, "R": world_size, "rank": rank, "seed": self.seed}
        sampler = Shares(len(dataset), shuffle=shuffle, **place)
        return Loader(dataset, sampler=sampler, **self._loading(world_size))


def with_items(data: EventData) -> ItemData:
    """`data`, or ValueError if it is no set of items but of shards."""
    if isinstance(data, ItemData):
        return data
    raise ValueError(f"{type(data).__name__} has no single items: give the set it was made from")
