"""Recordings that come in pieces, as a camera writes them.

Each reader is a generator that keeps what the next piece needs from those before, and gives the
events that the whole file would give. An incomplete event at the end is left out: a stream may end
anywhere.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from estl.data.formats.aedat4 import read_aedat4
from estl.data.formats.atis import WRAP
from estl.data.formats.columns import from_columns, read_csv, read_head, whole_numbers
from estl.data.formats.dat import read_dat, read_kind
from estl.data.formats.event_stream import read_event_stream
from estl.data.formats.events import check_inside, check_order, event_array, unwrap
from estl.data.formats.evt import (
    WORD,
    header_size,
    read_2,
    read_3,
    read_21,
    read_evt,
    read_header,
    read_version,
)
from estl.data.formats.packets import aedat4_pieces, event_stream_pieces
from estl.data.formats.recording import SUFFIXES, read_atis, told

Pieces = Iterator[np.ndarray]

_ENOUGH = 256
"""Bytes that tell a format that has no head."""

_HEADER = re.compile(rb"(?:%[^\n]*\n)*?(?:% *end\s*?\n|%[^\n]*\n[^%])")
"""Lines that start with % and what ends them."""

_LONGEST = 1 << 16

FOLLOWED = "ATIS, AEDAT 4, EVT 2.0, 2.1 and 3.0, DAT, Event Stream and CSV"


class Clock:
    """Times of a clock that starts again at 0 after `period`, from pieces of its readings.

    >>> clock = Clock("x.bin", period=256)
    >>> clock(np.array([250, 3])), clock(np.array([200, 1]))
    (array([250, 259]), array([456, 513]))
    """

    def __init__(self, name: str, period: int) -> None:
        self.name, self.period = name, period
        self.base, self.last, self.count = 0, 0, 0

    def __call__(self, clock: np.ndarray) -> np.ndarray:
        """The times of the next readings, or ValueError where the clock runs backwards."""
        if not len(clock):
            return clock.astype(np.int64)
        all_of_it = np.append(self.last, clock.astype(np.int64))
        count = self.count - 1
        check_order(self.name, all_of_it, lambda i: f"event {count + i}", self.period)
        times: np.ndarray = self.base + unwrap(all_of_it, self.period)[1:]
        self.last, self.base = int(clock[-1]), int(times[-1]) - int(clock[-1])
        self.count += len(clock)
        return times


def read_pieces(name: str, data: Iterator[bytes]) -> tuple[tuple[int, int] | None, Pieces]:
    """The sensor's (H,W), if the head tells it, and events as their bytes come.

    Args:
        name: of the file or source.
        data: bytes from its start on.

    Raises:
        ValueError: nothing came, or another format; on iterating, time that runs backwards, an
            event outside of the sensor, lines that are no numbers.
    """
    head = b""
    for some in data:
        head += some
        whole = head[:1] != b"%" or _HEADER.match(head) or len(head) > _LONGEST
        if whole and len(head) >= _ENOUGH:
            break
    if not head:
        raise ValueError(f"{name}: no events came: start the camera, or give another source")
    read = told(head) or SUFFIXES.get(Path(name).suffix.lower(), read_atis)
    if read not in _READERS:
        raise ValueError(
            f"{name}: recordings of this format cannot be followed, only {FOLLOWED}: give the "
            "finished file without --follow"
        )
    size, pieces = _READERS[read](name, head, data)
    return size, _checked(name, size, pieces)


def _checked(name: str, size: tuple[int, int] | None, pieces: Pieces) -> Pieces:
    """The pieces that have events, in order of time and inside the sensor."""
    last, count = np.empty(0, np.int64), 0

    def place(i: int) -> str:
        return f"event {count + i}"

    for events in pieces:
        before = len(last)
        check_order(name, np.append(last, events["t"]), lambda i: place(i - before))  # noqa: B023
        if size is not None:
            check_inside(events["x"], events["y"], size, lambda i: f"{name}: {place(i)}")
        if len(events):
            last, count = events["t"][-1:], count + len(events)
            yield events


def _whole(each: int, data: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes in pieces of a multiple of `each`."""
    rest = b""
    for some in data:
        rest += some
        end = len(rest) - len(rest) % each
        if end:
            yield rest[:end]
            rest = rest[end:]


def _atis(name: str, head: bytes, data: Iterator[bytes]) -> tuple[None, Pieces]:
    def pieces() -> Pieces:
        clock = Clock(name, WRAP)
        for raw in _whole(5, chain([head], data)):
            x, y, *three = np.frombuffer(raw, np.uint8).reshape(-1, 5).T
            high, middle, low = (part.astype(np.int64) for part in three)
            t = (high & 127) << 16 | middle << 8 | low
            try:
                times = clock(t)
            except ValueError:
                if clock.count:
                    raise
                raise ValueError(
                    f"{name}: its first bytes {head[:12]!r} begin no recording that can be "
                    f"followed: {FOLLOWED}"
                ) from None
            yield event_array(times, x, y, high >> 7)

    return None, pieces()


