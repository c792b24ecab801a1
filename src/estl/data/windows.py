"""Long recordings cut by time, and the sizes and times that a user writes."""

import re

import numpy as np

Size = tuple[int, int]

_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}


def microseconds(time: str | int) -> int:
    """A time as a user writes it: "300ms", "1.5s", "250us", or a number of microseconds.

    >>> microseconds("300ms"), microseconds("1.5s"), microseconds(250)
    (300000, 1500000, 250)
    """
    found = re.fullmatch(r"([0-9.]+) ?(us|ms|s)?", str(time))
    try:
        number = float(found[1]) * _UNITS[found[2] or "us"] if found else 0.0
    except ValueError:
        number = 0.0
    if not 1 <= number < 1 << 53:
        raise ValueError(f"{time!r} is no time: give 300ms, 1.5s or 250us")
    return round(number)


def sensor_shape(size: str | Size | list[int] | None) -> Size | None:
    """A sensor's (H,W) as a user writes it: "720x1280", height first.

    >>> sensor_shape("720x1280"), sensor_shape((34, 34)), sensor_shape(None)
    ((720, 1280), (34, 34), None)
    """
    if size is None:
        return None
    found = re.fullmatch(r"([0-9]+)x([0-9]+)", size) if isinstance(size, str) else None
    sides = (int(found[1]), int(found[2])) if found else size
    if isinstance(sides, str) or len(sides) != 2 or not all(0 < s <= 1 << 15 for s in sides):
        raise ValueError(f"sensor={size!r}: give height and width in pixels, such as 720x1280")
    return sides[0], sides[1]


def windows(t: np.ndarray, window: int, stride: int) -> list[tuple[int, int]]:
    """Windows of time [start, stop) since the first event, in microseconds, that have events.

    Window k starts at k `stride` and is as long as `window`; what is left at the end is too short
    for one and is left out. A recording shorter than a window is one.

    Args:
        t: times of the events, in order, at least one.
        window: length, in microseconds.
        stride: from the start of one to the start of the next.

    >>> windows(np.array([5, 9, 25, 34]), window=10, stride=10)
    [(0, 10), (20, 30)]
    """
    whole = int(t[-1] - t[0]) + 1
    starts = [k * stride for k in range(max(0, whole - window) // stride + 1)]
    first, last = (
        np.searchsorted(t, [t[0] + start + more for start in starts]) for more in (0, window)
    )
    return [
        (start, start + window)
        for start, some in zip(starts, (last > first).tolist(), strict=True)
        if some
    ]
