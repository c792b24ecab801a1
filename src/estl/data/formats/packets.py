"""AEDAT 4 and Event Stream in pieces, as a camera writes them; `pieces` has the other formats."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from estl.data.formats.aedat4 import MAGIC, find_stream, packet_events, read_table, unpacked
from estl.data.formats.event_stream import BODY, EVENT, read_size
from estl.data.formats.events import MAX_BYTES, broken, check_inside, event_array

Pieces = Iterator[np.ndarray]


class Bytes:
    """Bytes that come in pieces, asked for by their number.

    >>> some = Bytes(b"ab", iter([b"cde", b"f"]))
    >>> some.take(4), some.take(2), some.take(1)
    (b'abcd', b'ef', None)
    """

    def __init__(self, head: bytes, data: Iterator[bytes]) -> None:
        self.rest, self.data = head, data

    def take(self, n: int) -> bytes | None:
        """The next n bytes, None if fewer come."""
        while len(self.rest) < n:
            some = next(self.data, None)
            if some is None:
                return None
            self.rest += some
        found, self.rest = self.rest[:n], self.rest[n:]
        return found


def aedat4_pieces(
    name: str, head: bytes, data: Iterator[bytes]
) -> tuple[tuple[int, int] | None, Pieces]:
    """The sensor's (H,W), and the events of each packet of the first stream of events.

    A file that is being written does not say where its table of contents will be; that comes after
    the last packet, where the number of a stream that the header describes should be.
    """
    path, coming = Path(name), Bytes(head, data)
    start = coming.take(len(MAGIC) + 4) or b""
    table = coming.take(min(int.from_bytes(start[-4:], "little"), MAX_BYTES))
    try:
        compression, contents, text = read_table(table or b"")
    except (struct.error, IndexError, UnicodeDecodeError):
        raise broken(path, f"its header at byte {len(MAGIC)} is truncated or broken") from None
    wanted, sensor = find_stream(path, text)
    known = set(map(int, re.findall(r'<node name="(\d+)"', text)))

    def pieces() -> Pieces:
        at = len(start) + len(table or b"")
        while contents < 0 or at < contents:
            number, size = struct.unpack("<ii", coming.take(8) or struct.pack("<ii", -1, 0))
            if number not in known:
                return
            if not 0 <= size <= MAX_BYTES:
                raise broken(path, f"the packet at byte {at} has {size} bytes")
            if (packed := coming.take(size)) is None:
                return
            if number == wanted:
                packet = unpacked(path, packed, compression, at)
                try:
                    found = packet_events(packet)
                except (struct.error, IndexError, ValueError):
                    raise broken(path, f"no events in the packet at byte {at}") from None
                whole = sensor or (1 << 15, 1 << 15)
                place = f"{path}: event in the packet at byte {at}"
                check_inside(found["x"], found["y"], whole, lambda _: place)  # noqa: B023
                yield event_array(found["t"], found["x"], found["y"], found["p"] != 0)
            at += 8 + size

    return sensor, pieces()


def event_stream_pieces(
    name: str, head: bytes, data: Iterator[bytes]
) -> tuple[tuple[int, int], Pieces]:
    """The sensor's (H,W), and events as their bytes come."""
    H, W = read_size(Path(name), head)

    def pieces() -> Pieces:
        now, rest = 0, head[BODY:]
        while True:
            parts = EVENT.findall(rest)
            found = [(waits, five) for waits, five, _ in parts if five]
            waited = np.fromiter((waits.count(b"\xff") for waits, _ in found), np.int64, len(found))
            fives = b"".join(five for _, five in found)
            event = np.frombuffer(fives, [("d", "u1"), ("xy", "<u2", 2)])
            x, y = event["xy"].astype(np.int64).T
            check_inside(x, y, (H, W), lambda i: f"{name}: event {i} of a piece")
            t = now + np.cumsum(127 * waited + (event["d"] >> 1))
            yield event_array(t, x, H - 1 - y, event["d"] & 1)
            # What an event that is not whole yet begins with, and the time before it.
            now = int(t[-1]) if len(t) else now
            now += 127 * sum(waits.count(b"\xff") for waits, five, _ in parts if not five)
            if (some := next(data, None)) is None:
                return
            rest = max((left for _, _, left in parts), key=len) + some

    return (H, W), pieces()
