"""The embedded set: scanned digits and their simulated recordings, without a download."""

from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from estl.data.items import Item, select_items, split_items
from estl.data.module import EventData
from estl.data.simulator import simulate


class Digits(EventData):
    """The 1797 handwritten digits that come with scikit-learn, as RGB-event pairs.

    The 8×8 scans (UCI, Alpaydin and Kaynak 1998) are enlarged bilinearly to three quarters of the
    canvas and laid in its middle, bright on black. The image is the canvas, the same in R, G and B;
    the events are its simulated recording (`simulate`), counts per frame. The third saccade is a
    tenth of the canvas long. Splits are drawn by item; a writer's digits may be in several.

    Args:
        T: number of frames; a multiple of 3 lets no frame mix two saccades.
        size: height and width of the canvas, a multiple of 8.
        val_fraction: share of the items outside the test split that is the validation split.
        test_fraction: share of the items that is the test split.
        per_class: training items a class, all if None. The rest is unused.
        split_seed: of the choice of test, validation and `per_class` items.
        loading: arguments of `EventData`: batch_size, seed, num_workers, cache and others.

    Raises:
        ValueError: `size` is no multiple of 8, or a class has fewer than `per_class` items.
    """

    def __init__(
        self,
        *,
        T: int = 6,
        size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        per_class: int | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        if size < 8 or size % 8:
            raise ValueError(f"size={size}: a multiple of 8")
        scans, target = load_digits(return_X_y=True)
        digits = torch.from_numpy(scans.astype(np.float32)).view(-1, 1, 8, 8) / 16
        enlarged = F.interpolate(digits, size=(3 * size // 4,) * 2, mode="bilinear")
        images = F.pad(enlarged, [size // 8] * 4)
        frames = simulate(images, T, amplitude=size / 10)

        items = [Item(str(label), f"{i:04d}") for i, label in enumerate(target)]
        rest, test = split_items(items, test_fraction, split_seed)
        train, val = split_items(rest, val_fraction, split_seed)
        if per_class is not None:
            train = select_items(train, per_class, split_seed)

        super().__init__(
            {"train": train, "val": val, "test": test},
            partial(load_digit, frames=frames, images=images),
            T=T,
            image_size=(size, size),
            content=lambda item: [scans[int(item.number)].tobytes()],
            **loading,
        )


def load_digit(
    item: Item, frames: Float[Tensor, "N T 2 H W"], images: Float[Tensor, "N 1 H W"]
) -> tuple[Float[Tensor, "T 2 H W"], Float[Tensor, "3 H W"]]:
    """Events and canvas of the scan that the item's number names."""
    i = int(item.number)
    return frames[i], images[i].expand(3, -1, -1)
