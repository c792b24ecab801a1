"""What the processes of a distributed run compute together; alone, a process uses its own batch.

Their batches may differ in size: the last one of an epoch rarely divides evenly.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def together() -> bool:
    """Whether this is one process of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sizes(own: int, device: torch.device) -> list[int]:
    """The batch sizes of all processes, in the order of ranks; `own` is that of this process."""
    if not together():
        return [own]
    parts = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, torch.tensor([own], device=device))
    return torch.cat(parts).tolist()


def share(own: int, device: torch.device) -> Tensor:
    """This process's share of all samples, a scalar on the device, without waiting for it."""
    size = torch.tensor(float(own), device=device)
    if not together():
        return size / size
    whole = size.clone()
    dist.all_reduce(whole)
    return size / whole


def mean(x: Tensor, part: Tensor) -> Tensor:
    """The mean over all samples, if x is the mean over this process's, a `share` of `part`."""
    if not together():
        return x
    x = x * part
    dist.all_reduce(x)
    return x


def gather(x: Tensor, sizes: list[int]) -> Tensor:
    """The batches (b,...) of all processes, one after the other: (sum of `sizes`, ...).

    In the backward pass, a process's rows get the sum of all processes' gradients for them.
    """
    return _Gather.apply(x, sizes) if len(sizes) > 1 else x


class _Gather(torch.autograd.Function):
    """Batches are padded to the size of the largest one, as collectives need equal sizes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.own, ctx.first = len(x), sum(sizes[: dist.get_rank()])
        filled = x.new_zeros(max(sizes), *x.shape[1:])
        filled[: len(x)] = x
        parts = [torch.empty_like(filled) for _ in sizes]
        dist.all_gather(parts, filled)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[ctx.first : ctx.first + ctx.own], None
