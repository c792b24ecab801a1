"""Image files as tensors, and folders of them as items."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from estl.data.pairs import Item

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def read_rgb(path: Path, size: int | None = None) -> Float[Tensor, "3 H W"]:
    """An image file as RGB in [0,1], resized (bicubic, not keeping its aspect) to a square.

    Raises:
        ValueError: not an image; the text names the file.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): remove it") from None
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def list_images(root: Path) -> list[Item]:
    """Items of a folder `root/<class>/<name>.png` (or .jpg, .jpeg, .bmp), sorted.

    Raises:
        FileNotFoundError: no image there.
    """
    paths = (p for p in root.glob("*/*") if p.suffix.lower() in SUFFIXES)
    items = sorted(Item(p.parent.name, p.stem, image=p) for p in paths)
    if not items:
        raise FileNotFoundError(
            f"no images {root}/<class>/<name>.jpg or .png: point --data-path at such a folder"
        )
    return items
