"""CIFAR-10 and CIFAR-100 from their original Python batches."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from estl.data.catalog import BY_NAME
from estl.data.formats.cifar import Classes, read_batch, read_names
from estl.data.formats.images import read_rgb
from estl.data.frames import Standard
from estl.data.items import Item
from estl.data.splits import SplitData

MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
"""Mean of R, G and B over all pixels of the training images, in [0,1]."""

STD = {10: (0.2470, 0.2435, 0.2616), 100: (0.2673, 0.2564, 0.2762)}
"""Standard deviation of R, G and B over all pixels of the training images."""

_META = {10: "batches.meta", 100: "meta"}


class CIFAR(SplitData):
    """CIFAR-10 or CIFAR-100, a static set: one image at every time step (direct coding).

    Files are `root/cifar-10-batches-py/{data_batch_1,...,5,test_batch,batches.meta}` or
    `root/cifar-100-python/{train,test,meta}`, as distributed; `root` may be that folder itself.
    With the test batch and the names alone the set can be tested. An item's number is its batch and
    its row there, `data_batch_1_00017`. Labels are the fine ones of CIFAR-100; in both sets the
    order of the names is the official order.

    The batches stay in memory as bytes, so that a cache is of no use here.

    Args:
        root: the folder that holds the batches.
        classes: 10 or 100.
        T: number of time steps.
        images: whether `Batch.image` is the image in [0,1]; otherwise it is None.
        standardize: whether events are (x - `MEAN`) / `STD` of each color, or in [0,1]. It comes
            after augmentation, which is of pictures in [0,1].
        loading: arguments of `SplitData`, `ItemData` and `EventData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Classes = 10,
        T: int = 4,
        images: bool = False,
        standardize: bool = True,
        **loading: Any,
    ) -> None:
        root, row = Path(root), BY_NAME[f"cifar{classes}"]
        no_training = row.test_alone(root)
        train, test = row.files["train"], row.files["test"]
        folder = test.folder(root) or train.folder(root) or root
        names = read_names(folder / _META[classes], classes)

        def items(batches: tuple[str, ...]) -> list[Item]:
            return [
                Item(names[label], f"{batch}_{row:05d}")
                for batch in batches
                for row, label in enumerate(read_batch(folder / batch, classes)[1])
            ]

        super().__init__(
            [] if no_training else items(train.patterns),
            partial(load_image, folder=str(folder), classes=classes, T=T, images=images),
            test=items(test.patterns),
            T=T,
            frame_size=(32, 32),
            in_channels=3,
            normalize=Standard(MEAN[classes], STD[classes]) if standardize else "none",
            content=lambda item: [_pixels(item, folder, classes).tobytes()],
            **loading,
        )
        self.no_training = no_training

    def read_image(self, path: Path) -> Tensor:
        """One image file (3,32,32)."""
        return read_rgb(path, 32)


def load_image(
    item: Item, folder: str, classes: Classes, T: int, images: bool
) -> tuple[Float[Tensor, "T 3 32 32"], Float[Tensor, "3 32 32"] | None]:
    """An image in [0,1] at each of T time steps, expanded without a copy, and the image."""
    pixels = _pixels(item, Path(folder), classes).reshape(3, 32, 32)
    image = torch.from_numpy(pixels.astype(np.float32)) / 255
    return image.expand(T, -1, -1, -1), image if images else None


def _pixels(item: Item, folder: Path, classes: Classes) -> np.ndarray:
    batch, row = item.number.rsplit("_", 1)
    return read_batch(folder / batch, classes)[0][int(row)]
