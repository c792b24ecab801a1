"""AEDAT recordings: 2.0 as jAER writes it (CIFAR10-DVS), 3.1 as cAER writes it (DVS128 Gesture).

The formats are those of iniVation's "AEDAT File Formats"; the DVS128's address of AEDAT 2.0 is read
as jAER's class `DVS128` reads it.
"""

import re
import struct
from pathlib import Path

import numpy as np

from estl.data.formats.events import (
    broken,
    check_inside,
    check_order,
    check_whole,
    checked_length,
    event_array,
    unwrap,
)

DVS128 = (128, 128)

Between = tuple[int, int]
"""Events with first <= t < second, in microseconds of the recording's own clock."""

_PACKET = struct.Struct("<hhiiiiii")
_POLARITY = 1
_HEADER_BYTES = 1 << 20


def read_aedat(
    path: str | Path, size: tuple[int, int] | None = None, between: Between | None = None
) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of an AEDAT recording, and the sensor's (H,W).

    AEDAT 2.0: lines that start with '#', then per event a 32-bit address and a 32-bit time in
    microseconds, big endian. Only the DVS128's address is known: with a = bits 1 to 7 and
    b = bits 8 to 14, an event is at column 127 - a and, jAER's rows going up, row 127 - b; bit 0 is
    0 for ON. Bit 15 marks a signal at the camera's plug, which is no event and is left out. A time
    that wraps at 2^32 is undone.

    AEDAT 3.1: a header up to the line "#!END-HEADER", then packets, little endian. Only packets of
    polarity events count, and of these only events that the camera marked as valid. Time is
    tsOverflow 2^31 + timestamp; rows go down.

    Args:
        path: the recording.
        size: the sensor's (H,W), beyond which events are refused; if None, that of the DVS128 where
            the header names it.
        between: keep only events of this interval; packets of 3.1 outside of it are not decoded
            (nor are their events checked).

    Returns:
        Structured array of `EVENT` in order of time, and the sensor's (H,W), None if not known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a truncated or oversized file, a broken packet, time that runs
            backwards, an event outside the sensor, no events; the text names the file and the byte.
    """
    path = Path(path)
    checked_length(path)
    raw = np.asarray(np.memmap(path, np.uint8, "r"))
    version = bytes(raw[:11])
    if version == b"#!AER-DAT2.":
        events, at = _read_2(path, raw)
        size = size or DVS128
    elif version == b"#!AER-DAT3.":
        events, at, named = _read_3(path, raw, between)
        size = size or named
    else:
        raise ValueError(
            f"{path}: byte 0 starts neither '#!AER-DAT2.0' nor '#!AER-DAT3.1', "
            "the two AEDAT formats that are read"
        )
    if size is not None:
        check_inside(events["x"], events["y"], size, lambda i: f"{path}: event at byte {at[i]}")
    when = ""
    if between is not None:
        events = events[slice(*np.searchsorted(events["t"], between))]
        when = f" from {between[0]} to {between[1]} microseconds"
    if len(events) == 0:
        raise ValueError(f"{path}: no events{when}")
    return events, size


def _read_2(path: Path, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Events, and the byte of each."""
    head, start = bytes(raw[:_HEADER_BYTES]), 0
    while head[start : start + 1] == b"#":
        end = head.find(b"\n", start)
        if end < 0:
            raise broken(
                path,
                f"the header's line at byte {start} has no end in its first {len(head)} bytes",
            )
        start = end + 1
    check_whole(path, len(raw), 8, start)
    address, clock = raw[start:].view(">u4").reshape(-1, 2).astype(np.uint32).T
    at = start + 8 * np.arange(len(address))
    if (strange := address >> 16).any():
        i = int((strange > 0).argmax())
        raise ValueError(
            f"{path}: address {address[i]:#010x} at byte {at[i]} is not one of a DVS128, "
            "the only sensor whose AEDAT 2.0 is read"
        )
    check_order(path, clock, lambda i: f"byte {at[i]}", 1 << 32)
    seen = np.flatnonzero(address >> 15 == 0)
    address, t = address[seen], unwrap(clock, 1 << 32)[seen]
    x, y = 127 - (address >> 1 & 127), 127 - (address >> 8 & 127)
    return event_array(t, x, y, 1 - (address & 1)), at[seen]


def _read_3(
    path: Path, raw: np.ndarray, between: Between | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int] | None]:
    """Events, the byte of each, and the (H,W) of the sensor that the header names."""
    head = bytes(raw[:_HEADER_BYTES])
    end = re.search(rb"^#!END-HEADER\r?\n", head, re.MULTILINE)
    if end is None:
        raise broken(path, f"no line '#!END-HEADER' in its first {len(head)} bytes")
    named = re.search(rb"^#Source \d+: *DVS128\b", head[: end.start()], re.MULTILINE)
    packets = np.array(_packets(path, raw, end.end(), between), np.int64).reshape(-1, 3)
    start, count, overflow = packets.T
    # The byte of each event: where its packet's events start, and 8 for each one before it there.
    at = np.repeat(start - 8 * (count.cumsum() - count), count) + 8 * np.arange(count.sum())
    pieces = [raw[byte : byte + 8 * n] for byte, n, _ in packets]
    word = np.concatenate([raw[:0], *pieces]).view("<u4").reshape(-1, 2)
    valid = np.flatnonzero(word[:, 0] & 1)
    at = at[valid]
    data, stamp = word[valid, 0], word[valid, 1].view(np.int32)
    if (stamp < 0).any():
        i = int((stamp < 0).argmax())
        raise broken(path, f"negative time {stamp[i]} at byte {at[i]}")
    t = (np.repeat(overflow, count)[valid] << 31) + stamp
    check_order(path, t, lambda i: f"byte {at[i]}")
    events = event_array(t, data >> 17, data >> 2 & 0x7FFF, data >> 1 & 1)
    return events, at, DVS128 if named else None


def _packets(
    path: Path, raw: np.ndarray, start: int, between: Between | None
) -> list[tuple[int, int, int]]:
    """(byte of the first event, number of events, tsOverflow) of each packet of polarity events."""
    found = []
    while start < len(raw):
        body = start + _PACKET.size
        if body > len(raw):
            raise broken(path, f"truncated in the packet at byte {start}")
        kind, _, event, _, overflow, capacity, number, _ = _PACKET.unpack_from(raw.data, start)
        if event < 1 or overflow < 0 or not 0 <= number <= capacity:
            raise broken(
                path,
                f"broken packet at byte {start} (eventSize={event}, tsOverflow={overflow}, "
                f"capacity={capacity}, number={number})",
            )
        if kind == _POLARITY and event != 8:
            raise ValueError(f"{path}: eventSize={event} in the packet at byte {start}, not 8")
        stop = body + event * capacity
        if stop > len(raw):
            raise broken(
                path,
                f"truncated in the packet at byte {start}, which has {event * capacity} bytes of "
                f"events where {len(raw) - body} are left",
            )
        if kind == _POLARITY and number > 0:
            first, last = (
                (overflow << 31) + int.from_bytes(raw[byte : byte + 4].tobytes(), "little")
                for byte in (body + 4, body + 8 * number - 4)
            )
            if between is None or (last >= between[0] and first < between[1]):
                found.append((body, number, overflow))
        start = stop
    return found
