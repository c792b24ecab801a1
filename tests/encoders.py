"""Recordings written byte by byte, each format after its own description; no reader is asked.

AEDAT 4: iniVation, "AEDAT File Formats" and dv-processing's schemas, as FlatBuffers lays tables
out. EVT 2.0, 2.1 and 3.0, and DAT: Prophesee, "Data Encoding Formats" and "DAT File Format". Event
Stream: neuromorphic-paris, "event_stream", version 2. An event is (t, x, y, p), rows going down.
"""

import struct
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

Event = tuple[int, int, int, int]
Size = tuple[int, int]  # H, W

ON, OFF = 1, 0


def as_events(array: np.ndarray) -> list[Event]:
    return [(int(t), int(x), int(y), int(p)) for t, x, y, p in array.tolist()]


# AEDAT 4: a header, then packets of a stream's number, a size, and a FlatBuffer


def prefixed(buffer: bytes) -> bytes:
    return struct.pack("<I", len(buffer)) + buffer


def io_header(size: Size | None, compression: int = 0, kind: str = "EVTS") -> bytes:
    """Table IOHeader {compression: int; dataTablePosition: long = -1; infoNode: string}."""
    H, W = size or (0, 0)
    numbers = f"""<attr key="sizeX" type="int">{W}</attr><attr key="sizeY" type="int">{H}</attr>"""
    node = (
        '<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
        '<node name="0" path="/mainloop/Recorder/outInfo/0/">'
        '<attr key="compression" type="string">NONE</attr>'
        '<attr key="originalModuleName" type="string">capture</attr>'
        '<attr key="originalOutputName" type="string">events</attr>'
        '<attr key="typeDescription" type="string">Array of events (polarity ON/OFF).</attr>'
        f'<attr key="typeIdentifier" type="string">{kind}</attr>'
        '<node name="info" path="/mainloop/Recorder/outInfo/0/info/">'
        f'{numbers if size else ""}<attr key="source" type="string">DVXplorer_1</attr>'
        "</node></node></node></dv>"
    ).encode()
    vtable = struct.pack("<HHHHH", 10, 20, 4, 8, 16) + bytes(2)
    table = struct.pack("<iiqI", 12, compression, -1, 4)
    text = struct.pack("<I", len(node)) + node + b"\0"
    text += bytes(-len(text) % 4)
    return struct.pack("<I", 20) + b"IOHE" + vtable + table + text


def event_packet(events: Sequence[Event]) -> bytes:
    """Table EventPacket {elements: [Event]}, Event {timestamp: long; x, y: short; on: bool}."""
    head = struct.pack("<I", 16) + b"EVTS" + struct.pack("<HHH", 6, 8, 4) + bytes(2)
    head += struct.pack("<iI", 8, 4)
    body = b"".join(struct.pack("<qhh?3x", t, x, y, bool(p)) for t, x, y, p in events)
    return head + struct.pack("<I", len(events)) + body


def zstd_stored(data: bytes) -> bytes:
    """A Zstandard frame (RFC 8878) of raw blocks, which compresses nothing."""
    size = 1 << 16
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    body = b"".join(
        struct.pack("<I", len(block) << 3 | (i == len(blocks) - 1))[:3] + block
        for i, block in enumerate(blocks)
    )
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(data)) + body


def lz4_packed(data: bytes) -> bytes:
    import lz4.frame

    return bytes(lz4.frame.compress(data))


PACKED = {"none": (0, bytes), "lz4": (1, lz4_packed), "zstd": (3, zstd_stored)}


def aedat4(
    events: Sequence[Event], size: Size | None, each: int = 1000, packed: str = "none"
) -> bytes:
    number, pack = PACKED[packed]
    data = b"#!AER-DAT4.0\r\n" + prefixed(io_header(size, number))
    for i in range(0, len(events), each):
        packet = pack(prefixed(event_packet(events[i : i + each])))
        data += struct.pack("<ii", 0, len(packet)) + packet
    return data


# EVT and DAT: lines that start with %, then words, little endian


def evt_head(version: str, size: Size | None) -> bytes:
    number = {"2": "2.0", "2.1": "2.1", "3": "3.0"}[version]
    lines = ["% camera_integrator_name Prophesee", "% date 2024-01-02 03:04:05", f"% evt {number}"]
    if size:
        H, W = size
        lines += [f"% format EVT{number.replace('.0', '').replace('.', '')};height={H};width={W}"]
        lines += [f"% geometry {W}x{H}"]
    return "\n".join([*lines, "% end", ""]).encode()


def evt2(events: Sequence[Event], size: Size | None) -> bytes:
    words, high = [], -1
    for t, x, y, p in events:
        if t >> 6 != high:
            high = t >> 6
            words.append(0x8 << 28 | high & 0xFFFFFFF)
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    return evt_head("2", size) + struct.pack(f"<{len(words)}I", *words)


