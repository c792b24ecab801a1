"""Samples: what one split gives, item by item, and how they become a batch."""

from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from estl.data.cache import Cache, Load
from estl.data.columns import COUNTS, PIXELS, Code, narrowest
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


def repeats(load: Any) -> bool:
    """Whether `load` and what it calls are ESTL's own, which load an item as before each time; a
    function of a user's own may draw something.

    >>> repeats(partial(normalize, how="max")), repeats(print)
    (True, False)
    """
    keywords = load.keywords.values() if isinstance(load, partial) else ()
    function = load.func if isinstance(load, partial) else load
    own = str(function.__module__).partition(".")[0] == "estl"
    return own and all(repeats(value) for value in keywords if callable(value))


class Memory:
    """What was loaded from files, so that later epochs of a small set do not decode it again.

    Each item is kept in the narrowest numbers that give back the very same floats, as in a cache on
    disk, until one does not fit; what comes after that is loaded every time. The processes of a
    loader keep nothing, since each would keep its own.

    Args:
        room: bytes that may be taken.
    """

    def __init__(self, room: int = 2**28) -> None:
        self.room, self.taken, self.full = room, 0, False
        self.kept: dict[Any, tuple[int, list[tuple[Code, np.ndarray]]]] = {}

    def __reduce__(self) -> tuple[type["Memory"], tuple[int]]:
        return Memory, (self.room,)

    def read(self, item: Item, load: Load, what: object) -> tuple[Tensor, Tensor | None]:
        """What `load` returns for `item`; calls with an equal `what` load the same of it."""
        key = item.label, item.number, what
        if key not in self.kept:
            frames, image = load(item)
            if not self.full and get_worker_info() is None and (item.events or item.image):
                self._keep(key, frames, image)
            return frames, image
        T, rows = self.kept[key]
        frames, *images = (code.floats(numbers) for code, numbers in rows)
        return frames.expand(T, -1, -1, -1), images[0] if images else None

    def _keep(self, key: Any, frames: Tensor, image: Tensor | None) -> None:
        static = is_static(frames[None])
        rows = [narrowest(frames[:1], PIXELS) if static else narrowest(frames, COUNTS)]
        if image is not None:
            rows.append(narrowest(image, PIXELS))
        size = sum(numbers.nbytes for _, numbers in rows)
        self.full = self.taken + size > self.room
        if not self.full:
            self.taken += size
            self.kept[key] = len(frames), [(code, numbers.copy()) for code, numbers in rows]


class Split(Dataset[Sample]):
    """One split: an item is loaded, and its frames normalized, when it is asked for.

    Without `images` they are None, and not read if `load` has an option `image=True` for that.
    `memory`, if there is one and `load` is no cache and `repeats`, has what was loaded before.
    """

    def __init__(
        self,
        items: Sequence[Item],
        classes: Sequence[str],
        load: Load,
        scaling: Normalization,
        *,
        images: bool = True,
        memory: Memory | None = None,
    ) -> None:
        self.items, self.memory = list(items), memory if repeats(load) else None
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
        elif self.memory is not None:
            loaded = [self.memory.read(item, self.load, self.images) for item in items]
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
