"""Still images to events: a simulated event camera looks at an image in three saccades.

This is how N-MNIST and N-Caltech101 were recorded (Orchard et al. 2015, "Converting static image
datasets to spiking neuromorphic datasets using saccades"): the camera turns along a triangle in
front of a screen, 100 ms a side. The pixels follow ESIM (Rebecq et al. 2018).
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from estl.data.formats.events import event_array
from estl.types import LUMA

# The image's first two movements, in units of the third's length; x to the right, y down. Fitted to
# real recordings: the path whose differences of log images correlate best with the signed event
# maps, N-MNIST (100 recordings, correlation 0.95) and N-Caltech101 (3, 0.86) agreeing.
_MOVES = np.array([[0.33, 1.08], [0.67, -0.995]])
_SACCADE_MS = 100

_GAMMA = 2.2  # of the screen: pixel value to luminance
_DARK = 0.02  # luminance of a black screen, of a white one's
_MAX_STEP = 1.0  # pixels between two looks of a pixel at the moving image
_BLOCK = 1 << 16  # pixels worked on at a time, so that they stay in the processor's cache


def saccade_path(
    steps: int, amplitude: float = 5.0
) -> tuple[Float[np.ndarray, "3 2"], list[Float[np.ndarray, "_ 2"]]]:
    """Positions (x,y) of the image, in pixels, during three saccades around its resting place.

    Each saccade lasts a third of the time and goes along one side of a triangle whose centroid is
    the resting place. In the share w of its time it covers w - sin(2 pi w) / (2 pi) of the side, so
    that it starts and ends at rest. Positions are at most 1 pixel apart, closer where a frame or a
    saccade ends.

    Args:
        steps: T, equal time windows.
        amplitude: length of the third, horizontal saccade in pixels.

    Returns:
        The triangle's corners in the order of visit (from the first, back to the first), and for
        each window the positions reached in it, the last at its end.

    >>> corners, path = saccade_path(steps=3)
    >>> bool(np.allclose(corners[1], path[0][-1]) and np.allclose(corners[0], path[2][-1]))
    True
    """
    corners = np.concatenate([np.zeros((1, 2)), np.cumsum(_MOVES, axis=0)])
    corners = (corners - corners.mean(axis=0)) * amplitude
    loop = np.concatenate([corners, corners[:1]])
    length = np.hypot(*np.diff(loop, axis=0).T)
    turns = np.concatenate([[0.0], np.cumsum(length)])

    time = np.arange(steps + 1) * 3 / steps  # in saccades
    k = np.minimum(time.astype(int), 2)
    w = time - k
    ends = turns[k] + length[k] * (w - np.sin(2 * np.pi * w) / (2 * np.pi))
    path = []
    for start, end in pairwise(ends):
        knots = [start, *turns[(turns > start) & (turns < end)], end]
        counts = [max(1, math.ceil((b - a) / _MAX_STEP)) for a, b in pairwise(knots)]
        pieces = zip(pairwise(knots), counts, strict=True)
        s = np.concatenate([np.linspace(a, b, n + 1)[1:] for (a, b), n in pieces])
        path.append(np.stack([np.interp(s, turns, loop[:, i]) for i in range(2)], axis=1))
    return corners, path


@torch.no_grad()
def simulate(
    images: Float[Tensor, "B C H W"],
    steps: int,
    *,
    threshold: float = 0.35,
    amplitude: float = 5.0,
    mismatch: float = 0.03,
    seed: int = 0,
) -> Float[Tensor, "B T 2 H W"]:
    """Event frames of still images, as an event camera sees them in three saccades.

    With Y the luma of RGB in [0,1] (ITU-R BT.601), a pixel sees the log luminance
    L = log(Y^2.2 + 0.02) of the image moved along `saccade_path` (bilinear between the pixels'
    logarithms, edges replicated). It keeps a reference, at first within half a threshold of L at
    the start, and at each position

        n = trunc((L - reference) / threshold),    reference += n * threshold

    emits |n| events, ON where n > 0. Frames count them in T equal windows of time; channel 0 is
    OFF, channel 1 is ON, as in `to_frames`. An image's frames do not depend on the rest of the
    batch.

    Args:
        images: (B,C,H,W) in [0,1], C = 3 (RGB) or 1 (gray).
        steps: T. With a multiple of 3, no frame mixes two saccades.
        threshold: contrast, a difference of natural logarithms, that makes an event.
        amplitude: length of the third saccade in pixels; 5 at the recordings' own resolution. The
            other two are 1.13 and 1.20 times as long. Scale it with the image.
        mismatch: relative standard deviation of the pixels' thresholds.
        seed: of the camera, that is of its thresholds and first references, drawn for each (H,W).

    Raises:
        ValueError: C neither 1 nor 3, or `steps`, `threshold` or `mismatch` out of range.

    >>> gray = torch.full((1, 1, 8, 8), 0.5)
    >>> simulate(gray, steps=3).any()  # no contrast, no events
    tensor(False)
    """
    B, C, H, W = images.shape
    if C not in (1, 3):
        raise ValueError(f"images with C={C} channels: 3 (RGB) or 1 (gray)")
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1")
    if threshold <= 0:
        raise ValueError(f"threshold={threshold}: above 0")
    if not 0 <= mismatch <= 0.2:
        raise ValueError(f"mismatch={mismatch}: from 0 to 0.2")

    corners, path = saccade_path(steps, amplitude)
    thresholds, phase = _sensor(H, W, threshold, mismatch, seed)
    gain, phase = (1 / thresholds).to(images.device), phase.to(images.device)
    frames = torch.empty(B, steps, 2, H, W, device=images.device)
    block = max(1, _BLOCK // (H * W))
    for some, out in zip(images.split(block), frames.split(block), strict=True):
        _emit(_log_luminance(some), gain, phase, corners[0], path, out)
    return frames


def simulate_events(image: Float[Tensor, "C H W"], **options: Any) -> np.ndarray:
    """Event list (`EVENT`) of one image: `simulate` in steps of 1 ms, events at a step's middle.

    >>> events = simulate_events(torch.rand(3, 8, 8))
    >>> bool((np.diff(events["t"]) >= 0).all())
    True
    """
    frames = simulate(image[None], 3 * _SACCADE_MS, **options)[0]
    t, p, y, x = frames.nonzero().T
    number = frames[t, p, y, x].long().numpy()
    return event_array(*(np.repeat(v.numpy(), number) for v in (1000 * t + 500, x, y, p)))


def _sensor(
    H: int, W: int, threshold: float, mismatch: float, seed: int
) -> tuple[Float[Tensor, "H W"], Float[Tensor, "H W"]]:
    """Each pixel's threshold, and in units of it where the pixel starts between two events."""
    generator = torch.Generator().manual_seed(seed)
    deviation = mismatch * torch.randn(H, W, generator=generator).clamp_(-3, 3)
    return threshold * (1 + deviation), torch.rand(H, W, generator=generator) - 0.5


