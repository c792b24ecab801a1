"""AEDAT recordings: 2.0 as jAER writes it (CIFAR10-DVS), 3.1 as cAER writes it (DVS128 Gesture).

The formats are those of iniVation's "AEDAT File Formats"; the DVS128's address of AEDAT 2.0 is read
as jAER's class `DVS128` reads it.
"""

import re
import struct
from pathlib import Path

import numpy as np

from estl.data.formats.events import EVENT, checked_length, outside, runs_back, unwrap

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
    0 for ON. Bit 15 marks a signal at the camera's plug, which is not an event and is left out. A
    time that wraps at 2^32 is undone.

    AEDAT 3.1: a header up to the line "#!END-HEADER", then packets, little endian. Packets of other
    things than polarity events are passed over, and so are events that the camera marked invalid.
    Time is tsOverflow 2^31 + timestamp; rows go down.

    Args:
        path: the recording.
        size: the sensor's (H,W), to refuse events outside of it; where it is None, that of the
            DVS128 if the header names it.
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
        return _read_2(path, raw, size or DVS128, between), size or DVS128
    if version == b"#!AER-DAT3.":
        return _read_3(path, raw, size, between)
    raise ValueError(
        f"{path}: byte 0 starts neither '#!AER-DAT2.0' nor '#!AER-DAT3.1', "
        "the two AEDAT formats that are read"
    )


def _read_2(
    path: Path, raw: np.ndarray, size: tuple[int, int], between: Between | None
) -> np.ndarray:
    head, start = bytes(raw[:_HEADER_BYTES]), 0
    while head[start : start + 1] == b"#":
        end = head.find(b"\n", start)
        if end < 0:
            raise ValueError(
                f"{path}: the header's line at byte {start} has no end in its first {len(head)} "
                "bytes: fetch the file again"
            )
        start = end + 1
    if odd := (len(raw) - start) % 8:
        raise ValueError(
            f"{path}: truncated in the event at byte {len(raw) - odd} "
            f"({len(raw) - start} bytes of events, 8 an event): fetch the file again"
        )
    address, clock = raw[start:].view(">u4").reshape(-1, 2).astype(np.uint32).T
    if (strange := address >> 16).any():
        i = int((strange > 0).argmax())
        raise ValueError(
            f"{path}: address {address[i]:#010x} at byte {start + 8 * i} is not one of a DVS128, "
            "the only sensor whose AEDAT 2.0 is read"
        )
    if (back := runs_back(clock, 1 << 32)) is not None:
        raise _backwards(path, clock, back, start + 8 * back)
    at = np.flatnonzero(address >> 15 == 0)
    address = address[at]
    events = np.empty(len(at), EVENT)
    events["t"] = unwrap(clock, 1 << 32)[at]
    events["x"] = 127 - (address >> 1 & 127).astype(np.int16)
    events["y"] = 127 - (address >> 8 & 127).astype(np.int16)
    events["p"] = 1 - (address & 1).astype(np.int8)
    return _checked(path, events, start + 8 * at, size, between)


