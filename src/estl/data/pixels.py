"""Pixels of a batch moved and masked: what `Augment` draws is done here."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def warp(
    x: Float[Tensor, "B S C H W"], matrix: Float[Tensor, "B 2 3"]
) -> Float[Tensor, "B S C H W"]:
    """Counts (two channels) from the nearest pixel, pictures bilinearly."""
    flat = x.flatten(1, 2)
    grid = F.affine_grid(matrix.to(x.dtype), list(flat.shape), align_corners=False)
    mode, padding = ("nearest", "zeros") if x.shape[2] == 2 else ("bilinear", "border")
    moved = F.grid_sample(flat, grid, mode=mode, padding_mode=padding, align_corners=False)
    return moved.view(x.shape)


def inside(start: Float[Tensor, " B"], length: Float[Tensor, " B"], n: int) -> Bool[Tensor, "B n"]:
    """Which of n positions on [0,1] have their center in [start, start + length)."""
    centers = (torch.arange(n, device=start.device) + 0.5) / n
    start = start.unsqueeze(-1)
    return (centers >= start) & (centers < start + length.unsqueeze(-1))


def box(
    corner: Float[Tensor, "B 2"], sides: Float[Tensor, "B 2"], H: int, W: int
) -> Bool[Tensor, "B 1 1 H W"]:
    """The places of a rectangle; corner and sides are (vertical, horizontal), in shares of 1."""
    rows = inside(corner[:, 0], sides[:, 0], H)
    columns = inside(corner[:, 1], sides[:, 1], W)
    return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).unsqueeze(1).unsqueeze(1)


def move_pixels(
    x: Float[Tensor, "B S C H W"],
    rows: Int[Tensor, " B"],
    columns: Int[Tensor, " B"],
    *,
    wrap: bool,
) -> Float[Tensor, "B S C H W"]:
    """Each sample moved down by `rows` and right by `columns` pixels.

    What leaves comes in again on the other side if `wrap` (a roll, as of event frames); else zeros
    come in, as a random crop of a zero-padded picture has it.

    >>> x = torch.arange(4.0).view(1, 1, 1, 1, 4)
    >>> move_pixels(x, torch.tensor([0]), torch.tensor([1]), wrap=True).flatten().tolist()
    [3.0, 0.0, 1.0, 2.0]
    >>> move_pixels(x + 1, torch.tensor([0]), torch.tensor([-1]), wrap=False).flatten().tolist()
    [2.0, 3.0, 4.0, 0.0]
    """
    H, W = x.shape[-2:]
    i = torch.arange(H, device=x.device) - rows.unsqueeze(1)  # (B,H): where each row comes from
    j = torch.arange(W, device=x.device) - columns.unsqueeze(1)
    sample = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    moved = x[sample, :, :, (i % H).unsqueeze(2), (j % W).unsqueeze(1)]  # (B,H,W,S,C)
    moved = moved.permute(0, 3, 4, 1, 2)
    if wrap:
        return moved.contiguous()
    there = ((i >= 0) & (i < H)).unsqueeze(2) & ((j >= 0) & (j < W)).unsqueeze(1)
    return moved * there[:, None, None].to(x.dtype)


def square(
    row: Int[Tensor, " B"], column: Int[Tensor, " B"], side: int, H: int, W: int
) -> Bool[Tensor, "B 1 1 H W"]:
    """The places of a square around (row, column), cut off at the border (DeVries and Taylor 2017).

    It runs from the center minus side // 2 on.

    >>> square(torch.tensor([0]), torch.tensor([2]), side=2, H=1, W=4).flatten().tolist()
    [False, True, True, False]
    """
    i = torch.arange(H, device=row.device) - (row - side // 2).unsqueeze(1)
    j = torch.arange(W, device=row.device) - (column - side // 2).unsqueeze(1)
    inside = ((i >= 0) & (i < side)).unsqueeze(2) & ((j >= 0) & (j < side)).unsqueeze(1)
    return inside[:, None, None]


def auto_augment(pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """AutoAugment's policy for CIFAR-10 (Cubuk et al., CVPR 2019, Table 7), by kornia.

    Each picture draws one of the 25 pairs of operations for itself, as the paper does; kornia
    draws one for a whole batch.
    """
    pairs = _cifar10_pairs()
    drawn = torch.randint(len(pairs), (len(pictures),)).tolist()  # on the CPU: nothing waits for it
    changed = pictures.clone()
    for k in sorted(set(drawn)):
        mine = [i for i, pair in enumerate(drawn) if pair == k]
        changed[mine] = pairs[k](pictures[mine])
    return changed


@functools.cache
def _cifar10_pairs() -> list[nn.Module]:
    from kornia.augmentation.auto import AutoAugment

    return list(AutoAugment("cifar10").children())
