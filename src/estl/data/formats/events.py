"""What the readers of recordings share: the type of an event, and the checks of a file."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

EVENT = np.dtype([("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.int8)])
"""One event: time in microseconds, column, row (down), polarity (1 = ON, brighter; 0 = OFF)."""

MAX_BYTES = 4 << 30
"""Size limit of a recording. Reading takes up to thirteen times the file in memory: 8 GB for 150
million events in an EVT 2 file of 600 MB."""


def broken(path: str | Path, what: str) -> ValueError:
    """The error of a file that is no whole recording."""
    return ValueError(f"{path}: {what}: get the recording again")


def library(name: str, path: str | Path, what: str) -> Any:
    """A library that only some formats need, or ValueError that says how to get it."""
    try:
        return import_module(name)
    except ImportError:
        raise ValueError(
            f"{path}: reading {what} needs {name.partition('.')[0]}: pip install 'estl[recordings]'"
        ) from None


def checked_length(path: str | Path) -> int:
    """Bytes of a recording: a missing, an empty and an oversized file are refused unread."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recording {path}")
    length = path.stat().st_size
    if length == 0:
        raise broken(path, "no events (0 bytes)")
    if length > MAX_BYTES:
        most = f"{length} bytes, but at most {MAX_BYTES} are read at once"
        raise ValueError(f"{path}: {most}: cut it into shorter recordings")
    return length


def check_whole(path: str | Path, length: int, each: int, start: int = 0) -> None:
    """Raise ValueError unless events of `each` bytes fill the file from `start` to its end."""
    if odd := (length - start) % each:
        what = f"truncated in the event at byte {length - odd}"
        raise broken(path, f"{what} ({length} bytes, {each} an event)")


def finish(
    path: str | Path,
    events: np.ndarray,
    size: tuple[int, int] | None,
    place: Callable[[int], str],
    period: int | None = None,
) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events and the sensor's (H,W), once it is known that there are some, in order and inside.

    `place` says where an event is; a clock that wraps at `period` is undone.
    """
    if len(events) == 0:
        raise ValueError(f"{path}: no events: record it again")
    check_order(path, events["t"], place, period)
    if period is not None:
        events["t"] = unwrap(events["t"], period)
    if size is not None:
        check_inside(events["x"], events["y"], size, lambda i: f"{path}: event at {place(i)}")
    return events, size


def event_array(t: Any, x: Any, y: Any, p: Any) -> np.ndarray:
    """Structured array of `EVENT` from four columns."""
    events = np.empty(len(t), EVENT)
    events["t"], events["x"], events["y"], events["p"] = t, x, y, p
    return events


def check_order(
    path: str | Path, t: np.ndarray, place: Callable[[int], str], period: int | None = None
) -> None:
    """Raise ValueError, with its `place`, for an event that is earlier than the one before it.

    If the clock wraps at `period`, a step back by more than half of that is a wrap.
    """
    back = np.flatnonzero(t[1:] < t[:-1])
    if period is not None:
        back = back[t[back].astype(np.int64) - t[back + 1] <= period // 2]
    if len(back):
        i = int(back[0]) + 1
        raise ValueError(
            f"{path}: time runs backwards at {place(i)}, from {t[i - 1]} to {t[i]} microseconds: "
            "sort it by time, or get the recording again"
        )


def unwrap(clock: np.ndarray, period: int) -> np.ndarray:
    """Time of a clock that starts again at 0 after `period`: each step back is one period more.

    >>> unwrap(np.array([250, 3, 2]), period=256)
    array([250, 259, 514])
    """
    wrapped = clock[1:] < clock[:-1]
    if not wrapped.any():
        return clock
    return clock + np.append(0, np.cumsum(wrapped) * period)


def check_inside(
    x: np.ndarray,
    y: np.ndarray,
    size: tuple[int, int],
    name: Callable[[int], str],
    what: str = "sensor",
) -> None:
    """Raise ValueError, with its `name`, for an event outside the (H,W) of `what`."""
    H, W = size
    if len(x) and (x.min() < 0 or x.max() >= W or y.min() < 0 or y.max() >= H):
        i = int(((x < 0) | (x >= W) | (y < 0) | (y >= H)).argmax())
        raise ValueError(f"{name(i)}, x={x[i]} y={y[i]}, outside the {what} of H={H} W={W}")
