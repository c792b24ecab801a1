"""Long recordings cut by time, and the sizes and times that a user writes."""

import re
from collections.abc import Iterator

import numpy as np

from estl.data.formats.events import EVENT

Size = tuple[int, int]

Span = tuple[int, int]
"""When something begins and ends, in microseconds since the recording's first event."""

_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}


def microseconds(time: str | int, least: int = 1) -> int:
    """A time as a user writes it, "300ms", "1.5s", "250us": `least` microseconds or more.

    Raises:
        ValueError: no such time; a number without a unit, as 3 may mean seconds.

    >>> microseconds("300ms"), microseconds("1.5s"), microseconds("250us")
    (300000, 1500000, 250)
    """
    found = re.fullmatch(r"([0-9.]+) ?(us|ms|s)?", str(time))
    if found and not found[2]:
        raise ValueError(f"{time} is a time without a unit: give {time}ms, {time}s or {time}us")
    try:
        number = float(found[1]) * _UNITS[found[2]] if found else -1.0
    except ValueError:
        number = -1.0
    if not least <= number < 1 << 53:
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


def windows(t: np.ndarray, window: int, stride: int, within: Span | None = None) -> list[Span]:
    """Windows of time [start, stop) since the first event, in microseconds, that have events.

    Window k starts at k `stride` and is as long as `window`; a remainder at the end that is too
    short for one is left out. A recording shorter than a window is one. The same holds `within` a
    stretch of it, which no window leaves.

    Args:
        t: times of the events, in order, at least one.
        window: length, in microseconds.
        stride: from the start of one to the start of the next.
        within: the stretch, of a recording that goes on; the whole recording if None.

    >>> windows(np.array([5, 9, 25, 34]), window=10, stride=10)
    [(0, 10), (20, 30)]
    >>> windows(np.array([5, 9, 25, 34]), window=10, stride=10, within=(19, 25))
    [(19, 25)]
    """
    begin, end = within or (0, int(t[-1] - t[0]) + 1)
    starts = [begin + k * stride for k in range(max(0, end - begin - window) // stride + 1)]
    # A window longer than its stretch ends with it; what follows may be of another class.
    length = min(window, end - begin) if within else window
    first, last = (
        np.searchsorted(t, [t[0] + start + more for start in starts]) for more in (0, length)
    )
    return [
        (start, start + length)
        for start, some in zip(starts, (last > first).tolist(), strict=True)
        if some
    ]


class Cutter:
    """Windows of events that come in pieces: those that `windows` finds in all of them together.

    Only the events of windows that are not over yet are kept.

    Args:
        window: length, in microseconds.
        stride: from the start of one to the start of the next.

    >>> cutter = Cutter(window=10, stride=10)
    >>> events = np.zeros(4, EVENT)
    >>> events["t"] = [5, 9, 25, 34]
    >>> [span for some in (events[:3], events[3:]) for span, _ in cutter.add(some)]
    [(0, 10)]
    >>> [(span, part["t"].tolist()) for span, part in cutter.end()]
    [((20, 30), [25, 34])]
    """

    def __init__(self, window: int, stride: int) -> None:
        self.window, self.stride = window, stride
        self.first: int | None = None
        self.start = 0
        self.given = False
        self.kept = np.empty(0, EVENT)

    def add(self, events: np.ndarray) -> Iterator[tuple[Span, np.ndarray]]:
        """The windows that are over with these events, at least one, and their events."""
        if self.first is None:
            self.first = int(events["t"][0])
        self.kept = np.concatenate([self.kept, events])
        yield from self._until(int(events["t"][-1]) - self.first)

    def end(self) -> Iterator[tuple[Span, np.ndarray]]:
        """The windows that are over when no more events come."""
        if self.first is None or not len(self.kept):
            return
        yield from self._until(int(self.kept["t"][-1]) - self.first + 1)
        if not self.given:  # a recording shorter than a window is one
            yield (0, self.window), self.kept

    def _until(self, now: int) -> Iterator[tuple[Span, np.ndarray]]:
        while (stop := self.start + self.window) <= now and len(self.kept):
            t = self.kept["t"] - self.first
            a, b = np.searchsorted(t, (self.start, stop)).tolist()
            if b > a:
                self.given = True
                yield (self.start, stop), self.kept[a:b]
            self.start += self.stride
            if a == b and b < len(t):  # on to the first window that has the next event
                behind = int(t[b]) - self.window - self.start + 1
                self.start += max(0, -(-behind // self.stride)) * self.stride
            self.kept = self.kept[np.searchsorted(t, self.start) :]
