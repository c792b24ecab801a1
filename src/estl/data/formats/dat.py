"""Prophesee's DAT recordings, in which Gen1 and N-CARS come."""

from pathlib import Path

import numpy as np

from estl.data.formats.events import broken, check_whole, checked_length, event_array, finish
from estl.data.formats.evt import header_size, read_header

_HEADER_BYTES = 1 << 16
_CD = (0, 12)


def read_dat(path: str | Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of a DAT recording, version 2, and the sensor's (H,W) if the header has it.

    Lines that start with '%', a byte for the type of event and one for its size, then per event two
    words of 32 bits, little endian: the time in microseconds; x in 14 bits, y in 14 and polarity in
    4. The clock wraps after 71 minutes; that is undone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another version or type, a truncated or oversized file, time that runs
            backwards, an event outside the sensor, no events; the text names the file and the byte.
    """
    path = Path(path)
    checked_length(path)
    raw = np.memmap(path, np.uint8, "r")
    head, start = read_header(path, bytes(raw[:_HEADER_BYTES]))
    read_kind(path, head, bytes(raw[start : start + 2]), start)
    check_whole(path, len(raw), 8, start + 2)
    t, word = np.frombuffer(raw[start + 2 :].tobytes(), "<u4").reshape(-1, 2).T
    events = event_array(t, word & 0x3FFF, word >> 14 & 0x3FFF, word >> 28 > 0)
    size = header_size(path, head)
    return finish(path, events, size, lambda i: f"byte {start + 2 + 8 * i}", 1 << 32)


def read_kind(path: Path, head: dict[str, str], two: bytes, start: int) -> None:
    """Raise ValueError unless the header and two bytes at `start` are of events of 8 bytes."""
    if (version := head.get("version", "none")) != "2":
        raise ValueError(f"{path}: version {version[:20]!r} of DAT is not 2")
    if len(two) < 2:
        end = start + len(two)
        raise broken(path, f"truncated at byte {end}, where the type of the events should be")
    kind, each = two
    if kind not in _CD or each != 8:
        raise ValueError(
            f"{path}: events of type {kind} and {each} bytes at byte {start} are not "
            "of type 0 or 12 and 8 bytes"
        )
