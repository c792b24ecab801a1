import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estl.data.formats.aedat import read_aedat
from estl.data.formats.recording import read_recording
from estl.data.frames import to_frames

Event = tuple[int, int, int, int]  # t, x, y, p

HEAD_2 = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# created by a test\r\n"
HEAD_3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def event_2(t: int, x: int, y: int, p: int) -> bytes:
    """By jAER's words: x counts from the right, y upwards, and 0 is ON."""
    return struct.pack(">II", (127 - y) << 8 | (127 - x) << 1 | (1 - p), t % (1 << 32))


def event_3(t: int, x: int, y: int, p: int, valid: int = 1) -> bytes:
    return struct.pack("<Ii", x << 17 | y << 2 | p << 1 | valid, t % (1 << 31))


def packet(
    events: list[bytes],
    kind: int = 1,
    overflow: int = 0,
    capacity: int | None = None,
    size: int = 8,
) -> bytes:
    capacity = len(events) if capacity is None else capacity
    head = struct.pack("<hhiiiiii", kind, 1, size, 4, overflow, capacity, len(events), len(events))
    return head + b"".join(events) + bytes(size * (capacity - len(events)))


def write_2(path: Path, events: list[Event]) -> Path:
    path.write_bytes(HEAD_2 + b"".join(event_2(*event) for event in events))
    return path


def write_3(path: Path, *packets: list[Event]) -> Path:
    body = [
        packet([event_3(*e) for e in events], overflow=events[0][0] >> 31) for events in packets
    ]
    path.write_bytes(HEAD_3 + b"".join(body))
    return path