def _read_3(
    path: Path, raw: np.ndarray, size: tuple[int, int] | None, between: Between | None
) -> tuple[np.ndarray, tuple[int, int] | None]:
    head = bytes(raw[:_HEADER_BYTES])
    end = re.search(rb"^#!END-HEADER\r?\n", head, re.MULTILINE)
    if end is None:
        raise ValueError(
            f"{path}: no line '#!END-HEADER' in its first {len(head)} bytes: fetch the file again"
        )
    if size is None and re.search(rb"^#Source \d+: *DVS128\b", head[: end.start()], re.MULTILINE):
        size = DVS128
    packets = _packets(path, raw, end.end(), between)
    count = np.array([n for _, n, _ in packets], np.int64)
    # The byte of each event: where its packet's events start, and 8 for each one before it there.
    first = np.cumsum(count) - count
    starts = np.array([start for start, _, _ in packets], np.int64)
    at = np.repeat(starts - 8 * first, count) + 8 * np.arange(count.sum())
    pieces = [raw[start : start + 8 * n] for start, n, _ in packets]
    word = np.concatenate([np.empty(0, np.uint8), *pieces]).view("<u4").reshape(-1, 2)
    valid = np.flatnonzero(word[:, 0] & 1)
    at = at[valid]
    data, stamp = word[valid, 0], word[valid, 1].view(np.int32)
    if (stamp < 0).any():
        i = int((stamp < 0).argmax())
        raise ValueError(f"{path}: negative time {stamp[i]} at byte {at[i]}: fetch the file again")
    overflow = np.array([overflow for _, _, overflow in packets], np.int64)
    events = np.empty(len(valid), EVENT)
    events["t"] = (np.repeat(overflow, count)[valid] << 31) + stamp
    events["x"] = data >> 17
    events["y"] = data >> 2 & 0x7FFF
    events["p"] = data >> 1 & 1
    if (back := runs_back(events["t"])) is not None:
        raise _backwards(path, events["t"], back, int(at[back]))
    return _checked(path, events, at, size, between), size


def _packets(
    path: Path, raw: np.ndarray, start: int, between: Between | None
) -> list[tuple[int, int, int]]:
    """(byte of the first event, number of events, tsOverflow) of each packet of polarity events."""
    found = []
    while start < len(raw):
        body = start + _PACKET.size
        if body > len(raw):
            raise ValueError(f"{path}: truncated in the packet at byte {start}: fetch it again")
        kind, _, event, _, overflow, capacity, number, _ = _PACKET.unpack_from(raw.data, start)
        if event < 1 or overflow < 0 or not 0 <= number <= capacity:
            raise ValueError(
                f"{path}: broken packet at byte {start} (eventSize={event}, tsOverflow={overflow}, "
                f"capacity={capacity}, number={number}): fetch the file again"
            )
        if kind == _POLARITY and event != 8:
            raise ValueError(f"{path}: eventSize={event} in the packet at byte {start}, not 8")
        stop = body + event * capacity
        if stop > len(raw):
            raise ValueError(
                f"{path}: truncated in the packet at byte {start}, which has {event * capacity} "
                f"bytes of events where {len(raw) - body} are left: fetch the file again"
            )
        if kind == _POLARITY and number > 0 and _touches(raw, body, number, overflow, between):
            found.append((body, number, overflow))
        start = stop
    return found


def _touches(
    raw: np.ndarray, body: int, number: int, overflow: int, between: Between | None
) -> bool:
    """Whether a packet of polarity events, by the times of its first and last, has any to keep."""
    if between is None:
        return True
    first, last = (
        (overflow << 31) + int.from_bytes(raw[byte : byte + 4].tobytes(), "little")
        for byte in (body + 4, body + 8 * number - 4)
    )
    return last >= between[0] and first < between[1]


def _checked(
    path: Path,
    events: np.ndarray,
    at: np.ndarray,
    size: tuple[int, int] | None,
    between: Between | None,
) -> np.ndarray:
    """The events of the interval; `at` is the byte of each."""
    if size is not None and (bad := outside(events["x"], events["y"], size)) is not None:
        raise ValueError(
            f"{path}: event at byte {at[bad]}, x={events['x'][bad]} y={events['y'][bad]}, outside "
            f"the sensor of H={size[0]} W={size[1]}"
        )
    place = ""
    if between is not None:
        events = events[slice(*np.searchsorted(events["t"], between))]
        place = f" from {between[0]} to {between[1]} microseconds"
    if len(events) == 0:
        raise ValueError(f"{path}: no events{place}")
    return events


def _backwards(path: Path, t: np.ndarray, back: int, byte: int) -> ValueError:
    return ValueError(
        f"{path}: time runs backwards at byte {byte}, from {t[back - 1]} to {t[back]} "
        "microseconds: fetch the file again"
    )