def _dat(name: str, head: bytes, data: Iterator[bytes]) -> tuple[tuple[int, int] | None, Pieces]:
    words, start = read_header(Path(name), head)
    while len(head) < start + 2:
        head += next(data, bytes(2))
    read_kind(Path(name), words, head[start : start + 2], start)

    def pieces() -> Pieces:
        clock = Clock(name, 1 << 32)
        for raw in _whole(8, chain([head[start + 2 :]], data)):
            t, word = np.frombuffer(raw, "<u4").reshape(-1, 2).T
            yield event_array(clock(t), word & 0x3FFF, word >> 14 & 0x3FFF, word >> 28 > 0)

    return header_size(Path(name), words), pieces()


def _evt(name: str, head: bytes, data: Iterator[bytes]) -> tuple[tuple[int, int] | None, Pieces]:
    words, start = read_header(Path(name), head)
    version = read_version(Path(name), words)
    raw = _whole(WORD[version], chain([head[start:]], data))
    pieces = (np.frombuffer(some, f"<u{WORD[version]}") for some in raw)
    if version == "2.1" and "endianness=legacy" in words.get("format", ""):
        pieces = (some << np.uint64(32) | some >> np.uint64(32) for some in pieces)
    decoded = _evt_3(name, pieces) if version == "3" else _evt_2(name, pieces, version)
    return header_size(Path(name), words), decoded


def _evt_2(name: str, pieces: Pieces, version: str) -> Pieces:
    """Repeat the last word of type 8, the upper part of the time, before each piece."""
    read, shift = (read_2, 28) if version == "2" else (read_21, 60)
    clock = Clock(name, 1 << 34)
    high = None
    for words in pieces:
        if high is not None:
            words = np.append(high, words)
        t, x, y, p, _ = read(words)
        yield event_array(clock(t), x, y, p)
        told_it = words[words >> words.dtype.type(shift) == 8]
        high = told_it[-1:] if len(told_it) else high


def _evt_3(name: str, pieces: Pieces) -> Pieces:
    """Repeat the words that still count, time, row and vectors' start, before each piece."""
    kept: np.ndarray = np.empty(0, "<u2")
    passed = 0  # turns of the upper part of the time, before the pieces that are at hand
    for words in pieces:
        words = np.concatenate([kept, words])
        t, x, y, p, _ = read_3(Path(name), words, lambda i: f"word {i} of a piece")
        yield event_array(t + (passed << 24), x, y, p)
        kind, last = words >> 12, dict[int, int]()
        for key in (8, 6, 0, 3):
            if len(at := np.flatnonzero(kind == key)):
                last[key] = int(at[-1])
        if 8 in last:
            high = (words[kind == 8] & 0xFFF).astype(np.int64)
            passed += int(np.count_nonzero(high[1:] < high[:-1]))
            turns = np.flatnonzero(kind == 8)[np.diff(high, prepend=-1) != 0]
            if last.get(6, -1) < turns[-1]:  # a new upper part sets the lower to 0
                last.pop(6, None)
        kept = np.array([words[last[key]] for key in (8, 6, 0, 3) if key in last], "<u2")
        if 3 in last:  # vectors have moved on from it
            after = kind[last[3] :]
            wide = 12 * int((after == 4).sum()) + 8 * int((after == 5).sum())
            place = min((int(kept[-1]) & 0x7FF) + wide, 0x7FF)
            kept[-1] = int(kept[-1]) & 0xF800 | place


def _csv(name: str, head: bytes, data: Iterator[bytes]) -> tuple[tuple[int, int] | None, Pieces]:
    def lines() -> Iterator[list[str]]:
        rest = b""
        for some in chain([head], data, [b"\n"]):
            *whole, rest = (rest + some).split(b"\n")
            yield [line.decode("latin1") + "\n" for line in whole]

    coming, first = lines(), list[str]()
    while all(line[0] in "%#" for line in first):  # of the head
        if (more := next(coming, None)) is None:
            break
        first += more
    size, use, skip = read_head(name, first)

    def pieces() -> Pieces:
        n = skip
        for some in chain([first[skip:]], coming):
            if numbers := [line for line in some if line.strip()]:
                try:
                    table = whole_numbers(numbers, use)
                except ValueError as error:
                    reason = " ".join(str(error).split())[:200]
                    raise ValueError(
                        f"{name}: below line {n} not four whole numbers a line ({reason})"
                    ) from None
                columns = dict(zip("txyp", table.T, strict=True))
                yield from_columns(f"{name}, below line {n}", columns)[0]
            n += len(some)

    return size, pieces()


_READERS: dict[
    Callable[..., object],
    Callable[[str, bytes, Iterator[bytes]], tuple[tuple[int, int] | None, Pieces]],
] = {
    read_atis: _atis,
    read_dat: _dat,
    read_evt: _evt,
    read_csv: _csv,
    read_aedat4: aedat4_pieces,
    read_event_stream: event_stream_pieces,
}
