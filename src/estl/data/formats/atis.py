"""The ATIS binary format of N-MNIST and N-Caltech101."""

from pathlib import Path

import numpy as np

from estl.data.formats.events import EVENT, checked_length, outside, runs_back, unwrap

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
