"""What all data sets are to the trainer: splits of items, and batches of them.

A set is a subclass of `EventData` whose `__init__` lists its items, splits them, and names the
function that loads one (see `nmnist.py`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from estl.data.images import read_rgb
from estl.data.pairs import Item, file_content, fingerprint
from estl.types import Batch

Load = Callable[[Item], tuple[Tensor, Tensor | None]]
"""An item to its event frames (T,C,H,W) and its image (3,h,w), None in a set without images."""

Sample = tuple[Tensor, int, Tensor | None]


def collate(samples: Sequence[Sample]) -> Batch:
    """(events, label, image) of each sample, stacked."""
    events, labels, images = zip(*samples, strict=True)
    image = None if images[0] is None else torch.stack(images)
    return Batch(torch.stack(events), torch.tensor(labels), image)


class Split(Dataset[Sample]):
    """One split: an item is loaded when it is asked for."""

    def __init__(self, items: Sequence[Item], classes: Sequence[str], load: Load) -> None:
        self.items = list(items)
        self.number = {name: i for i, name in enumerate(classes)}
        self.load = load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        events, image = self.load(item)
        return events, self.number[item.label], image


class EventData(L.LightningDataModule):
    """Base of the data sets.

    The order of training batches depends on `seed` and the epoch alone, so a run that was killed
    and resumed sees the batches it would have seen. A last training batch of a single sample is
    left out: statistics over a batch have no meaning there. With several processes each gets its
    share (`DistributedSampler`; where a split does not divide evenly, some samples count twice).

    Args:
        splits: the items of "train", "val" and "test".
        load: loads one item; it must pickle for `num_workers` > 0 (a `functools.partial` of a plain
            function does).
        T: number of frames that `load` returns.
        image_size: (H,W) of these frames.
        in_channels: C of these frames.
        batch_size: samples a batch and process.
        seed: of the order of the training batches.
        num_workers: processes that load.
        content: what the fingerprint knows of an item; by default its files.

    Attributes:
        classes: the classes' names; a label is an index into them.
        sizes: number of items of each split.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Item]],
        load: Load,
        *,
        T: int,
        image_size: tuple[int, int],
        in_channels: int = 2,
        batch_size: int = 50,
        seed: int = 0,
        num_workers: int = 0,
        content: Callable[[Item], Iterable[bytes]] = file_content,
    ) -> None:
        super().__init__()
        self.splits = splits
        self.load = load
        self.content = content
        self.classes = tuple(sorted({item.label for items in splits.values() for item in items}))
        self.sizes = {name: len(items) for name, items in splits.items()}
        self.datasets = {name: Split(items, self.classes, load) for name, items in splits.items()}
        self.T = T
        self.image_size = image_size
        self.in_channels = in_channels
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers

    @cached_property
    def fingerprint(self) -> str:
        """Stands for the items, their content and their splits (`pairs.fingerprint`)."""
        return fingerprint(self.splits, self.content)

    @staticmethod
    def read(path: Path, **options: Any) -> Tensor:
        """Frames (T,C,H,W) of one file, as this set makes them; `options` are those of `__init__`.

        Raises:
            ValueError: here, and in sets that have no event files.
        """
        raise ValueError(f"{path}: a student of this data set has no event files to predict")

    def read_image(self, path: Path) -> Tensor:
        """Image (3,h,w) of one file, as this set makes it."""
        return read_rgb(path)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled training batches."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Validation batches in the order of the items."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Test batches in the order of the items."""
        return self._loader("test")

    def _loader(self, name: str, shuffle: bool = False) -> DataLoader[Sample]:
        dataset = self.datasets[name]
        sampler: DistributedSampler[Sample] = DistributedSampler(
            dataset,
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            shuffle=shuffle,
            seed=self.seed,
        )
        single = len(sampler) > 1 and len(sampler) % self.batch_size == 1
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=shuffle and single,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
