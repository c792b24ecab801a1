"""Resampling between grids: the teacher's tokens to the student's, images to event frames."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def resample(
    tokens: Float[Tensor, "B N E"], source: tuple[int, int], target: tuple[int, int]
) -> Float[Tensor, "B n E"]:
    """Tokens laid row by row on the grid `source`, resampled to the grid `target`; no gradient.

    Bilinear; where `target` is coarser the kernel widens with it, so that every token counts. An
    attention map counts as tokens of width 1 (its sum changes: renormalize it).

    Raises:
        ValueError: if the tokens do not fill `source`, or a grid has no cell.

    >>> resample(torch.ones(2, 196, 768), (14, 14), (12, 12)).shape
    torch.Size([2, 144, 768])
    """
    if min(*source, *target) < 1 or tokens.shape[1] != source[0] * source[1]:
        raise ValueError(
            f"cannot lay {tokens.shape[1]} tokens of a {source[0]}x{source[1]} grid on a "
            f"{target[0]}x{target[1]} grid"
        )
    if source == target:
        return tokens
    maps = tokens.transpose(1, 2).unflatten(2, source).float()
    maps = F.interpolate(maps, target, mode="bilinear", antialias=True)
    return maps.flatten(2).transpose(1, 2).to(tokens.dtype)


def on_frames(
    image: Float[Tensor, "B 3 h w"], events: Float[Tensor, "n T C H W"]
) -> Float[Tensor, "B 3 H W"]:
    """The images resampled to the grid of event frames, which show the same field of view.

    >>> on_frames(torch.rand(1, 3, 224, 224), torch.rand(1, 10, 2, 48, 48)).shape
    torch.Size([1, 3, 48, 48])
    """
    size = events.shape[-2:]
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
