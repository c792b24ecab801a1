"""Recordings of Prophesee's cameras as they come: EVT 2.0, 2.1 and 3.0 in `.raw` files.

The formats are those of Prophesee's "Data Encoding Formats". They are read here and not by faery,
which stops at the header of EVT 2.1, cuts a truncated file and holds the clock where it runs
backwards, all without a word.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from estl.data.formats.events import (
    broken,
    check_order,
    check_whole,
    checked_length,
    event_array,
    finish,
    unwrap,
)

_HEADER_BYTES = 1 << 16
WORD = {"2": 4, "2.1": 8, "3": 2}
"""Bytes of a word."""

Columns = tuple[Any, Any, Any, Any, np.ndarray]
"""t, x, y, p, and the number of the word that each event is from."""


def read_evt(path: str | Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of an EVT 2.0, 2.1 or 3.0 recording, and the sensor's (H,W) if the header has it.

    A header of lines that start with '%' is followed by words, little endian. The four upper bits
    of a word are its type: a part of the time, a row, or events. In EVT 2.1 of the older cameras
    (`endianness=legacy`) the upper half of each word comes first. Words of other types, such as
    triggers, are passed over, and so are events before the first time and row, with which a stream
    that was cut out of another begins. The clock of EVT 3.0 wraps after 16.8 s; that is undone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another version, a truncated or oversized file, time that runs backwards, an
            event outside the sensor, no events; the text names the file and the byte.
    """
    path = Path(path)
    checked_length(path)
    raw = np.memmap(path, np.uint8, "r")
    head, start = read_header(path, bytes(raw[:_HEADER_BYTES]))
    version = read_version(path, head)
    each = WORD[version]
    check_whole(path, len(raw), each, start)
    words = np.frombuffer(raw[start:].tobytes(), f"<u{each}")

    def place(word: int) -> str:
        return f"byte {start + each * word}"

    if version == "2":
        *columns, at = read_2(words)
    elif version == "2.1":
        if "endianness=legacy" in head.get("format", ""):
            words = words << np.uint64(32) | words >> np.uint64(32)
        *columns, at = read_21(words)
    else:
        *columns, at = read_3(path, words, place)
    events = event_array(*columns)
    period = None if version == "3" else 1 << 34
    return finish(path, events, header_size(path, head), lambda i: place(int(at[i])), period)


def read_version(path: Path, head: dict[str, str]) -> str:
    """Version of a header: "2", "2.1" or "3", or ValueError for another."""
    named = re.match(r"EVT(\d)(?:\.?(\d))?", head.get("format", "")) or re.match(
        r"(\d)(?:\.(\d))?", head.get("evt", "")
    )
    version = "" if named is None else named[1] + (".1" if named[2] == "1" else "")
    if version not in WORD:
        known = head.get("format", head.get("evt", "none"))
        raise ValueError(f"{path}: version {known[:40]!r} of EVT is not 2.0, 2.1 or 3.0")
    return version


def read_header(path: Path, start: bytes) -> tuple[dict[str, str], int]:
    """Words and values of the lines that start with '%', and the byte where the events begin.

    >>> read_header(Path("x.raw"), b"% evt 3.0\\n% Width 640\\n% end\\n%")
    ({'evt': '3.0', 'width': '640', 'end': ''}, 28)
    """
    found: dict[str, str] = {}
    at = 0
    while start[at : at + 1] == b"%" and "end" not in found:
        end = start.find(b"\n", at)
        if end < 0:
            raise broken(path, f"the header's line at byte {at} has no end")
        word, _, value = start[at + 1 : end].decode("latin1").strip().partition(" ")
        found[word.lower()] = value.strip()
        at = end + 1
    return found, at


