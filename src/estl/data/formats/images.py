"""Image files as tensors."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge of a part of an image, as fractions of its width and height."""


def read_rgb(path: Path, size: int | None = None, box: Box | None = None) -> Float[Tensor, "3 H W"]:
    """An image file as RGB in [0,1], resized (bicubic, not keeping its aspect) to a square.

    Args:
        path: the file.
        size: height and width of the result, the image's own if None.
        box: the part of the image to resize, all of it if None; it needs a `size`.

    Raises:
        ValueError: not an image; the text names the file.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): remove it") from None
    if size is not None:
        pixels = None
        if box is not None:
            W, H = image.size
            pixels = (box[0] * W, box[1] * H, box[2] * W, box[3] * H)
        image = image.resize((size, size), Image.Resampling.BICUBIC, pixels)
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def read_size(path: Path) -> tuple[int, int]:
    """(H,W) of an image file, from its head.

    Raises:
        ValueError: not an image; the text names the file.
    """
    try:
        with Image.open(path) as file:
            W, H = file.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): remove it") from None
    return H, W
