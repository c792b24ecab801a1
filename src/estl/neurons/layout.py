"""Tensors of any memory order as rows, one per step, and back."""

import torch
from torch import Tensor


def memory_order(x: Tensor) -> tuple[int, ...]:
    """The dimensions of `x` (T,...), with those after T in memory order.

    >>> memory_order(torch.zeros(2, 3, 4, 5).permute(0, 3, 1, 2))
    (0, 2, 3, 1)
    """
    return (0, *sorted(range(1, x.ndim), key=x.stride, reverse=True))


def rows(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """`x` (T,...) as (T,M), without a copy if memory is dense after T in this order of dimensions.

    Steps that share their memory (stride 0) still do; any other stride becomes M, so that one
    compilation serves all.
    """
    flat = x.permute(order).reshape(x.shape[0], -1)
    return flat if flat.stride(0) == 0 and flat.stride(1) == 1 else flat.contiguous()


def unrows(flat: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    """The inverse of `rows`."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return flat.view([shape[d] for d in order]).permute(inverse)