def header_size(path: Path, head: dict[str, str]) -> tuple[int, int] | None:
    """The sensor's (H,W) of a header, None if it has none."""
    sides = dict(re.findall(r"(height|width)=(\w+)", head.get("format", "")))
    if "x" in (geometry := head.get("geometry", "")):
        sides["width"], _, sides["height"] = geometry.partition("x")
    sides = {side: head[side] for side in ("height", "width") if side in head} | sides
    if not {"height", "width"} <= sides.keys():
        return None
    texts = sides["height"][:20], sides["width"][:20]
    if not all(re.fullmatch(r"[0-9]+", text) for text in texts):
        raise broken(path, f"its header has a sensor of height {texts[0]!r}, width {texts[1]!r}")
    H, W = map(int, texts)
    if not (0 < H <= 1 << 15 and 0 < W <= 1 << 15):
        raise broken(path, f"its header has a sensor of height {H}, width {W}")
    return H, W


def _last(chosen: np.ndarray) -> np.ndarray:
    """For each word, the number of the last chosen one up to it, -1 if there is none."""
    number: np.ndarray = np.arange(len(chosen), dtype=np.int32)
    return np.maximum.accumulate(np.where(chosen, number, np.int32(-1)))


def read_2(words: np.ndarray) -> Columns:
    """Type 0 or 1 (OFF, ON): 6 bits of time, 11 of x, 11 of y. Type 8: 28 bits of time."""
    kind = words >> 28
    high = _last(kind == 8)
    at = np.flatnonzero((kind <= 1) & (high >= 0))
    word = words[at]
    base = (words[high[at]] & 0xFFFFFFF).astype(np.int64)
    t = base << 6 | (word >> 22 & 63)
    return t, word >> 11 & 0x7FF, word & 0x7FF, word >> 28, at


def read_21(words: np.ndarray) -> Columns:
    """As version 2 in the upper half of 64 bits; below, which of 32 pixels from x on have one."""
    upper, lower = (words >> np.uint64(32)).astype(np.uint32), words.astype(np.uint32)
    t, x, y, p, at = read_2(upper)
    which, pixel = _set_bits(lower[at].astype("<u4"))
    return t[which], x[which].astype(np.int64) + pixel, y[which], p[which], at[which]


def _set_bits(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the mask, and of the bit in it, of each bit that is set."""
    at = np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))
    return np.divmod(at, 8 * masks.itemsize)


def read_3(path: Path, words: np.ndarray, place: Any) -> Columns:
    """Types: 0 a row; 2 an event; 3 where vectors start; 4 and 5 vectors of 12 and 8 pixels; 6 the
    lower and 8 the upper 12 bits of time, of which a new upper part sets the lower to 0.
    """
    kind, value = words >> 12, (words & 0xFFF).astype(np.int32)
    turns = np.flatnonzero(kind == 8)
    clock = value[turns]
    check_order(path, clock, lambda i: place(int(turns[i])), 1 << 12)
    high = unwrap(clock.astype(np.int64), 1 << 12)
    turned = np.zeros(len(words), bool)
    turned[turns] = np.diff(high, prepend=-1) != 0

    vector = (kind == 4) | (kind == 5)
    row, base = _last(kind == 0), _last(kind == 3)
    told = np.cumsum(kind == 8, dtype=np.int32)
    at = np.flatnonzero(((kind == 2) | (vector & (base >= 0))) & (row >= 0) & (told > 0))
    low, turn = _last(kind == 6)[at], _last(turned)[at]
    t = (high[told[at] - 1] << 12) + np.where(low > turn, value[low], 0)

    wide = np.where(kind == 4, 12, np.where(kind == 5, 8, 0)).astype(np.int32)
    passed = np.cumsum(wide, dtype=np.int64) - wide
    in_vector = vector[at]
    origin = np.where(in_vector, base[at], at)
    x = (value[origin] & 0x7FF) + np.where(in_vector, passed[at] - passed[origin], 0)
    pixels = np.where(in_vector, value[at] & np.where(kind[at] == 5, 0xFF, 0xFFF), 1)
    which = np.repeat(np.arange(len(at)), np.bitwise_count(pixels))
    pixel = np.zeros(len(which), np.int64)
    pixel[in_vector[which]] = _set_bits(pixels[in_vector].astype("<u2"))[1]
    y, p = value[row[at]] & 0x7FF, value[origin] >> 11
    return t[which], x[which] + pixel, y[which], p[which], at[which]
