"""Recordings that come in pieces give the events of the whole file, wherever they are cut."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from estl.data.formats.pieces import FOLLOWED, read_pieces
from estl.data.formats.recording import read_recording
from tests import encoders
from tests.encoders import Event, write
from tests.tiny_sets import encode

SIZE = (200, 240)


def events(n: int, seconds: float, seed: int = 0) -> list[Event]:
    """Events in order, among them runs of neighbors, which EVT packs as vectors."""
    rng = np.random.default_rng(seed)
    found: list[Event] = []
    for t in np.sort(rng.integers(0, int(seconds * 1e6), n)).tolist():
        x, y, p, run = (int(k) for k in rng.integers(0, (190, 200, 2, 40)))
        found += [(t, x + i, y, p) for i in range(run if run > 20 else 1)]
    return found


def atis(found: list[Event], _: object) -> bytes:
    return encode([(t & (1 << 23) - 1, x, y, p) for t, x, y, p in found])


def metavision(found: list[Event], size: tuple[int, int] | None) -> bytes:
    assert size is not None
    head = f"%geometry:{size[1]},{size[0]}\n".encode()
    return head + encoders.csv(found, None, columns="xypt", head=False)


FORMATS: dict[str, Callable[..., bytes]] = {
    "bin": atis,
    "evt2.raw": encoders.evt2,
    "evt21.raw": encoders.evt21,
    "evt3.raw": encoders.evt3,
    "dat": encoders.dat,
    "csv": encoders.csv,
    "metavision.csv": metavision,
    "aedat4": partial(encoders.aedat4, each=9),
    "es": encoders.event_stream,
}


def cut(data: bytes, seed: int, longest: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    start = 0
    while start < len(data):
        length = int(rng.integers(1, longest))
        yield data[start : start + length]
        start += length


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("longest", [2, 70, 5000])
def test_pieces_hold_the_events_of_the_whole_file(name: str, longest: int, tmp_path: Path) -> None:
    # 40 s let the clocks of ATIS and of EVT 3.0 wrap; Event Stream has a byte for each 127 us.
    seconds = 1 if name == "es" else 40
    data = FORMATS[name](events({2: 60, 70: 400, 5000: 2000}[longest], seconds), SIZE)
    whole, told = read_recording(write(tmp_path / f"x.{name}", data))
    size, pieces = read_pieces(f"x.{name}", cut(data, seed=longest, longest=longest))
    found = list(pieces)
    assert size == told
    assert (size == SIZE) == (name != "bin")
    assert np.array_equal(np.concatenate(found), whole)
    if longest < 5000:
        assert len(found) > 20


def test_a_time_that_a_new_upper_part_has_set_back_stays_so() -> None:
    """The lower part of EVT 3.0's time is 0 after an upper one, in the next piece too."""
    head = encoders.evt_head("3", (4, 4))
    words = [0x8000 | 1, 0x6000 | 9, 0x0000, 0x2001, 0x8000 | 2, 0x2002]
    data = iter([head + np.array(words[:5], "<u2").tobytes(), np.array(words[5:], "<u2").tobytes()])
    _, pieces = read_pieces("x.raw", chain(data))
    assert np.concatenate(list(pieces))["t"].tolist() == [4096 + 9, 8192]


def test_half_an_event_at_the_end_is_left_out_and_a_last_line_is_not() -> None:
    data = atis(events(100, seconds=1), None)
    _, pieces = read_pieces("-", iter([data[:-2]]))
    assert sum(map(len, pieces)) == len(data) // 5 - 1
    _, pieces = read_pieces("-", iter([b"t,x,y,p\n1,0,0,1\n2,0,0,", b"1"]))
    assert np.concatenate(list(pieces))["t"].tolist() == [1, 2]


@pytest.mark.parametrize("packed", encoders.PACKED)
def test_a_table_of_contents_ends_an_aedat_4_file_that_was_followed(packed: str) -> None:
    """The header, which was read before, did not say where it would be."""
    some = events(50, seconds=1)
    data = encoders.aedat4(some, SIZE, each=9, packed=packed)
    table = encoders.prefixed(bytes(500))
    _, pieces = read_pieces("x.aedat4", cut(data + table + bytes(9), seed=0, longest=70))
    assert encoders.as_events(np.concatenate(list(pieces))) == some


BACKWARDS = encoders.dat([(k, 0, 0, 1) for k in (5, 6, 2)], (4, 4))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("-", b"", "no events came"),
        ("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(300), "cannot be followed, only"),
        ("x.es", encoders.event_stream([(0, 0, 0, 1), (1, 4, 0, 1)], (4, 4)), "x=4 y=3, outside"),
        ("x.aedat4", encoders.aedat4([(0, 0, 0, 1), (1, 4, 0, 1)], (4, 4)), "x=4 y=0, outside"),
        (
            "x.aedat4",
            encoders.aedat4([(0, 0, 0, 1)], (4, 4))[:90],
            "its header at byte 14 is trunc",
        ),
        ("x.npz", b"PK\x03\x04" + bytes(300), "cannot be followed, only"),
        ("-", bytes([0, 0, 0, 0, 5]) + bytes(300), FOLLOWED),
        ("x.dat", BACKWARDS, "time runs backwards at event 2, from 6 to 2"),
        ("x.raw", encoders.evt2([(5, 0, 0, 1), (6, 4, 0, 1)], (4, 4)), "event 1, x=4 y=0, outside"),
        ("x.csv", b"t,x,y,p\n1,0,0,1\n2,a,0,1\n", "below line 1 not four whole numbers"),
        ("x.csv", b"t,x,y,p\n1,0,0,1\n1.5,0,0,1\n", "below line 1 not four whole numbers"),
        ("x.csv", b"time,column,row\n1,0,0,1\n", "line 1 is"),
        ("x.dat", b"% Version 2\n\x00\x09" + bytes(300), "events of type 0 and 9 bytes"),
        ("x.raw", b"% evt 4.0\n% end\n" + bytes(300), "version '4.0' of EVT"),
    ],
)
def test_what_cannot_be_followed_is_said_in_one_line(name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as said:
        list(read_pieces(name, cut(data, seed=0, longest=50))[1])
    assert "\n" not in str(said.value)
