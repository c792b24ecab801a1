"""Event recordings: read a file, lay the events out as frames.

The formats: ATIS `.bin` (N-MNIST, N-Caltech101) and `.npz` of four arrays here, jAER's and cAER's
`.aedat` (CIFAR10-DVS, DVS128 Gesture) in `aedat.py`; `read_recording` tells them apart.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

EVENT = np.dtype([("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.int8)])
"""One event: time in microseconds, column, row (down), polarity (1 = ON, brighter; 0 = OFF)."""

MAX_BYTES = 512 << 20
"""No recording of the sets read here comes near this size; a larger file is refused unread."""

Slicing = Literal["count", "time"]
Normalisation = Literal["none", "max", "std"]

_BYTES = 5
_WRAP = 1 << 23


def read_recording(path: str | Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of a recording in any format that is read, and the sensor's (H,W) if the file says it.

    `.bin` is ATIS (`read_events`), `.aedat` is AEDAT 2.0 or 3.1 (`estl.data.aedat.read_aedat`),
    `.npz` holds the arrays t, x, y, p (`read_npz`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, or a broken file.
    """
    from estl.data.aedat import read_aedat  # here, because it needs this module's names

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".bin":
        return read_events(path), None
    if suffix == ".aedat":
        return read_aedat(path)
    if suffix == ".npz":
        return read_npz(path), None
    raise ValueError(f"{path}: recordings are .bin (ATIS), .aedat or .npz (t, x, y, p) files")


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
        ValueError: truncated, empty or oversized file (`MAX_BYTES`), time that runs backwards, an
            event outside `size`; the text names the file and the byte.
    """
    length = checked_length(path)
    if length % _BYTES:
        raise ValueError(
            f"{path}: truncated in the event at byte {length // _BYTES * _BYTES} "
            f"({length} bytes, {_BYTES} an event): fetch the file again"
        )
    raw = np.fromfile(path, np.uint8)
    n = len(raw) // _BYTES
    # The last four bytes of each event as one number: y, polarity, time.
    word = np.ndarray(n, ">u4", raw.data, offset=1, strides=(_BYTES,)).astype(np.uint32)
    clock = word & (_WRAP - 1)
    if (back := runs_back(clock, _WRAP)) is not None:
        raise ValueError(
            f"{path}: time runs backwards at byte {_BYTES * back}, from {clock[back - 1]} to "
            f"{clock[back]} microseconds: fetch the file again"
        )
    x, y = np.ascontiguousarray(raw[::_BYTES]), np.ascontiguousarray(raw[1::_BYTES])
    if size is not None and (bad := outside(x, y, size)) is not None:
        raise ValueError(
            f"{path}: event at byte {_BYTES * bad}, x={x[bad]} y={y[bad]}, outside the sensor of "
            f"H={size[0]} W={size[1]}"
        )
    events = np.empty(n, EVENT)
    events["t"], events["x"], events["y"] = unwrap(clock, _WRAP), x, y
    events["p"] = word >> 23 & 1
    return events


def read_npz(path: str | Path) -> np.ndarray:
    """Events of a `.npz` file of four arrays of equal length: t, x, y, p, in order of time.

    So SpikingJelly keeps converted recordings. t is in microseconds; p above 0 is ON. Pickled
    arrays are refused, not executed.

    Returns:
        Structured array of `EVENT`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, no events, time that runs backwards, or a value that `EVENT`
            cannot hold; the text names the file and the event.
    """
    checked_length(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
            columns = {name: archive[name] for name in "txyp"}
    except Exception as error:  # zipfile, zlib and numpy between them raise a dozen kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a .npz file of t, x, y, p ({reason})") from None
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "iub" or len(column) != len(columns["t"]):
            raise ValueError(
                f"{path}: {name} has shape {column.shape} of {column.dtype}, t {columns['t'].shape}"
                f": four arrays of integers of the same length are needed"
            )
        if len(column) == 0:
            raise ValueError(f"{path}: no events: convert the recording again")
        low, high = (0, np.iinfo(EVENT[name]).max) if name in "xy" else (-1, 1)
        if name == "t":
            low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
        if int(column.min()) < low or int(column.max()) > high:
            i = int(((column < low) | (column > high)).argmax())
            raise ValueError(
                f"{path}: event {i} has {name}={column[i]}, outside {low} to {high}: "
                "convert the recording again"
            )
    t = columns["t"].astype(np.int64)
    if (back := runs_back(t)) is not None:
        raise ValueError(
            f"{path}: time runs backwards at event {back}, from {t[back - 1]} to {t[back]} "
            "microseconds: convert the recording again"
        )
    events = np.empty(len(t), EVENT)
    events["t"], events["x"], events["y"] = t, columns["x"], columns["y"]
    events["p"] = columns["p"] > 0
    return events


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
    if (i := outside(x, y, (rows, columns))) is not None:
        raise ValueError(
            f"event {i}, x={x[i]} y={y[i]}, outside the {'sensor' if sensor else 'frame'} of "
            f"H={rows} W={columns}"
        )
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


def normalise(
    frames: Float[Tensor, "*B T C H W"], how: Normalisation
) -> Float[Tensor, "*B T C H W"]:
    """Frames f on a common scale, each sample by itself, over its steps, channels and places:

        "none":  f, the same tensor
        "max":   f / max f
        "std":   f / sqrt(mean (f - mean f)^2)

    Nothing is subtracted, so a place without events stays 0. A sample whose divisor is 0 (no
    events at all) is left as it is.

    Args:
        frames: counts (T,C,H,W), or a batch of them.
        how: which of the three.

    Raises:
        ValueError: an unknown `how`.

    >>> normalise(torch.tensor([0.0, 1.0, 4.0]).view(1, 1, 1, 3), "max").flatten()
    tensor([0.0000, 0.2500, 1.0000])
    """
    if how == "none":
        return frames
    if how == "max":
        scale = frames.amax((-4, -3, -2, -1), keepdim=True)
    elif how == "std":
        scale = frames.std((-4, -3, -2, -1), correction=0, keepdim=True)
    else:
        raise ValueError(f'normalise={how!r}: "none", "max" or "std"')
    return frames / torch.where(scale > 0, scale, 1)


def checked_length(path: str | Path) -> int:
    """Bytes of a recording, known without reading it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty file or one of more than `MAX_BYTES`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recording {path}")
    length = path.stat().st_size
    if length == 0:
        raise ValueError(f"{path}: no events (0 bytes): fetch the file again")
    if length > MAX_BYTES:
        raise ValueError(
            f"{path}: {length} bytes, but a recording has at most {MAX_BYTES}: fetch the file again"
        )
    return length


