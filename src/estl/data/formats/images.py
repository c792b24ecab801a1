"""Image files as tensors."""

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import ExifTags, Image
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
"""Largest number of pixels of an image: an 8K screen's. As floats they take 400 MB."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image of this EXIF orientation upright; from 5 on its sides are exchanged."""


def read_rgb(path: Path, size: int | None = None, box: Box | None = None) -> Float[Tensor, "3 H W"]:
    """An image file as RGB in [0,1], resized (bicubic, not keeping its aspect) to a square.

    It is turned as its EXIF orientation says. Gray values of 16 bits are divided by 65535, then
    rounded to 8 bits. Transparent images are laid on white, or on black if the visible part of the
    image is bright (its luma, weighted by opacity, above the middle): a white logo stays visible.

    Args:
        path: the file.
        size: height and width of the result, the image's own if None.
        box: the part of the image that is resized, all of it if None; it needs a `size`.

    Raises:
        ValueError: not an image, or one of more than `LARGEST` pixels; the text names the file.
    """
    with _opened(path) as file:
        image = _opaque(_eight_bits(file))
        # Not by ImageOps.exif_transpose, which fails where other entries of the EXIF are broken.
        if (way := _UPRIGHT.get(_orientation(file))) is not None:
            image = image.transpose(way)
    if size is not None:
        pixels = None
        if box is not None:
            W, H = image.size
            pixels = (box[0] * W, box[1] * H, box[2] * W, box[3] * H)
        image = image.resize((size, size), Image.Resampling.BICUBIC, pixels)
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float().div_(255)


def read_size(path: Path) -> tuple[int, int]:
    """(H,W) of an image file, upright, from its header; it raises what `read_rgb` raises."""
    with _opened(path) as file:
        H, W = file.height, file.width
        return (W, H) if _orientation(file) >= 5 else (H, W)


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    if file.format == "TIFF":  # which Pillow has turned
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is damaged in it
        try:
            found = file.getexif().get(ExifTags.Base.Orientation)
        except BROKEN:
            return 1
    return found if found in _UPRIGHT else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, with gray values of 16 bits rounded to the nearest of 8 bits."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """The image as RGB; on white or black if it is transparent, see `read_rgb`."""
    alpha = image.mode[-1] in "Aa" or (image.palette is not None and image.palette.mode[-1] == "A")
    if not alpha and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    opacity, color = image.getchannel("A"), image.convert("RGB")
    weight, luma = (np.asarray(x).astype(np.float64) for x in (opacity, color.convert("L")))
    bright = (weight * (luma - 127.5)).sum() > 0
    ground = Image.new("RGB", image.size, "black" if bright else "white")
    ground.paste(color, mask=opacity)
    return ground


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file; what Pillow raises for broken bytes becomes one line that names the file."""
    try:
        # From memory: of a file, Pillow takes as much as a damaged length in it says.
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            if file.width * file.height > LARGEST:
                raise ValueError(f"{file.width} x {file.height} pixels, the limit is {LARGEST}")
            yield file
    except BROKEN as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as an image ({reason}): remove it") from None
