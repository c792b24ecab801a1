"""Image files as tensors."""

import io
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge of a part of an image, as fractions of its width and height."""

BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    EOFError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for broken bytes: what its plugins happen to meet."""

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs is said in the error

LARGEST = 1 << 25
"""Pixels of an image: those of a screen of 8K. As floats they take 400 MB."""


def read_rgb(path: Path, size: int | None = None, box: Box | None = None) -> Float[Tensor, "3 H W"]:
    """An image file as RGB in [0,1], resized (bicubic, not keeping its aspect) to a square.

    Args:
        path: the file.
        size: height and width of the result, the image's own if None.
        box: the part of the image that is resized, all of it if None; it needs a `size`.

    Raises:
        ValueError: not an image, or one of more than `LARGEST` pixels; the text names the file.
    """
    with _opened(path) as file:
        if file.width * file.height > LARGEST:
            raise ValueError(f"{file.width} x {file.height} pixels, the limit is {LARGEST}")
        image = file.convert("RGB")
    if size is not None:
        pixels = None
        if box is not None:
            W, H = image.size
            pixels = (box[0] * W, box[1] * H, box[2] * W, box[3] * H)
        image = image.resize((size, size), Image.Resampling.BICUBIC, pixels)
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float().div_(255)


def read_size(path: Path) -> tuple[int, int]:
    """(H,W) of an image file, from its header; it raises what `read_rgb` raises."""
    with _opened(path) as file:
        return file.height, file.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file; what Pillow raises for broken bytes becomes one line that names the file."""
    try:
        # From memory: of a file, Pillow takes as much as a damaged length in it says.
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            yield file
    except BROKEN as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as an image ({reason}): remove it") from None
