"""CIFAR-10 and CIFAR-100 from their original Python batches."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from estl.data.formats.cifar import Classes, read_batch, read_names
from estl.data.formats.images import read_rgb
from estl.data.items import Item, read_splits, select_items, split_items
from estl.data.module import EventData

MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
"""Mean of R, G and B over all pixels of the training images, in [0,1]."""

STD = {10: (0.2470, 0.2435, 0.2616), 100: (0.2673, 0.2564, 0.2762)}
"""Standard deviation of R, G and B over all pixels of the training images."""

_FOLDER = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
_BATCHES = {
    10: {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    100: {"train": ["train"], "test": ["test"]},
}
_META = {10: "batches.meta", 100: "meta"}


class CIFAR(EventData):
    """CIFAR-10 or CIFAR-100, a static set: one image at every time step (direct coding).

    Files are `root/cifar-10-batches-py/{data_batch_1,...,5,test_batch,batches.meta}` or
    `root/cifar-100-python/{train,test,meta}`, as distributed; `root` may be that folder itself.
    An item's number is its batch and its row there, `data_batch_1_00017`. Labels are the fine ones
    of CIFAR-100; in both sets the order of the names is the official order.

    The batches stay in memory as bytes, so that a cache is of no use here.

    Args:
        root: the folder that holds the batches.
        classes: 10 or 100.
        T: number of time steps.
        images: whether `Batch.image` is the image in [0,1]; None without.
        standardize: whether events are (x - `MEAN`) / `STD` of each color, or in [0,1].
        splits: folder of published lists (`pairs.read_splits`) in place of the official test split.
        val_fraction: share of the training images of each class that is the validation split.
        per_class: training images a class, all if None. The rest is unused.
        split_seed: of the choice of validation and `per_class` images.
        loading: arguments of `EventData`: batch_size, seed, num_workers and others.

    Raises:
        FileNotFoundError: a batch is missing.
        ValueError: a file is not a CIFAR batch, or a class has fewer than `per_class` images.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Classes = 10,
        T: int = 4,
        images: bool = False,
        standardize: bool = True,
        splits: Path | None = None,
        val_fraction: float = 0.1,
        per_class: int | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        root = Path(root)
        folder = root / _FOLDER[classes] if (root / _FOLDER[classes]).is_dir() else root
        names = read_names(folder / _META[classes], classes)
        found = {
            part: [
                Item(names[label], f"{batch}_{row:05d}")
                for batch in batches
                for row, label in enumerate(read_batch(folder / batch, classes)[1])
            ]
            for part, batches in _BATCHES[classes].items()
        }
        if splits is not None:
            everything = found["train"] + found["test"]
            parts = read_splits(splits, everything, val_fraction=val_fraction, seed=split_seed)
        else:
            train, val = split_items(found["train"], val_fraction, split_seed)
            parts = {"train": train, "val": val, "test": found["test"]}
        if per_class is not None:
            parts["train"] = select_items(parts["train"], per_class, split_seed)
        super().__init__(
            parts,
            partial(
                load_image,
                folder=str(folder),
                classes=classes,
                T=T,
                images=images,
                standardize=standardize,
            ),
            T=T,
            image_size=(32, 32),
            in_channels=3,
            content=lambda item: [_pixels(item, folder, classes).tobytes()],
            **loading,
        )

    def read_image(self, path: Path) -> Tensor:
        """One image file (3,32,32)."""
        return read_rgb(path, 32)


def load_image(
    item: Item, folder: str, classes: Classes, T: int, images: bool, standardize: bool
) -> tuple[Float[Tensor, "T 3 32 32"], Float[Tensor, "3 32 32"] | None]:
    """An image at each of T time steps, expanded without a copy, and the image."""
    pixels = _pixels(item, Path(folder), classes).reshape(3, 32, 32)
    image = torch.from_numpy(pixels.astype(np.float32)) / 255
    step = image
    if standardize:
        mean, std = (torch.tensor(x[classes]).view(3, 1, 1) for x in (MEAN, STD))
        step = (image - mean) / std
    return step.expand(T, -1, -1, -1), image if images else None


def _pixels(item: Item, folder: Path, classes: Classes) -> np.ndarray:
    batch, row = item.number.rsplit("_", 1)
    return read_batch(folder / batch, classes)[0][int(row)]
