"""Event recordings: read a file, lay the events out as frames."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

EVENT = np.dtype([("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.int8)])
"""One event: time in microseconds, column, row (down), polarity (1 = ON, brighter; 0 = OFF)."""

Slicing = Literal["count", "time"]

_BYTES = 5
_WRAP = 1 << 23


def read_events(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Events of a recording in the ATIS binary format of N-MNIST and N-Caltech101.

    Five bytes an event, big endian: x (8 bits), y (8 bits), polarity (1 bit), time in microseconds
    (23 bits). The time wraps after 8.4 s; a wrap is undone. A file in which it runs backwards
    otherwise is broken: of 803 recordings of the two sets, none does, not by a microsecond.

    Args:
        path: the recording.
        size: the sensor's (H,W), to refuse events outside of it.

    Returns:
        Structured array of `EVENT`, in the order of the file, which is that of time.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or empty file, time that runs backwards, an event outside `size`; the
            text names the file and the byte.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recording {path}")
    raw = np.fromfile(path, np.uint8)
    if len(raw) % _BYTES:
        raise ValueError(
            f"{path}: truncated in the event at byte {len(raw) // _BYTES * _BYTES} "
            f"({len(raw)} bytes, {_BYTES} an event): fetch the file again"
        )
    if len(raw) == 0:
        raise ValueError(f"{path}: no events (0 bytes): fetch the file again")
    x, y, high, mid, low = raw.reshape(-1, _BYTES).T
    t = (high & 127).astype(np.int64) << 16 | mid.astype(np.int64) << 8 | low

    step = np.diff(t)
    if (step < 0).any():
        wrapped = step < -_WRAP // 2
        back = np.flatnonzero((step < 0) & ~wrapped)
        if len(back):
            i = int(back[0]) + 1
            raise ValueError(
                f"{path}: time runs backwards at byte {_BYTES * i}, "
                f"from {t[i - 1]} to {t[i]} microseconds: fetch the file again"
            )
        t[1:] += np.cumsum(wrapped) * _WRAP

    events = np.empty(len(t), EVENT)
    events["t"], events["x"], events["y"], events["p"] = t, x, y, high >> 7
    if size is not None and (bad := _outside(events, size)) is not None:
        raise ValueError(
            f"{path}: event at byte {_BYTES * bad}, x={x[bad]} y={y[bad]}, outside the sensor of "
            f"H={size[0]} W={size[1]}"
        )
    return events


def to_frames(
    events: np.ndarray, steps: int, size: tuple[int, int], by: Slicing = "count"
) -> Float[Tensor, "T 2 H W"]:
    """Number of events per step, polarity and pixel; channel 0 is OFF, channel 1 is ON.

    Every event is in exactly one frame, so the frames sum to the number of events. With n events,
    the first at t_0 and the last at t_1, event i at time t goes to step

        by="count":  floor(i T / n)                        (slices of equal count, up to one event)
        by="time":   floor((t - t_0) T / (t_1 - t_0 + 1))  (equal windows, the last event included)

    Args:
        events: structured array of `EVENT`, in order of time.
        steps: T.
        size: (H,W) of the frames.
        by: "count" or "time".

    Raises:
        ValueError: an event outside `size`, `steps` below 1, or an unknown `by`.

    >>> events = np.array([(0, 0, 0, 1), (10, 1, 0, 0), (99, 1, 0, 1)], EVENT)
    >>> to_frames(events, steps=2, size=(1, 2), by="time")[:, 1]  # ON
    tensor([[[1., 0.]],
            [[0., 1.]]])
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1")
    if (i := _outside(events, size)) is not None:
        raise ValueError(
            f"event {i}, x={events['x'][i]} y={events['y'][i]}, outside the frame of "
            f"H={size[0]} W={size[1]}"
        )
    H, W = size
    if by == "count":
        step = np.arange(len(events)) * steps // max(len(events), 1)
    elif by == "time":
        t = events["t"] - events["t"].min(initial=np.iinfo(np.int64).max)
        step = t * steps // (t.max(initial=0) + 1)
    else:
        raise ValueError(f'by={by!r}: "count" or "time"')
    cell = ((step * 2 + (events["p"] > 0)) * H + events["y"]) * W + events["x"]
    counts = np.bincount(cell, minlength=steps * 2 * H * W)
    return torch.from_numpy(counts.astype(np.float32)).view(steps, 2, H, W)


def _outside(events: np.ndarray, size: tuple[int, int]) -> int | None:
    """Index of the first event outside (H,W), or None."""
    x, y = events["x"], events["y"]
    bad = (x < 0) | (x >= size[1]) | (y < 0) | (y >= size[0])
    return int(bad.argmax()) if bad.any() else None
