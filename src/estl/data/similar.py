"""Pictures that look the same: a perceptual hash, and the pairs of hashes that are near."""

import numpy as np
from jaxtyping import Float, UInt64
from scipy.fft import dctn
from torch import Tensor, einsum
from torch.nn import functional as F

from estl.types import LUMA

_BLOCK = 512


def perceptual_hash(image: Float[Tensor, "3 h w"]) -> int:
    """64 bits that change little when a picture is scaled, recompressed or made brighter.

    The luma on 32×32 pixels, its cosine transform (DCT-II), the 8×8 lowest frequencies; a bit is
    set where a coefficient is above their median (Zauner 2010, "Implementation and Benchmarking of
    Perceptual Image Hash Functions").

    >>> import torch
    >>> image = torch.rand(3, 40, 60)
    >>> perceptual_hash(image) == perceptual_hash(0.5 * image)
    True
    """
    luma = einsum("chw,c->hw", image, image.new_tensor(LUMA))
    small = F.interpolate(luma[None, None], (32, 32), mode="bilinear", antialias=True)[0, 0]
    low = dctn(small.double().numpy())[:8, :8]
    bits = np.packbits(low.ravel() > np.median(low))
    return int.from_bytes(bits.tobytes(), "big")


def near(hashes: UInt64[np.ndarray, " N"], distance: int) -> list[tuple[int, int]]:
    """Pairs i < j of hashes that differ in at most `distance` bits.

    >>> near(np.array([0b1000, 0b1111, 0b1001], np.uint64), distance=1)
    [(0, 2)]
    """
    pairs = []
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None]
        close = np.bitwise_count(block ^ hashes[None, start:]) <= distance
        i, j = np.nonzero(np.triu(close, 1))
        pairs += list(zip((start + i).tolist(), (start + j).tolist(), strict=True))
    return pairs
