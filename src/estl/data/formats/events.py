"""What every reader of recordings shares: the type of an event, and the checks of a file."""

from pathlib import Path

import numpy as np

EVENT = np.dtype([("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.int8)])
"""One event: time in microseconds, column, row (down), polarity (1 = ON, brighter; 0 = OFF)."""

MAX_BYTES = 512 << 20
"""No recording of the sets read here comes near this size; a larger file is refused unread."""


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