def refused(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_aedat(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@st.composite
def recordings(draw: st.DrawFn) -> list[Event]:
    times = sorted(draw(st.lists(st.integers(0, (1 << 31) - 1), min_size=1, max_size=40)))
    one = st.tuples(st.integers(0, 127), st.integers(0, 127), st.integers(0, 1))
    return [(t, *draw(one)) for t in times]


@settings(max_examples=50, deadline=None)
@given(events=recordings(), cut=st.integers(1, 39))
def test_what_was_written_is_read(
    events: list[Event], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "e.aedat"
    packets = [part for part in (events[:cut], events[cut:]) if part]
    for written in (write_2(path, events), write_3(path, *packets)):
        read, sensor = read_recording(written)
        assert read.tolist() == events
        assert sensor == (128, 128)


def test_the_corners_of_jaers_screen_have_these_addresses(tmp_path: Path) -> None:
    # upper left, upper right, lower left: jAER shows address x=127 at the left and y=127 on top
    addresses = [127 << 8 | 127 << 1, 127 << 8 | 0 << 1, 0 << 8 | 127 << 1]
    path = tmp_path / "e.aedat"
    path.write_bytes(HEAD_2 + b"".join(struct.pack(">II", a, 7) for a in addresses))
    assert [(x, y) for _, x, y, _ in read_aedat(path)[0].tolist()] == [(0, 0), (127, 0), (0, 127)]


def test_bytes_of_3_1_written_out_are_this_event(tmp_path: Path) -> None:
    head = "0100 0100 08000000 04000000 02000000 01000000 01000000 01000000"
    event = "0f 00 06 00 0a000000"  # data 0x0006000f: x=3, y=3, polarity 1, valid 1; time 10
    path = tmp_path / "e.aedat"
    path.write_bytes(HEAD_3 + bytes.fromhex(head + event))
    assert read_aedat(path)[0].tolist() == [((2 << 31) + 10, 3, 3, 1)]


def test_a_clock_of_2_0_that_wraps_is_unwrapped(tmp_path: Path) -> None:
    wrap = 1 << 32
    times = [(1 << 31) - 1, 1 << 31, wrap - 5, wrap + 3, 2 * wrap - 2, 2 * wrap]
    path = write_2(tmp_path / "e.aedat", [(t, 0, 0, 1) for t in times])
    assert read_aedat(path)[0]["t"].tolist() == times


def test_the_overflow_counter_of_3_1_goes_on_where_the_clock_starts_again(tmp_path: Path) -> None:
    turn = 1 << 31
    path = write_3(tmp_path / "e.aedat", [(turn - 1, 1, 1, 0)], [(turn + 4, 2, 2, 1)])
    assert read_aedat(path)[0]["t"].tolist() == [turn - 1, turn + 4]


def test_what_is_no_polarity_event_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "e.aedat"
    kept = [(5, 1, 2, 1), (6, 3, 4, 0)]
    path.write_bytes(
        HEAD_3
        + packet([b"x" * 36] * 3, kind=3, size=36)
        + packet([event_3(*kept[0]), event_3(5, 99, 99, 1, valid=0)])
        + packet([event_3(9, 9, 9, 1)], kind=0)
        + packet([])
        + packet([event_3(*kept[1])], capacity=4)
    )
    assert read_aedat(path)[0].tolist() == kept
    signal = struct.pack(">II", 0x8000, 5)
    path.write_bytes(HEAD_2 + event_2(*kept[0]) + signal + event_2(*kept[1]))
    assert read_aedat(path)[0].tolist() == kept


def test_a_header_may_end_its_lines_in_either_way(tmp_path: Path) -> None:
    path = tmp_path / "e.aedat"
    for head, event in ((HEAD_2, event_2(1, 2, 3, 1)), (HEAD_3, packet([event_3(1, 2, 3, 1)]))):
        path.write_bytes(head.replace(b"\r\n", b"\n") + event)
        assert read_aedat(path)[0].tolist() == [(1, 2, 3, 1)]


def test_another_sensor_of_3_1_has_no_size_and_may_be_larger(tmp_path: Path) -> None:
    path = tmp_path / "e.aedat"
    head = HEAD_3.replace(b"DVS128", b"DAVIS240C").replace(b"#!END", b"#-Source 0: DVS128\r\n#!END")
    path.write_bytes(head + packet([event_3(1, 239, 179, 1)]))
    events, sensor = read_aedat(path)
    assert events.tolist() == [(1, 239, 179, 1)]
    assert sensor is None
    with pytest.raises(ValueError, match=r"x=239 y=179, outside the sensor of H=128 W=128"):
        read_aedat(path, (128, 128))


def test_an_interval_is_what_a_cut_of_the_whole_gives(tmp_path: Path) -> None:
    events = [(10 * i, i, 0, 1) for i in range(12)]
    for path in (
        write_2(tmp_path / "2.aedat", events),
        write_3(tmp_path / "3.aedat", events[:4], events[4:8], events[8:]),
    ):
        for start, stop in ((0, 111), (30, 31), (35, 85), (40, 80), (30, 40)):
            read, _ = read_aedat(path, between=(start, stop))
            assert read.tolist() == [e for e in events if start <= e[0] < stop]
        with pytest.raises(ValueError, match=r"\.aedat: no events from 31 to 40 microseconds"):
            read_aedat(path, between=(31, 40))


def test_packets_outside_of_the_interval_are_not_decoded(tmp_path: Path) -> None:
    path = write_3(tmp_path / "e.aedat", [(1, 0, 0, 0)], [(5, 127, 128, 0)], [(9, 0, 0, 0)])
    with pytest.raises(ValueError, match=r"x=127 y=128, outside"):
        read_aedat(path, between=(0, 6))
    assert len(read_aedat(path, between=(6, 10))[0]) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recording .*none\.aedat"):
        read_aedat(tmp_path / "none.aedat")


def test_broken_files_of_any_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.aedat"
    refused(path, b"", r"no events \(0 bytes\)")
    refused(path, b"#!AER-DAT4.0\r\n", "byte 0 starts neither")
    refused(path, bytes(80), "byte 0 starts neither")


def test_broken_files_of_2_0_are_refused_with_their_byte(tmp_path: Path) -> None:
    path, n = tmp_path / "e.aedat", len(HEAD_2)
    good = event_2(5, 1, 2, 1)
    refused(path, HEAD_2[:-2], r"header's line at byte 58 has no end")
    refused(path, HEAD_2, r"no events$")
    refused(path, HEAD_2 + struct.pack(">II", 0x8000, 5), r"no events$")
    for odd in range(1, 8):
        refused(path, HEAD_2 + good + good[:odd], rf"truncated in the event at byte {n + 8} ")
    refused(path, HEAD_2 + good + event_2(4, 1, 2, 1), rf"backwards at byte {n + 8}, from 5 to 4 ")
    refused(path, HEAD_2 + good + struct.pack(">II", 1 << 16, 9), rf"0x00010000 at byte {n + 8} ")


def test_a_smaller_sensor_of_2_0_refuses_events_outside_with_their_byte(tmp_path: Path) -> None:
    path = write_2(tmp_path / "e.aedat", [(1, 0, 0, 1), (2, 5, 8, 1)])
    with pytest.raises(ValueError, match=rf"byte {len(HEAD_2) + 8}, x=5 y=8, outside .* W=9"):
        read_aedat(path, (8, 9))


def test_broken_files_of_3_1_are_refused_with_their_byte(tmp_path: Path) -> None:
    path, n = tmp_path / "e.aedat", len(HEAD_3)
    good = packet([event_3(5, 1, 2, 1)])
    second = n + len(good)
    refused(path, HEAD_3[:-2], r"no line '#!END-HEADER'")
    refused(path, HEAD_3, r"no events$")
    refused(path, HEAD_3 + packet([event_3(5, 1, 2, 1, valid=0)]), r"no events$")
    for length in (1, 27, 28, 35):
        refused(path, HEAD_3 + good + good[:length], rf"truncated in the packet at byte {second}")
    late = packet([event_3(6, 1, 2, 1), event_3(4, 1, 2, 1)])
    refused(path, HEAD_3 + good + late, rf"backwards at byte {second + 36}, from 6 to 4 ")
    early = packet([event_3(4, 1, 2, 1)])
    refused(path, HEAD_3 + good + early, rf"backwards at byte {second + 28}, from 5 to 4 ")
    for x, y in ((128, 0), (0, 128), (32767, 32767)):
        bad = packet([event_3(5, 0, 0, 1, valid=0), event_3(5, x, y, 1)])
        refused(path, HEAD_3 + bad, rf"event at byte {n + 36}, x={x} y={y}, outside the sensor")
    negative = packet([struct.pack("<Ii", 1, -3)])
    refused(path, HEAD_3 + negative, rf"negative time -3 at byte {n + 28}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0}, "broken packet .* eventSize=0"),
        ({"size": -8}, "broken packet .* eventSize=-8"),
        ({"size": 16}, "eventSize=16 in the packet"),
        ({"overflow": -1}, "broken packet .* tsOverflow=-1"),
        ({"capacity": -1, "number": -1}, "broken packet .* capacity=-1"),
        ({"capacity": 1, "number": 2}, "broken packet .* number=2"),
        ({"capacity": (1 << 31) - 1}, "truncated in the packet .* 17179869176 bytes of events"),
    ],
)
def test_a_packet_that_cannot_be_is_refused_with_its_byte(
    tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    field = {"size": 8, "overflow": 0, "capacity": 1, "number": 1} | changed
    values = (field["size"], 4, field["overflow"], field["capacity"], field["number"], 1)
    data = HEAD_3 + struct.pack("<hhiiiiii", 1, 1, *values) + event_3(5, 1, 2, 1)
    refused(tmp_path / "e.aedat", data, message.replace(" .* ", rf" at byte {len(HEAD_3)}\b.*"))


def counted_or_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        events, sensor = read_aedat(path)
    except ValueError as error:
        message = str(error)
    else:
        assert (np.diff(events["t"]) >= 0).all()
        frames = to_frames(events, 3, (5, 5), "time", sensor or (32768, 32768))
        assert frames.sum() == len(events) > 0
        return
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@settings(max_examples=200, deadline=None)
@given(
    head=st.sampled_from([b"", b"#!AER-DAT2.", HEAD_2, b"#!AER-DAT3.", HEAD_3]),
    body=st.binary(max_size=120),
)
def test_any_bytes_are_counted_once_or_refused(
    head: bytes, body: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counted_or_refused(tmp_path_factory.getbasetemp() / "fuzz.aedat", head + body)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    version=st.sampled_from([2, 3]),
    named=st.booleans(),
    events=recordings(),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 10),
)
def test_a_recording_with_changed_bytes_is_counted_once_or_refused(
    version: int,
    named: bool,
    events: list[Event],
    places: list[tuple[int, int]],
    cut: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.aedat"
    write_2(path, events) if version == 2 else write_3(
        path, events[:7], *filter(None, [events[7:]])
    )
    data = bytearray(path.read_bytes())
    if not named:
        data = data.replace(b"DVS128", b"OTHER1")
    for place, value in places:
        data[place % len(data)] = value
    counted_or_refused(path, bytes(data[: len(data) - cut]))
