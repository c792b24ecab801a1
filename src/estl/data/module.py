"""What all data sets are to the trainer: splits of items, and batches of them.

A set is a subclass of `EventData` whose `__init__` lists its items, splits them, and names the
function that loads one (see `nmnist.py`).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from estl.data.augment import Augment
from estl.data.cache import Cache, Content, Load, open_cache
from estl.data.formats.images import read_rgb
from estl.data.frames import Normalization
from estl.data.frames import normalize as normalize_frames
from estl.data.items import Item, file_content, fingerprint
from estl.types import Batch, direct_code, is_static

Sample = tuple[Tensor, int, Tensor | None]


def collate(samples: Sequence[Sample]) -> Batch:
    """(events, label, image) of each sample, stacked; of direct coding one step (`direct_code`)."""
    events, labels, images = zip(*samples, strict=True)
    if all(is_static(frames[None]) for frames in events):
        stacked = direct_code(torch.stack([frames[0] for frames in events]), len(events[0]))
    else:
        stacked = torch.stack(events)
    image = None if images[0] is None else torch.stack(images)
    return Batch(stacked, torch.tensor(labels), image)


def scaled(frames: Float[Tensor, "*B T C H W"], how: Normalization) -> Float[Tensor, "*B T C H W"]:
    """`estl.data.frames.normalize`, of directly coded frames for one step that stands for all."""
    if how == "none":
        return frames
    if frames.shape[-4] == 1 or frames.stride(-4) != 0:
        return normalize_frames(frames, how)
    return normalize_frames(frames.narrow(-4, 0, 1), how).expand(frames.shape)


class Split(Dataset[Sample]):
    """One split: an item is loaded, and its frames normalized, when it is asked for."""

    def __init__(
        self,
        items: Sequence[Item],
        classes: Sequence[str],
        load: Load,
        normalize: Normalization = "none",
    ) -> None:
        self.items = list(items)
        self.number = {name: i for i, name in enumerate(classes)}
        self.load = load
        self.normalize = normalize

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of a batch; `DataLoader` asks for them so."""
        items = [self.items[i] for i in indices]
        if isinstance(self.load, Cache):
            loaded = self.load.read(items)
        else:
            loaded = [self.load(item) for item in items]
        return [
            (scaled(frames, self.normalize), self.number[item.label], image)
            for item, (frames, image) in zip(items, loaded, strict=True)
        ]


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
        cache: folder where decoded items are kept (`estl.data.cache`), None to decode every time.
        skip_broken: leave out items that cannot be read, count them, and list them in the cache;
            without, the first one ends the run. It needs `cache`.
        augment: random changes of the training batches, on the device; None for none.
        normalize: how frames are scaled (`estl.data.frames.normalize`): when they are loaded, of
            training batches that are augmented after that.
        allow_leaks: train although the same thing is in two splits (`estl.data.check`).
        content: what the fingerprint knows of an item; by default its files.

    Attributes:
        classes: the classes' names; a label is an index into them.
        sizes: number of items of each split.
        load: gives an item's frames and image, from the cache if there is one.
        decode: gives them as the set was given, without the cache.

    Raises:
        ValueError: `skip_broken` without `cache`.
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
        cache: Path | None = None,
        skip_broken: bool = False,
        augment: Augment | None = None,
        normalize: Normalization = "none",
        allow_leaks: bool = False,
        content: Content = file_content,
    ) -> None:
        super().__init__()
        self.decode = load
        if cache is not None:
            everything = (item for items in splits.values() for item in items)
            load = opened = open_cache(
                everything,
                load,
                cache,
                content,
                num_workers=num_workers,
                skip_broken=skip_broken,
            )
            if opened.broken:
                splits = {name: [i for i in items if i in opened] for name, items in splits.items()}
                _tell_broken(opened.broken, opened.folder)
        elif skip_broken:
            raise ValueError(
                "skip_broken=true needs a cache, where broken items are listed: "
                "add --data.init_args.cache=FOLDER"
            )
        self.splits = splits
        self.load = load
        self.content = content
        self.classes = tuple(sorted({item.label for items in splits.values() for item in items}))
        self.sizes = {name: len(items) for name, items in splits.items()}
        # Augmentation is of counts, so that augmented frames are normalized after it.
        late = {"train"} if augment is not None else set()
        self.datasets = {
            name: Split(items, self.classes, load, "none" if name in late else normalize)
            for name, items in splits.items()
        }
        self.T = T
        self.image_size = image_size
        self.in_channels = in_channels
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.augment = augment
        self.normalize = normalize
        self.allow_leaks = allow_leaks

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

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment a training batch, on the device where it now is, and normalize it then."""
        if self.augment is None or self.trainer is None or not self.trainer.training:
            return batch
        batch = self.augment(batch, len(self.classes))
        return replace(batch, events=scaled(batch.events, self.normalize))

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled training batches."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Validation batches in the order of the items."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Test batches in the order of the items."""
        return self._loader("test")

    def loader(self, name: str) -> DataLoader[Sample]:
        """All of a split, in one process."""
        self.trainer = None
        return self._loader(name)

    def use_classes(self, classes: Sequence[str]) -> None:
        """Refuse other classes than these."""
        if list(self.classes) != list(classes):
            raise ValueError(f"the class names {self.classes[:3]} are not {classes[:3]}")

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


@rank_zero_only
def _tell_broken(broken: Mapping[str, str], folder: Path) -> None:
    name, error = next(iter(broken.items()))
    print(
        f"{len(broken)} broken items are left out, the first {name} ({error}); all of them are "
        f"in {folder / 'cache.json'}",
        file=sys.stderr,
    )