def _log_luminance(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    images = images.float()
    if images.shape[1] == 3:
        luma = torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))
    else:
        luma = images[:, 0]
    return luma.pow(_GAMMA).add_(_DARK).log_()


def _emit(
    L: Float[Tensor, "B H W"],
    gain: Float[Tensor, "H W"],
    phase: Float[Tensor, "H W"],
    start: Float[np.ndarray, " 2"],
    path: list[Float[np.ndarray, "_ 2"]],
    frames: Float[Tensor, "B T 2 H W"],
) -> None:
    """Fill `frames`, in a loop over positions alone that writes into the same few buffers."""
    B, H, W = L.shape
    pad = math.ceil(max(np.abs(p).max() for p in path)) + 1
    L = F.pad(L[:, None], [pad] * 4, mode="replicate")[:, 0]
    rows, seen, half_total = (L.new_empty(B, n, W) for n in (H + 1, H, H))

    def look(position: np.ndarray) -> Tensor:
        x, y = pad - float(position[0]), pad - float(position[1])
        j, i = math.floor(x), math.floor(y)
        left, right = L[:, i : i + H + 1, j : j + W], L[:, i : i + H + 1, j + 1 : j + W + 1]
        torch.lerp(left, right, x - j, out=rows)
        return torch.lerp(rows[:, :-1], rows[:, 1:], y - i, out=seen)

    minus_reference = phase - look(start) * gain  # in thresholds
    for f, positions in enumerate(path):
        before = minus_reference.clone()
        half_total.zero_()
        for position in positions:
            n = torch.addcmul(minus_reference, look(position), gain, out=seen).trunc_()
            minus_reference -= n
            half_total.add_(n.abs_(), alpha=0.5)
        net = before.sub_(minus_reference).round_()  # ON - OFF
        torch.sub(half_total, net, alpha=0.5, out=frames[:, f, 0])
        torch.add(half_total, net, alpha=0.5, out=frames[:, f, 1])
