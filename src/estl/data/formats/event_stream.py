"""Event Stream (`.es`) recordings, as neuromorphic-paris describes them."""

import re
from pathlib import Path

import numpy as np

from estl.data.formats.events import broken, checked_length, event_array, finish

MAGIC = b"Event Stream"
# Waits and an event, or else all that is left: a search that went on from every byte of a long wait
# before a truncated event would take hours.
EVENT = re.compile(rb"([\xfe\xff]*+)(?:([\x00-\xfd].{4})|(.*))", re.DOTALL)
BODY = len(MAGIC) + 8


def read_event_stream(path: str | Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Events of an Event Stream recording, version 2, of a DVS, and the sensor's (H,W).

    After "Event Stream", the version (3 bytes), the type (1 is DVS), width and height (2 bytes
    each, little endian) an event is 5 bytes: 7 bits of time since the one before and one of
    polarity; x; y, whose rows go up, here turned to go down. The byte 0xff stands for 127
    microseconds without an event, 0xfe for nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another version or type, a truncated or oversized file, an event outside the
            sensor, no events; the text names the file and the byte.
    """
    path = Path(path)
    checked_length(path)
    raw = path.read_bytes()
    H, W = read_size(path, raw)
    parts = EVENT.findall(raw, BODY)
    found = [(waits, five) for waits, five, _ in parts if five]
    rest = max((left for _, _, left in parts), key=len, default=b"")
    if rest:
        end = len(raw) - len(rest)
        raise broken(path, f"truncated in the event at byte {end} ({len(raw)} bytes)")
    ends = BODY + np.cumsum([len(waits) + 5 for waits, _ in found], dtype=np.int64)
    waited = np.fromiter((waits.count(b"\xff") for waits, _ in found), np.int64, len(found))
    event = np.frombuffer(b"".join(five for _, five in found), [("d", "u1"), ("xy", "<u2", 2)])
    x, y = event["xy"].astype(np.int64).T
    if len(x) and (x.max() >= W or y.max() >= H):  # before 16 bits are stored in 15
        i = int(((x >= W) | (y >= H)).argmax())
        raise broken(path, f"event at byte {ends[i] - 5}, x={x[i]} y={y[i]}, outside W={W} H={H}")
    t = np.cumsum(127 * waited + (event["d"] >> 1))
    events = event_array(t, x, H - 1 - y, event["d"] & 1)
    finish(path, events, (H, W), lambda i: f"byte {ends[i] - 5}")
    return events, (H, W)


def read_size(path: Path, raw: bytes) -> tuple[int, int]:
    """The sensor's (H,W) of a head, or ValueError for another kind of file."""
    if len(raw) < BODY:
        raise broken(path, f"truncated in the header, at byte {len(raw)}")
    version, kind = raw[len(MAGIC)], raw[len(MAGIC) + 3]
    if version != 2 or kind != 1:
        raise ValueError(
            f"{path}: version {version}, type {kind} of Event Stream at byte {len(MAGIC)} is not "
            "version 2, type 1 (DVS)"
        )
    W, H = np.frombuffer(raw[BODY - 4 : BODY], "<u2").tolist()
    if not (0 < H <= 1 << 15 and 0 < W <= 1 << 15):
        raise broken(path, f"its header has a sensor of height {H}, width {W}")
    return H, W