def evt21(events: Sequence[Event], size: Size | None) -> bytes:
    """Events that follow each other in a row of 32 pixels, of one time and polarity, are a word."""
    words, high = [], -1

    def where(event: Event) -> tuple[int, int, int, int]:
        t, x, y, p = event
        return t, x & ~31, y, p

    for (t, x, y, p), group in groupby(events, where):
        if t >> 6 != high:
            high = t >> 6
            words.append(0x8 << 60 | (high & 0xFFFFFFF) << 32)
        last, valid = -1, 0
        for _, column, _, _ in group:
            if column <= last:  # a second event of a pixel, or one to the left, is another word
                words.append(p << 60 | (t & 63) << 54 | x << 43 | y << 32 | valid)
                valid = 0
            last, valid = column, valid | 1 << (column - x)
        words.append(p << 60 | (t & 63) << 54 | x << 43 | y << 32 | valid)
    return evt_head("2.1", size) + struct.pack(f"<{len(words)}Q", *words)


def evt3(events: Sequence[Event], size: Size | None, vectors: bool = True) -> bytes:
    """Runs of neighbours in a row, of one time and polarity, are vectors of 12."""
    words: list[int] = []
    high = low = row = -1
    i = 0
    while i < len(events):
        t, x, y, p = events[i]
        while high != t >> 12:  # as a camera does, it tells every turn of the low clock
            high, low = (t >> 12 if high < 0 else high + 1), -1
            words.append(0x8 << 12 | high & 0xFFF)
        if (t & 0xFFF) != low:
            low = t & 0xFFF
            words.append(0x6 << 12 | low)
        if y != row:
            row = y
            words.append(y)
        run = 1
        while i + run < len(events) and events[i + run] == (t, x + run, y, p):
            run += 1
        if not vectors or run < 3:
            words.append(0x2 << 12 | p << 11 | x)
            i += 1
            continue
        words.append(0x3 << 12 | p << 11 | x)
        for start in range(0, run, 12):
            n = min(12, run - start)
            words.append((0x5 if n <= 8 else 0x4) << 12 | (1 << n) - 1)
        i += run
    return evt_head("3", size) + struct.pack(f"<{len(words)}H", *words)


def dat(events: Sequence[Event], size: Size | None) -> bytes:
    head = "% Data file containing CD events.\n% Version 2\n% Date 2024-01-02 03:04:05\n"
    if size:
        head += f"% Height {size[0]}\n% Width {size[1]}\n"
    words = [struct.pack("<II", t, p << 28 | y << 14 | x) for t, x, y, p in events]
    return head.encode() + bytes([12, 8]) + b"".join(words)


# Event Stream: bytes of time that has passed, rows counted from below


def event_stream(events: Sequence[Event], size: Size) -> bytes:
    H, W = size
    data, now = b"Event Stream" + bytes([2, 0, 0, 1]) + struct.pack("<HH", W, H), 0
    for t, x, y, p in events:
        waits, rest = divmod(t - now, 127)
        data += b"\xff" * waits + bytes([rest << 1 | p]) + struct.pack("<HH", x, H - 1 - y)
        now = t
    return data


# Texts and arrays


def csv(
    events: Sequence[Event], size: Size | None, columns: str = "txyp", head: bool = True
) -> bytes:
    """The size, where one is given, stands as faery has it, x@640."""
    order = ["txyp".index(name) for name in columns]
    sides = {"x": f"@{size[1]}", "y": f"@{size[0]}"} if size else {}
    lines = [",".join(name + sides.get(name, "") for name in columns)] if head else []
    lines += [",".join(str(event[i]) for i in order) for event in events]
    return ("\n".join(lines) + "\n").encode()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def hdf5(path: Path, events: Sequence[Event], size: Size | None, layout: str = "plain") -> Path:
    """As Prophesee ("cd"), DSEC ("events") or a user ("plain") lays the columns out."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    t, x, y, p = np.array(events, np.int64).reshape(-1, 4).T
    with h5py.File(path, "w") as file:
        if layout == "cd":
            table = np.empty(len(t), [("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
            for name, column in zip("txyp", (t, x, y, p), strict=True):
                table[name] = column
            file.create_dataset("CD/events", data=table, compression="gzip")
        elif layout == "events":
            start = int(t[0]) if len(t) else 0
            file["t_offset"] = start
            file["ms_to_idx"] = np.zeros(3, np.uint64)
            for name, column, kind in zip("txyp", (t - start, x, y, p), "LHHB", strict=True):
                file[f"events/{name}"] = column.astype(kind)
        else:
            for name, column in zip("txyp", (t, x, y, p), strict=True):
                file[name] = column
        if size:
            file.attrs["geometry"] = f"{size[1]}x{size[0]}"
    return path
