"""Recordings of cameras, in the formats that `tests/encoders.py` writes."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from estl.data.formats.atis import read_events
from estl.data.formats.recording import read_recording
from estl.data.frames import to_frames
from tests import encoders
from tests.encoders import Event, Size, as_events, evt_head, write

SIZE = (480, 640)

Write = Callable[[Path, list[Event], Size], Path]

WRITERS: dict[str, Write] = {
    "aedat4": lambda path, events, size: write(path, encoders.aedat4(events, size, each=7)),
    "aedat4-lz4": lambda path, e, size: write(path, encoders.aedat4(e, size, packed="lz4")),
    "aedat4-zstd": lambda path, e, size: write(path, encoders.aedat4(e, size, packed="zstd")),
    "evt2": lambda path, events, size: write(path, encoders.evt2(events, size)),
    "evt2.1": lambda path, events, size: write(path, encoders.evt21(events, size)),
    "evt3": lambda path, events, size: write(path, encoders.evt3(events, size)),
    "evt3-single": lambda path, e, size: write(path, encoders.evt3(e, size, vectors=False)),
    "dat": lambda path, events, size: write(path, encoders.dat(events, size)),
    "es": lambda path, events, size: write(path, encoders.event_stream(events, size)),
    "hdf5-prophesee": lambda path, e, size: encoders.hdf5(path, e, size, "cd"),
    "hdf5-dsec": lambda path, events, size: encoders.hdf5(path, events, size, "events"),
    "hdf5": lambda path, events, size: encoders.hdf5(path, events, size),
    "csv": lambda path, events, size: write(path, encoders.csv(events, size)),
    "csv-metavision": lambda path, events, size: write(
        path,
        b"%%geometry:%d,%d\n" % (size[1], size[0]) + encoders.csv(events, None, "xypt", False),
    ),
}


@st.composite
def recordings(draw: st.DrawFn) -> list[Event]:
    """Events in order of time, some of them in rows of neighbors, over two turns of EVT 3.0."""
    times = sorted(draw(st.lists(st.integers(0, 40_000_000), min_size=1, max_size=12)))
    found: list[Event] = []
    for t in times:
        x, y, p = (draw(st.integers(0, n)) for n in (SIZE[1] - 1, SIZE[0] - 1, 1))
        run = draw(st.sampled_from([1, 1, 2, 5, 13, 40]))
        found += [(t, column, y, p) for column in range(x, min(x + run, SIZE[1]))]
    return found


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=20)
@given(events=recordings())
@example(events=[(1 << 24, 0, 0, 0), (5 << 24, 1, 2, 1)])
def test_what_was_written_is_read(
    name: str, events: list[Event], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{name}.rec"  # a suffix that says nothing
    read, sensor = read_recording(WRITERS[name](path, events, SIZE))
    if name.startswith("evt3"):  # a clock of 24 bits tells no turns before the first event
        turns = events[0][0] >> 24 << 24
        events = [(t - turns, x, y, p) for t, x, y, p in events]
    assert as_events(read) == events
    assert sensor == SIZE


@pytest.mark.slow
def test_real_recordings_give_the_same_frames_from_every_format(
    shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    paths = sorted((data / "nmnist-pairs/N-MNIST/Test").glob("*/*.bin"))[::10]
    paths += sorted((data / "ncaltech101-pairs/Caltech101").glob("*/*.bin"))
    assert len(paths) == 13
    for original in paths:
        events = read_events(original)
        size = (int(events["y"].max()) + 1, int(events["x"].max()) + 1)
        for name, writer in WRITERS.items():
            again, sensor = read_recording(writer(tmp_path / name, as_events(events), size))
            assert sensor == size
            for by in ("count", "time"):
                frames = to_frames(again, 10, (34, 34), by, sensor)
                assert frames.equal(to_frames(events, 10, (34, 34), by, size)), (original, name)
                assert frames.sum() == len(events) == original.stat().st_size // 5


def test_atis_is_told_without_its_suffix(tmp_path: Path) -> None:
    path = write(tmp_path / "e.rec", bytes([3, 2, 0x80, 0, 9, 5, 4, 0, 1, 0]))
    assert as_events(read_recording(path)[0]) == [(9, 3, 2, 1), (256, 5, 4, 0)]
    # Its first event, at x=37 y=32, begins as the lines of a header do.
    path = write(tmp_path / "e.bin", b"% " + bytes([0x80, 0, 9]))
    assert as_events(read_recording(path)[0]) == [(9, 37, 32, 1)]


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02", b"RIFF....WAVEfmt ", b"%PDF-1.7\n%\n", b"\xff" * 9]
)
def test_another_format_is_refused_with_those_that_are_read(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "e.rec", data)
    with pytest.raises(ValueError, match=r"e\.rec: its first bytes .* AEDAT 2\.0.* HDF5") as error:
        read_recording(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "library"), [("hdf5", "h5py"), ("aedat4-zstd", "zstandard"), ("aedat4-lz4", "lz4")]
)
def test_a_missing_library_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    path = tmp_path / "e.rec"
    WRITERS[name](path, [(1, 2, 3, 1)], SIZE)
    for module in (library, f"{library}.frame"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"needs {library}: pip install 'estl\[recordings\]'"):
        read_recording(path)


WORDS = {"2": "<I", "2.1": "<Q", "3": "<H"}


def evt(version: str, *words: int, head: bytes = b"") -> bytes:
    body = b"".join(struct.pack(WORDS[version], word) for word in words)
    return (head or evt_head(version, SIZE)) + body


def test_words_of_evt_written_out_are_these_events(tmp_path: Path) -> None:
    # 2.0: time 3 in units of 64 us; ON, 5 us later, x=6, y=7
    words = [0x80000003, 1 << 28 | 5 << 22 | 6 << 11 | 7]
    path = write(tmp_path / "e", evt("2", *words))
    assert as_events(read_recording(path)[0]) == [(197, 6, 7, 1)]
    # 2.1: the same, for the pixels 6 + 0 and 6 + 31
    words = [0x80000003 << 32, words[1] << 32 | 1 << 31 | 1]
    path = write(tmp_path / "e", evt("2.1", *words))
    assert as_events(read_recording(path)[0]) == [(197, 6, 7, 1), (197, 37, 7, 1)]
    # of the older cameras, which send the upper half first
    old = evt_head("2.1", SIZE).replace(b"EVT21;", b"EVT21;endianness=legacy;")
    halves = [half for word in words for half in (word >> 32, word & 0xFFFFFFFF)]
    path = write(tmp_path / "e", evt("2", *halves, head=old))
    assert as_events(read_recording(path)[0]) == [(197, 6, 7, 1), (197, 37, 7, 1)]
    # 3.0: time 1 * 4096 + 2, row 7, OFF at 6; ON from 20 on: 12 pixels, then 8, then 12
    words = [0x8001, 0x6002, 0x0007, 0x2006, 0x3814, 0x4801, 0x5081, 0x4001]
    path = write(tmp_path / "e", evt("3", *words))
    places = [(6, 0), (20, 1), (31, 1), (32, 1), (39, 1), (40, 1)]
    assert as_events(read_recording(path)[0]) == [(4098, x, 7, p) for x, p in places]


def test_a_stream_of_evt_3_0_may_begin_anywhere_and_repeat_its_time(tmp_path: Path) -> None:
    early = [0x2005, 0x3006, 0x4FFF, 0x0009, 0x2005]  # before the first time
    words = [*early, 0x8001, 0x2006, 0x6005, 0x2007, 0x8001, 0x2008, 0x8002, 0x2009, 0x6001]
    path = write(tmp_path / "e", evt("3", *words, 0x200A))
    times = [4096, 4101, 4101, 8192, 8193]
    expected = [(t, x, 9, 0) for t, x in zip(times, range(6, 11), strict=True)]
    assert as_events(read_recording(path)[0]) == expected


def test_triggers_and_words_of_vendors_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "e", evt("3", 0x8000, 0x6001, 2, 0xA003, 0x7001, 0xE123, 0x2003))
    assert as_events(read_recording(path)[0]) == [(1, 3, 2, 0)]
    path = write(tmp_path / "e", evt("2", 0x80000000, 0xA0000001, 0xE0000001, 0xF0000000, 3 << 11))
    assert as_events(read_recording(path)[0]) == [(0, 3, 0, 0)]


ONE = [(5, 1, 2, 1)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoders.evt3(ONE, SIZE)[:-1], r"truncated in the event at byte \d+"),
        (encoders.evt2(ONE, SIZE)[:-3], r"truncated in the event at byte \d+"),
        (encoders.evt21(ONE, SIZE)[:-1], r"truncated in the event at byte \d+"),
        (encoders.evt3([], SIZE), "no events"),
        (evt("3", 0x8002, 1, 0x2001, 0x8001, 0x2001), r"backwards at byte \d+, from 2 to 1"),
        (evt("3", 0x8002, 0x6005, 1, 0x2001, 0x6004, 0x2001), r"backwards at byte \d+, from 8197"),
        (encoders.evt2([(9, 1, 1, 1), (8, 1, 1, 1)], SIZE), r"backwards at byte \d+, from 9 to 8"),
        (encoders.evt3(ONE, (2, 9)), r"event at byte \d+, x=1 y=2, outside the sensor of H=2 W=9"),
        (evt_head("3", SIZE).replace(b"EVT3", b"EVT4"), "version 'EVT4.* of EVT is not"),
        (encoders.dat(ONE, SIZE).replace(b"Height 480", b"Height 4x0"), "height '4x0', width '64"),
        (evt_head("3", (0, 9)), "height 0, width 9"),
        (encoders.dat(ONE, SIZE)[:-1], r"truncated in the event at byte \d+"),
        (encoders.dat([], SIZE), "no events"),
        (encoders.dat([], SIZE)[:-1], "truncated at byte .*, where the type"),
        (encoders.dat(ONE, SIZE).replace(b"Version 2", b"Version 1"), "version '1' of DAT"),
        (encoders.dat(ONE, SIZE).replace(b"\x0c\x08", b"\x0e\x08"), "events of type 14 and 8"),
        (encoders.dat([(9, 1, 1, 1), (8, 1, 1, 1)], SIZE), "backwards at byte"),
        (encoders.dat(ONE, (2, 2)), r"event at byte \d+, x=1 y=2, outside"),
        (encoders.event_stream(ONE, SIZE)[:-1], "truncated in the event at byte 20"),
        (encoders.event_stream(ONE, SIZE)[:15], "truncated in the header, at byte 15"),
        (
            encoders.event_stream([(10**8, 1, 2, 1)], SIZE)[:-1],
            "truncated in the event at byte 787",
        ),
        (encoders.event_stream([], SIZE), "no events"),
        (encoders.event_stream(ONE, (3, 1)), "event at byte 20, x=1 y=0, outside W=1 H=3"),
        (encoders.event_stream([], (0, 3)), "height 0, width 3"),
        (b"Event Stream\x02\x00\x00\x04" + bytes(4), "version 2, type 4 of Event Stream"),
        (encoders.aedat4(ONE, SIZE)[:-1], r"truncated in the packet at byte \d+"),
        (encoders.aedat4(ONE, SIZE)[:60], "header at byte 14 is truncated"),
        (encoders.aedat4([], SIZE), "no events"),
        (encoders.aedat4(ONE, (2, 2)), r"event in the packet at byte \d+, x=1 y=2, outside"),
        (encoders.aedat4([(9, 1, 1, 1), (8, 1, 1, 1)], SIZE), "backwards at the packet at byte"),
        (encoders.aedat4(ONE, SIZE).replace(b"EVTS</attr>", b"FRME</attr>"), "no stream of events"),
        (
            encoders.aedat4(ONE, SIZE, packed="zstd").replace(b"\x28\xb5", b"xx"),
            "cannot be unpacked",
        ),
        (b"t,x,y,p\n1,2,3,1\n0,2,3,1\n", "backwards at event 1, from 1 to 0"),
        (b"t,x,y,p\n1,2,3\n", r"below line 1 not four whole numbers"),
        (b"t,x,y,p\n0.1,2,3,1\n", r"below line 1 not four whole numbers .*'0\.1'"),
        (b"t,x,y,p\n\n", "no events"),
        (b"1,2,3,1\n2,2,3,1\n", "line 1 is '1,2,3,1': let it name the columns"),
        (b"%geometry:2,2\n1,2,1,9\n", "event 0, x=1 y=2, outside the sensor of H=2 W=2"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, data: bytes, message: str) -> None:
    path = write(tmp_path / "e.rec", data)
    with pytest.raises(ValueError, match=message) as error:
        read_recording(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_other_streams_and_a_table_of_contents_of_aedat_4_are_passed_over(tmp_path: Path) -> None:
    data = encoders.aedat4(ONE, SIZE)
    frame = struct.pack("<ii", 1, 3) + b"abc"
    contents = data.replace(struct.pack("<q", -1), struct.pack("<q", len(data) + len(frame)))
    path = write(tmp_path / "e", contents + frame + b"FTAB")
    assert as_events(read_recording(path)[0]) == ONE
    path = write(tmp_path / "e", contents)
    with pytest.raises(ValueError, match=rf"table of contents at byte {len(data) + len(frame)}"):
        read_recording(path)


def test_files_without_the_sensors_size_say_none(tmp_path: Path) -> None:
    for data in (
        encoders.aedat4(ONE, None),
        encoders.evt3(ONE, None),
        encoders.dat(ONE, None),
        encoders.csv(ONE, None, "pyxt"),
    ):
        events, sensor = read_recording(write(tmp_path / "e", data))
        assert as_events(events) == ONE
        assert sensor is None
    assert read_recording(encoders.hdf5(tmp_path / "e", ONE, None))[1] is None


def test_a_csv_as_excel_saves_it_is_read(tmp_path: Path) -> None:
    for name in ("e.csv", "e"):
        for size in (SIZE, None):
            data = encoders.csv(ONE, size).replace(b"\n", b"\r\n")
            events, sensor = read_recording(write(tmp_path / name, b"\xef\xbb\xbf" + data))
            assert as_events(events) == ONE
            assert sensor == size
    path = write(tmp_path / "e.csv", b"\xef\xbb\xbf")
    with pytest.raises(ValueError, match="let it name the columns"):
        read_recording(path)


def test_hdf5_of_other_layouts_or_without_its_filter_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "e.h5"
    for fill, message in (
        (lambda f: f.create_dataset("frames", data=np.zeros(3)), "it has frames, not CD/events"),
        (lambda f: f.create_dataset("events", data=np.zeros(3)), "it has events, not CD/events"),
        (lambda f: [f.create_dataset(n, data=np.zeros((2, 2), int)) for n in "txyp"], r"\(2, 2\)"),
        (lambda f: [f.create_dataset(n, data=[0.5]) for n in "txyp"], "t is float64: give whole"),
        (lambda f: [f.create_dataset(n, data=[0] * (2 + (n == "x"))) for n in "txyp"], "x has sh"),
    ):
        with h5py.File(path, "w") as file:
            fill(file)
        with pytest.raises(ValueError, match=rf"e\.h5: .*{message}") as error:
            read_recording(path)
        assert "\n" not in str(error.value)
    encoders.hdf5(path, ONE, SIZE)
    text = path.read_bytes()
    path.write_bytes(text.replace(b"\x19\x01\x01\0\x10", b"\x19\0\x01\0\x10"))  # a text is a list
    with pytest.raises(ValueError, match=r"attribute geometry is neither a text nor a number"):
        read_recording(path)
    with h5py.File(path, "w") as file:  # chunks as Prophesee's ECF leaves them, unreadable here
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4,))
        plan.set_filter(0x8ECF, h5py.h5z.FLAG_OPTIONAL)
        kind = h5py.h5t.py_create(np.dtype([(n, "<i8") for n in "txyp"]))
        group = file.create_group("CD")
        h5py.h5d.create(group.id, b"events", kind, h5py.h5s.create_simple((4,)), plan)
    with pytest.raises(ValueError, match=r"filter 36559: add Prophesee's plugin hdf5_ecf"):
        read_recording(path)


HEADS = [
    *(b"", evt_head("2", None), evt_head("2.1", None), evt_head("3", None)),
    *(encoders.dat([], None), encoders.event_stream([], SIZE), encoders.aedat4([], SIZE)),
    *(b"\x89HDF\r\n\x1a\n", b"t,x,y,p\n", b"%geometry:9,9\n", b"#!AER-DAT4.0\r\n"),
]


def counted_or_refused(path: Path) -> None:
    try:
        events, sensor = read_recording(path)
    except ValueError as error:
        message = str(error)
    else:
        assert (np.diff(events["t"]) >= 0).all()
        frames = to_frames(events, 3, (5, 5), "count", sensor or (32768, 32768))
        assert frames.sum() == len(events) > 0
        return
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@settings(max_examples=200)
@given(
    head=st.sampled_from(HEADS),
    body=st.binary(max_size=120),
)
def test_any_bytes_are_counted_once_or_refused(
    head: bytes, body: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counted_or_refused(write(tmp_path_factory.getbasetemp() / "fuzz.rec", head + body or b"\0"))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=100)
@given(
    events=recordings(),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 10),
)
def test_a_recording_with_changed_bytes_is_counted_once_or_refused(
    name: str,
    events: list[Event],
    places: list[tuple[int, int]],
    cut: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"changed-{name}"
    data = bytearray(WRITERS[name](path, events, SIZE).read_bytes())
    for place, value in places:
        data[place % len(data)] = value
    counted_or_refused(write(path, bytes(data[: len(data) - cut])))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["aedat4", "aedat4-lz4", "aedat4-zstd", "evt2", "evt3", "dat", "es"]
)
@settings(max_examples=20)
@given(events=recordings())
def test_faery_reads_the_same(
    name: str, events: list[Event], tmp_path_factory: pytest.TempPathFactory
) -> None:
    faery = pytest.importorskip("faery")
    path = WRITERS[name](tmp_path_factory.getbasetemp() / "e", events, SIZE)
    kind = name.partition("-")[0].rstrip("234")
    read = list(faery.events_stream_from_file(path, file_type=kind))
    assert as_events(np.concatenate(read)) == as_events(read_recording(path)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *(("aedat", {"compression": c}) for c in (None, ("lz4", 1), ("zstd", 1))),
        *(("evt", {"version": version}) for version in ("evt2", "evt3")),
        *((kind, {}) for kind in ("dat", "es", "csv")),
    ],
)
@settings(max_examples=20)
@given(events=recordings())
def test_what_faery_writes_is_read(
    kind: str, how: dict[str, object], events: list[Event], tmp_path_factory: pytest.TempPathFactory
) -> None:
    faery = pytest.importorskip("faery")
    path = tmp_path_factory.getbasetemp() / f"faery.{kind}"
    stream = faery.events_stream_from_array(np.array(events, faery.EVENTS_DTYPE), SIZE[::-1])
    stream.to_file(path, file_type=kind, **how)
    read, sensor = read_recording(path)
    start = events[0][0] if kind in ("evt", "dat", "es") else 0  # it begins these at 0
    assert as_events(read) == [(t - start, x, y, p) for t, x, y, p in events]
    assert sensor == SIZE


def test_a_heap_of_texts_that_hdf5_would_read_for_ever_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.h5"
    encoders.hdf5(path, ONE, SIZE)
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    read_recording(path)
    data[heap + 24] += 16  # the first text's length, so that the next object begins in the zeros
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"the heap at byte {heap} is damaged at byte \d+"):
        read_recording(path)
