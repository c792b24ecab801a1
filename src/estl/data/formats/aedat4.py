"""AEDAT 4 recordings, as DV writes them.

The container is that of iniVation's "AEDAT File Formats", its tables those of dv-processing's
schemas for FlatBuffers. They are read here and not by faery, which ends the process, with no error
to catch, where some bytes of such a file are damaged.
"""

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from estl.data.formats.events import (
    broken,
    check_inside,
    checked_length,
    event_array,
    finish,
    library,
)

MAGIC = b"#!AER-DAT4.0\r\n"
_EVENT = np.dtype(
    {
        "names": ["t", "x", "y", "p"],
        "formats": ["<i8", "<i2", "<i2", "u1"],
        "offsets": [0, 8, 10, 12],
        "itemsize": 16,
    }
)


def read_aedat4(path: str | Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of the first stream of events in an AEDAT 4 recording, and the sensor's (H,W).

    After a line come a table (compression, where the table of contents is, a description in XML)
    and packets: the number of a stream, a size, and so many bytes, compressed by LZ4, Zstandard or
    not at all, of a table of events of 16 bytes. Packets of other streams are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no stream of events, a truncated or oversized file, broken bytes, time that runs
            backwards, an event outside the sensor, no events, or a library that is missing.
    """
    path = Path(path)
    length = checked_length(path)
    raw = path.read_bytes()
    start = len(MAGIC)
    try:
        (size,) = struct.unpack_from("<I", raw, start)
        table = raw[start + 4 : start + 4 + size]
        compression, contents, text = read_table(table)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise broken(path, f"its header at byte {start} is truncated or broken") from None
    stream, sensor = find_stream(path, text)
    stop = length if contents < 0 else contents
    if stop > length:
        raise broken(path, f"truncated: {length} bytes, and its table of contents at byte {stop}")
    start += 4 + size
    pieces, where = [], []
    while start < stop:
        if start + 8 > stop:
            raise broken(path, f"truncated in the packet at byte {start}")
        number, size = struct.unpack_from("<ii", raw, start)
        if size < 0 or start + 8 + size > stop:
            raise broken(path, f"truncated in the packet at byte {start}, which has {size} bytes")
        if number == stream:
            packet = unpacked(path, raw[start + 8 : start + 8 + size], compression, start)
            try:
                pieces.append(packet_events(packet))
            except (struct.error, IndexError, ValueError):
                raise broken(path, f"no events in the packet at byte {start}") from None
            where.append(start)
        start += 8 + size
    event = np.concatenate([np.empty(0, _EVENT), *pieces])
    packet_of = np.repeat(where, [len(piece) for piece in pieces]) if pieces else np.empty(0, int)

    def place(i: int) -> str:
        return f"the packet at byte {packet_of[i]}"

    check_inside(
        event["x"],
        event["y"],
        sensor or (1 << 15, 1 << 15),
        lambda i: f"{path}: event in {place(i)}",
    )
    events = event_array(event["t"], event["x"], event["y"], event["p"] != 0)
    return finish(path, events, sensor, place)


def _field(table: bytes, at: int, i: int) -> int | None:
    """Where the i-th field of the FlatBuffers table at `at` is, None if it is left out."""
    (back,) = struct.unpack_from("<i", table, at)
    known, _ = struct.unpack_from("<HH", table, at - back)
    if at < back or 4 + 2 * i >= known:
        return None
    (offset,) = struct.unpack_from("<H", table, at - back + 4 + 2 * i)
    return at + offset if offset else None


def _follow(table: bytes, at: int) -> int:
    """Where the offset at `at` points."""
    (offset,) = struct.unpack_from("<I", table, at)
    return at + int(offset)


def read_table(table: bytes) -> tuple[int, int, str]:
    """Compression, byte of the table of contents (-1: none), and the description of the streams."""
    root = _follow(table, 0)
    fields = [_field(table, root, i) for i in range(3)]
    compression = 0 if fields[0] is None else struct.unpack_from("<i", table, fields[0])[0]
    contents = -1 if fields[1] is None else struct.unpack_from("<q", table, fields[1])[0]
    if fields[2] is None:
        raise IndexError("no description")
    text = _follow(table, fields[2])
    (size,) = struct.unpack_from("<I", table, text)
    return compression, contents, table[text + 4 : text + 4 + size].decode()


def find_stream(path: Path, text: str) -> tuple[int, tuple[int, int] | None]:
    """Number of the first stream of events, and the (H,W) of its sensor, None if not described."""
    # Each stream is a node named by its number, that says what it is and, in a node inside, more.
    parts = re.split(r'<node name="(\d+)"', text)[1:]
    for number, part in zip(parts[::2], parts[1::2], strict=True):
        facts = dict(re.findall(r'<attr key="(\w+)"[^>]*>([^<]*)</attr>', part))
        if facts.get("typeIdentifier") == "EVTS":
            sides = facts.get("sizeY", ""), facts.get("sizeX", "")
            known = all(side.isdecimal() and 0 < int(side) <= 1 << 15 for side in sides)
            return int(number), (int(sides[0]), int(sides[1])) if known else None
    raise ValueError(f"{path}: its header describes no stream of events: record events")


def unpacked(path: Path, packet: bytes, compression: int, at: int) -> bytes:
    """A packet, which is at byte `at`, as it was before it was compressed."""
    unpack: Any
    if compression == 0:
        return packet
    if compression in (1, 2):
        unpack = library("lz4.frame", path, "AEDAT 4 with LZ4").decompress
    elif compression in (3, 4):
        zstandard = library("zstandard", path, "AEDAT 4 with Zstandard")
        unpack = lambda x: zstandard.ZstdDecompressor().decompressobj().decompress(x)  # noqa: E731
    else:
        raise broken(path, f"compression {compression}, which is not one of 0 to 4")
    try:
        return bytes(unpack(packet))
    except Exception as error:  # of either library, or memory that there is not
        reason = " ".join(str(error).split())
        raise broken(path, f"the packet at byte {at} cannot be unpacked ({reason})") from None


def packet_events(packet: bytes) -> np.ndarray:
    """Events of a packet: its size, and a table with one vector of them."""
    (size,) = struct.unpack_from("<I", packet)
    table = packet[4 : 4 + size]
    if (field := _field(table, _follow(table, 0), 0)) is None:
        return np.empty(0, _EVENT)
    vector = _follow(table, field)
    (count,) = struct.unpack_from("<I", table, vector)
    return np.frombuffer(table, _EVENT, count, vector + 4)