def runs_back(clock: np.ndarray, period: int | None = None) -> int | None:
    """Index of the first event earlier than the one before it, or None.

    Where the clock wraps at `period`, a step back by more than half of it is a wrap.

    >>> runs_back(np.array([250, 3, 2]), period=256)
    2
    """
    back = np.flatnonzero(clock[1:] < clock[:-1])
    if period is not None:
        back = back[clock[back].astype(np.int64) - clock[back + 1] <= period // 2]
    return int(back[0]) + 1 if len(back) else None


def unwrap(clock: np.ndarray, period: int) -> np.ndarray:
    """Time of a clock that starts again at 0 after `period`: each step back is one period more.

    >>> unwrap(np.array([250, 3, 2]), period=256)
    array([250, 259, 514])
    """
    wrapped = clock[1:] < clock[:-1]
    if not wrapped.any():
        return clock
    return clock + np.append(0, np.cumsum(wrapped) * period)


def outside(x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> int | None:
    """Index of the first event outside (H,W), or None."""
    for column, extent in ((x, size[1]), (y, size[0])):
        if len(column) and (column.min() < 0 or column.max() >= extent):
            return int(((x < 0) | (x >= size[1]) | (y < 0) | (y >= size[0])).argmax())
    return None


def _integer(largest: int) -> type[np.int32] | type[np.int64]:
    """The narrower of two types that holds `largest`."""
    return np.int32 if largest < 1 << 31 else np.int64
