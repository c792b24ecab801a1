"""Samples: what one split gives, item by item, and how they become a batch."""

from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from estl.data.cache import Cache, Load
from estl.data.frames import Normalization, normalize
from estl.data.items import Item
from estl.types import Batch, direct_code, is_static

Sample = tuple[Tensor, int, Tensor | None]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the samples; direct-coded events are stored once and expanded (`direct_code`)."""
    events, labels, images = zip(*samples, strict=True)
    if all(is_static(frames[None]) for frames in events):
        stacked = direct_code(torch.stack([frames[0] for frames in events]), len(events[0]))
    else:
        stacked = torch.stack(events)
    image = None if images[0] is None else torch.stack(images)
    return Batch(stacked, torch.tensor(labels), image)


class Split(Dataset[Sample]):
    """One split: an item is loaded, and its frames normalized, when it is asked for.

    Without `images` they are None, and not read if `load` has an option `image=True` for that.
    """

    def __init__(
        self,
        items: Sequence[Item],
        classes: Sequence[str],
        load: Load,
        scaling: Normalization,
        *,
        images: bool = True,
    ) -> None:
        self.items = list(items)
        self.number = {name: i for i, name in enumerate(classes)}
        self.load, self.scaling, self.images = load, scaling, images
        if not images and not isinstance(load, Cache):
            option, loads = signature(load).parameters.get("image"), cast(Any, load)
            self.load = partial(loads, image=False) if option and option.default is True else load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of a batch; `DataLoader` asks for them so."""
        items = [self.items[i] for i in indices]
        if isinstance(self.load, Cache):
            loaded = self.load.read(items, images=self.images)
        else:
            loaded = [self.load(item) for item in items]
        return [
            (
                normalize(frames, self.scaling),
                self.number[item.label],
                image if self.images else None,
            )
            for item, (frames, image) in zip(items, loaded, strict=True)
        ]
