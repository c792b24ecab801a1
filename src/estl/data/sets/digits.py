"""The embedded set: scanned digits and their simulated recordings, without a download."""

from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from estl.data.items import Item
from estl.data.simulator import simulate
from estl.data.splits import SplitData


class Digits(SplitData):
    """The 1797 handwritten digits that come with scikit-learn, as RGB-event pairs.

    The 8×8 scans (UCI, Alpaydin and Kaynak 1998) are enlarged bilinearly to three quarters of the
    canvas and laid in its middle, bright on black. The image is the canvas, the same in R, G and B;
    the events are its simulated recording (`simulate`), counts per frame. The third saccade is a
    tenth of the canvas long. Splits are drawn by item; a writer's digits may be in several.

    Args:
        T: number of frames; a multiple of 3 lets no frame mix two saccades.
        size: height and width of the canvas, a multiple of 8.
        loading: arguments of `SplitData`, `ItemData` and `EventData`.

    Raises:
        ValueError: `size` is no multiple of 8.
    """

    def __init__(self, *, T: int = 6, size: int = 32, **loading: Any) -> None:
        if size < 8 or size % 8:
            raise ValueError(f"size={size}: a multiple of 8")
        scans, target = load_digits(return_X_y=True)
        digits = torch.from_numpy(scans.astype(np.float32)).view(-1, 1, 8, 8) / 16
        enlarged = F.interpolate(digits, size=(3 * size // 4,) * 2, mode="bilinear")
        images = F.pad(enlarged, [size // 8] * 4)
        frames = simulate(images, T, amplitude=size / 10)
        super().__init__(
            [Item(str(label), f"{i:04d}") for i, label in enumerate(target)],
            partial(load_digit, frames=frames, images=images),
            T=T,
            frame_size=(size, size),
            content=partial(scan_bytes, scans=scans),
            **loading,
        )


def scan_bytes(item: Item, scans: np.ndarray) -> list[bytes]:
    """The scan that the item's number names."""
    return [scans[int(item.number)].tobytes()]


def load_digit(
    item: Item, frames: Float[Tensor, "N T 2 H W"], images: Float[Tensor, "N 1 H W"]
) -> tuple[Float[Tensor, "T 2 H W"], Float[Tensor, "3 H W"]]:
    """Events and canvas of the scan that the item's number names."""
    i = int(item.number)
    return frames[i], images[i].expand(3, -1, -1)
