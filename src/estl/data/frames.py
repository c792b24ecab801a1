"""Events as frames: counted per step, polarity and pixel, and put on a common scale."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from estl.data.formats.events import check_inside

Slicing = Literal["count", "time"]


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of each channel of a set's pictures, to standardize them by.

    Args:
        mean: of each channel.
        std: of each channel, > 0.

    Raises:
        ValueError: unequal numbers of the two, or a deviation that is not above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError(
                f"normalize has mean {list(self.mean)} and std {list(self.std)}: give one of each "
                "channel, std above 0"
            )


Normalization = Literal["none", "max", "std"] | Standard


def to_frames(
    events: np.ndarray,
    steps: int,
    size: tuple[int, int],
    by: Slicing = "count",
    sensor: tuple[int, int] | None = None,
) -> Float[Tensor, "T 2 H W"]:
    """Number of events per step, polarity and pixel; channel 0 is OFF, channel 1 is ON.

    Every event is in exactly one frame, so the frames sum to the number of events. With n events,
    the first at t_0 and the last at t_1, event i at time t goes to step

        by="count":  floor(i T / n)                        (slices of equal count, up to one event)
        by="time":   floor((t - t_0) T / (t_1 - t_0 + 1))  (equal windows, the last event included)

    and, where the frames are not of the sensor's size, from (y, x) to row floor(y H / H_sensor) and
    column floor(x W / W_sensor).

    Args:
        events: structured array of `EVENT`, in order of time.
        steps: T.
        size: (H,W) of the frames.
        by: "count" or "time".
        sensor: (H,W) of the recording; that of the frames if None.

    Raises:
        ValueError: an event outside `sensor`, `steps` below 1, or an unknown `by`.

    >>> from estl.data.formats.events import EVENT
    >>> events = np.array([(0, 0, 0, 1), (10, 1, 0, 0), (99, 1, 0, 1)], EVENT)
    >>> to_frames(events, steps=2, size=(1, 2), by="time")[:, 1]  # ON
    tensor([[[1., 0.]],
            [[0., 1.]]])
    >>> to_frames(events, steps=1, size=(1, 1), sensor=(1, 2)).flatten()  # OFF, ON
    tensor([1., 2.])
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1")
    if by not in ("count", "time"):
        raise ValueError(f'by={by!r}: "count" or "time"')
    H, W = size
    n = len(events)
    if n == 0:
        return torch.zeros(steps, 2, H, W)
    rows, columns = sensor or size
    # Half the width is half the time, so 32 bits wherever no product below can overflow them.
    largest = max(n * steps, steps * 2 * H * W, rows * H, columns * W)
    cell: np.ndarray = np.arange(n, dtype=_integer(largest))
    x, y = events["x"].astype(cell.dtype), events["y"].astype(cell.dtype)
    what = "sensor" if sensor else "frame"
    check_inside(x, y, (rows, columns), lambda i: f"event {i}", what)
    if by == "count":
        cell = cell * steps // n
    else:
        t = events["t"] - events["t"].min()
        span = int(t.max()) + 1
        cell = (t.astype(_integer(span * steps), copy=False) * steps // span).astype(cell.dtype)
    if columns != W:
        x = x * W // columns
    if rows != H:
        y = y * H // rows
    cell = ((cell * 2 + (events["p"] > 0)) * H + y) * W + x
    # Counted in 32 bits: `bincount` counts in 64. To 2^24 float32 counts exactly, without a copy.
    counts = np.zeros(steps * 2 * H * W, np.float32 if n < 1 << 24 else np.int32)
    np.add.at(counts, cell, counts.dtype.type(1))
    return torch.from_numpy(counts).float().view(steps, 2, H, W)


def check_channels(how: Normalization, channels: int) -> None:
    """Raise ValueError where a `Standard` is of another number of channels than the frames."""
    if isinstance(how, Standard) and len(how.mean) != channels:
        raise ValueError(
            f"normalize has mean {list(how.mean)}, but frames have {channels} channels: give one "
            "of each"
        )


def normalize(
    frames: Float[Tensor, "*B T C H W"], how: Normalization
) -> Float[Tensor, "*B T C H W"]:
    """Frames f on a common scale, each sample by itself, over its steps, channels and pixels:

        "none":    f, the same tensor
        "max":     f / max f
        "std":     f / sqrt(mean (f - mean f)^2)
        Standard:  (f_c - mean_c) / std_c, with the set's own figures of each channel c

    The first three subtract nothing, so that a pixel without events stays 0. A sample
    without any events is left as it is. Directly coded frames, one step expanded over time, are
    scaled as that one step.

    Raises:
        ValueError: an unknown `how`.

    >>> normalize(torch.tensor([0.0, 1.0, 4.0]).view(1, 1, 1, 3), "max").flatten()
    tensor([0.0000, 0.2500, 1.0000])
    """
    if how == "none":
        return frames
    if frames.shape[-4] > 1 and frames.stride(-4) == 0:
        return normalize(frames.narrow(-4, 0, 1), how).expand(frames.shape)
    if isinstance(how, Standard):
        mean, std = (frames.new_tensor(x).view(-1, 1, 1) for x in (how.mean, how.std))
        return (frames - mean) / std
    if how == "max":
        scale = frames.amax((-4, -3, -2, -1), keepdim=True)
    elif how == "std":
        scale = frames.std((-4, -3, -2, -1), correction=0, keepdim=True)
    else:
        raise ValueError(f'normalize={how!r}: "none", "max" or "std"')
    return frames / torch.where(scale > 0, scale, 1)


def _integer(largest: int) -> type[np.int32] | type[np.int64]:
    """The narrower of two types that holds `largest`."""
    return np.int32 if largest < 1 << 31 else np.int64
