import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from estl.data.formats.atis import read_events
from estl.data.formats.events import EVENT
from estl.data.formats.npz import read_npz
from estl.data.formats.recording import read_recording
from estl.data.frames import normalize, to_frames

WRAP = 1 << 23


def write_events(path: Path, events: list[tuple[int, int, int, int]]) -> Path:
    """(t, x, y, p) by the format's description, one at a time."""
    with path.open("wb") as file:
        for t, x, y, p in events:
            file.write(struct.pack(">BB", x, y))
            file.write(struct.pack(">I", p << 23 | t % WRAP)[1:])
    return path


def frames_by_loop(events: np.ndarray, steps: int, size: tuple[int, int], by: str) -> Tensor:
    frames = torch.zeros(steps, 2, *size)
    t0, t1 = (int(events["t"][0]), int(events["t"][-1])) if len(events) else (0, 0)
    for i, (t, x, y, p) in enumerate(events.tolist()):
        k = i * steps // len(events) if by == "count" else (t - t0) * steps // (t1 - t0 + 1)
        frames[k, p, y, x] += 1
    return frames


@st.composite
def recordings(draw: st.DrawFn, smallest: int = 1) -> np.ndarray:
    times = sorted(draw(st.lists(st.integers(0, WRAP - 1), min_size=smallest, max_size=60)))
    one = st.tuples(st.integers(0, 8), st.integers(0, 4), st.integers(0, 1))
    return np.array([(t, *draw(one)) for t in times], EVENT)


def all_recordings(shared: Path) -> list[Path]:
    paths = [
        *shared.glob("data/nmnist-pairs/N-MNIST/*/*/*.bin"),
        *shared.glob("data/ncaltech101-pairs/Caltech101/*/*.bin"),
    ]
    assert len(paths) == 803
    return paths


@settings(max_examples=50, deadline=None)
@given(events=recordings())
def test_what_was_written_is_read(
    events: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_events(tmp_path_factory.getbasetemp() / "e.bin", events.tolist())
    assert np.array_equal(read_events(path, size=(5, 9)), events)


def test_the_largest_values_of_the_format_are_read(tmp_path: Path) -> None:
    events = [(0, 255, 0, 1), (WRAP - 1, 0, 255, 0)]
    assert read_events(write_events(tmp_path / "e.bin", events)).tolist() == events


@pytest.mark.slow
def test_a_real_recording_is_read_as_a_loop_over_its_bytes_reads_it(shared: Path) -> None:
    path = shared / "data/nmnist-pairs/N-MNIST/Test/0/60004.bin"
    data = path.read_bytes()
    expected = []
    for i in range(0, len(data), 5):
        word = int.from_bytes(data[i : i + 5], "big")  # x 8, y 8, p 1, t 23 bits
        expected.append((word & (WRAP - 1), word >> 32, word >> 24 & 255, word >> 23 & 1))
    assert read_events(path, size=(34, 34)).tolist() == expected


def test_a_clock_that_wraps_is_unwrapped_each_time(tmp_path: Path) -> None:
    times = [WRAP - 5, WRAP + 3, 2 * WRAP - 2, 2 * WRAP, 2 * WRAP]
    path = write_events(tmp_path / "e.bin", [(t, 0, 0, 1) for t in times])
    assert read_events(path)["t"].tolist() == times


def test_time_that_runs_backwards_is_refused_with_its_byte(tmp_path: Path) -> None:
    path = write_events(tmp_path / "e.bin", [(5, 0, 0, 1), (9, 0, 0, 1), (8, 0, 0, 1)])
    with pytest.raises(ValueError, match=r"e\.bin: time runs backwards at byte 10, from 9 to 8"):
        read_events(path)
    write_events(path, [(WRAP - 6, 0, 0, 1), (WRAP + 3, 0, 0, 1), (WRAP + 2, 0, 0, 1)])
    with pytest.raises(ValueError, match=r"e\.bin: time runs backwards at byte 10, from 3 to 2"):
        read_events(path)


@pytest.mark.parametrize("length", [1, 4, 11, 14])
def test_a_truncated_file_is_refused_with_its_byte(tmp_path: Path, length: int) -> None:
    path = tmp_path / "e.bin"
    path.write_bytes(bytes(length))
    with pytest.raises(ValueError, match=rf"e\.bin: truncated .* byte {length // 5 * 5} ") as error:
        read_events(path)
    assert "\n" not in str(error.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"e\.bin: no events"):
        read_events(write_events(tmp_path / "e.bin", []))


@pytest.mark.parametrize(("x", "y"), [(34, 0), (0, 34), (255, 255)])
def test_an_event_outside_the_sensor_is_refused_with_its_byte(
    tmp_path: Path, x: int, y: int
) -> None:
    path = write_events(tmp_path / "e.bin", [(0, 33, 33, 1), (1, x, y, 0)])
    with pytest.raises(ValueError, match=rf"e\.bin: event at byte 5, x={x} y={y}, outside"):
        read_events(path, size=(34, 34))
    assert len(read_events(path)) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recording .*none\.bin"):
        read_events(tmp_path / "none.bin")


@settings(max_examples=100, deadline=None)
@given(
    events=recordings(smallest=0), steps=st.integers(1, 9), by=st.sampled_from(["count", "time"])
)
def test_frames_equal_a_loop_over_events(events: np.ndarray, steps: int, by: str) -> None:
    frames = to_frames(events, steps, (5, 9), by)
    assert frames.dtype == torch.float32
    assert torch.equal(frames, frames_by_loop(events, steps, (5, 9), by))
    assert frames.sum() == len(events)


@given(n=st.integers(1, 200), steps=st.integers(1, 20))
def test_slices_by_count_differ_by_one_event_at_most(n: int, steps: int) -> None:
    events = np.zeros(n, EVENT)
    counts = to_frames(events, steps, (1, 1)).sum((1, 2, 3))
    assert counts.max() - counts.min() <= 1


def test_windows_of_time_are_equal_and_include_the_last_event() -> None:
    events = np.zeros(100, EVENT)
    events["t"] = np.arange(100) + 7
    assert to_frames(events, 4, (1, 1), "time").sum((1, 2, 3)).tolist() == [25] * 4
    events["t"] = [7] * 99 + [1000]
    assert to_frames(events, 4, (1, 1), "time").sum((1, 2, 3)).tolist() == [99, 0, 0, 1]


def test_off_is_channel_zero_and_on_is_channel_one() -> None:
    events = np.array([(0, 0, 0, 0), (1, 0, 0, 1), (2, 0, 0, 1)], EVENT)
    assert to_frames(events, 1, (1, 1)).flatten().tolist() == [1, 2]


@pytest.mark.parametrize(("x", "y"), [(9, 0), (0, 5), (-1, 0), (0, -1)])
def test_an_event_outside_the_frame_is_refused_with_its_index(x: int, y: int) -> None:
    events = np.array([(0, 8, 4, 0), (1, x, y, 1), (2, 99, 99, 1)], EVENT)
    with pytest.raises(ValueError, match=rf"event 1, x={x} y={y}, outside"):
        to_frames(events, 2, (5, 9))


def test_no_steps_and_unknown_slicing_are_refused() -> None:
    with pytest.raises(ValueError, match="steps=0"):
        to_frames(np.zeros(1, EVENT), 0, (1, 1))
    plain = to_frames.__wrapped__  # type: ignore[attr-defined]  # without the tests' type checks
    with pytest.raises(ValueError, match="by='bins'"):
        plain(np.zeros(1, EVENT), 2, (1, 1), "bins")


@pytest.mark.slow
def test_all_real_recordings_are_read_and_lose_no_event(shared: Path) -> None:
    for path in all_recordings(shared):
        events = read_events(path)
        assert len(events) == path.stat().st_size // 5
        assert (np.diff(events["t"]) >= 0).all()
        assert events["t"][-1] < 400_000
        size = (int(events["y"].max()) + 1, int(events["x"].max()) + 1)
        for by in ("count", "time"):
            assert to_frames(events, 10, size, by).sum(dtype=torch.float64) == len(events)


def test_a_sparse_file_of_8_gb_is_refused_unread(tmp_path: Path) -> None:
    for name in ("e.bin", "e.npz", "e.aedat"):
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(8 << 30)
        with pytest.raises(ValueError, match=rf"{name}: 8589934592 bytes, .* cut it") as error:
            read_recording(path)
        assert "\n" not in str(error.value)


def frames_by_loop_on_grid(
    events: np.ndarray, steps: int, size: tuple[int, int], sensor: tuple[int, int]
) -> Tensor:
    frames = torch.zeros(steps, 2, *size)
    for i, (_, x, y, p) in enumerate(events.tolist()):
        frames[i * steps // len(events), p, y * size[0] // sensor[0], x * size[1] // sensor[1]] += 1
    return frames


@settings(max_examples=50, deadline=None)
@given(events=recordings(), H=st.integers(1, 12), W=st.integers(1, 12), steps=st.integers(1, 5))
def test_events_are_binned_straight_into_a_grid_of_any_size(
    events: np.ndarray, H: int, W: int, steps: int
) -> None:
    frames = to_frames(events, steps, (H, W), sensor=(5, 9))
    assert torch.equal(frames, frames_by_loop_on_grid(events, steps, (H, W), (5, 9)))
    assert frames.sum() == len(events)


def test_a_grid_of_half_the_sensor_sums_blocks_of_two_by_two() -> None:
    rng = np.random.default_rng(0)
    events = np.zeros(500, EVENT)
    events["x"], events["y"], events["p"] = rng.integers(0, (8, 6, 2), (500, 3)).T
    fine = to_frames(events, 3, (6, 8))
    blocks = fine.view(3, 2, 3, 2, 4, 2).sum((3, 5))
    assert torch.equal(to_frames(events, 3, (3, 4), sensor=(6, 8)), blocks)


def test_an_event_outside_the_sensor_is_refused_even_where_the_frame_is_larger() -> None:
    events = np.array([(0, 9, 0, 0)], EVENT)
    with pytest.raises(ValueError, match=r"event 0, x=9 y=0, outside the sensor of H=5 W=9"):
        to_frames(events, 1, (100, 100), sensor=(5, 9))


def test_products_beyond_32_bits_do_not_overflow() -> None:
    events = np.zeros(3, EVENT)
    events["t"] = [0, 1 << 40, (1 << 41) - 1]
    events["x"] = [0, 16384, 32767]
    assert to_frames(events, 1 << 10, (1, 1), "time", (1, 32768)).nonzero()[:, 0].tolist() == [
        0,
        512,
        1023,
    ]
    wide = to_frames(events, 1, (1, 1 << 20), sensor=(1, 32768))
    assert wide.nonzero()[:, 3].tolist() == [0, 16384 * 32, 32767 * 32]


@pytest.mark.slow
def test_a_place_with_more_than_2_to_the_24_events_is_counted_exactly() -> None:
    n = (1 << 24) + 2
    assert to_frames(np.zeros(n, EVENT), 1, (1, 1)).flatten().tolist() == [n, 0]


@pytest.mark.parametrize("by", ["count", "time"])
def test_no_events_are_frames_of_zero_and_one_event_is_in_the_first(by: str) -> None:
    none = to_frames(np.zeros(0, EVENT), 3, (2, 2), by, (4, 4))
    assert none.shape == (3, 2, 2, 2)
    assert none.sum() == 0
    one = to_frames(np.array([(77, 3, 1, 1)], EVENT), 3, (2, 2), by, (4, 4))
    assert one.nonzero().tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("how", ["max", "std"])
def test_normalized_frames_are_those_of_a_loop_over_samples(how: str) -> None:
    frames = torch.poisson(torch.full((3, 2, 2, 4, 5), 0.3))
    frames[1] = 0
    got = normalize(frames, how)
    for one, f in zip(got.double().numpy(), frames.double().numpy(), strict=True):
        scale = f.max() if how == "max" else np.sqrt(((f - f.mean()) ** 2).mean())
        np.testing.assert_allclose(one, f / scale if scale > 0 else f, rtol=1e-6)
    assert torch.equal(normalize(frames[0], how), got[0])


def test_none_gives_the_same_tensor_and_an_unknown_scale_is_refused() -> None:
    frames = torch.rand(1, 2, 3, 3)
    assert normalize(frames, "none") is frames
    plain = normalize.__wrapped__  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="normalize='l2'"):
        plain(frames, "l2")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_counted_once_or_refused_as_atis(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    path.write_bytes(data)
    counted_or_refused(path, read_events)


def counted_or_refused(path: Path, read: Callable[[Path], np.ndarray]) -> None:
    try:
        events = read(path)
    except ValueError as error:
        message = str(error)
    else:
        assert (np.diff(events["t"]) >= 0).all()
        assert to_frames(events, 3, (7, 7), sensor=(32768, 32768)).sum() == len(events) > 0
        return
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def write_npz(path: Path, **columns: object) -> Path:
    np.savez_compressed(path, **columns)
    return path


def test_an_npz_file_is_read_whatever_its_types(tmp_path: Path) -> None:
    events = np.array([(5, 1, 2, 1), (5, 0, 0, 0), (9, 8, 4, 1)], EVENT)
    columns = {name: events[name] for name in "txyp"}
    for change in (
        {},
        {"t": columns["t"].astype(np.uint32)},
        {"p": columns["p"].astype(bool)},
        {"p": np.array([1, -1, 1])},
        {"x": columns["x"].astype(np.uint8), "y": columns["y"].astype(np.int64)},
    ):
        path = write_npz(tmp_path / "e.npz", **(columns | change))
        assert np.array_equal(read_npz(path), events)
        assert read_recording(path)[1] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.array([1])}, r"x has shape \(1,\) of int64"),
        ({"y": np.array([[1, 2]])}, r"y has shape \(1, 2\)"),
        ({"t": np.array([1.0, 2.0])}, "t is float64: give whole microseconds$"),
        ({"x": np.array([1.0, 2.0])}, "x is float64: give whole numbers$"),
        ({"x": np.array([1, 40000])}, r"event 1 has x=40000, outside 0 to 32767"),
        ({"y": np.array([-1, 0])}, r"event 0 has y=-1, outside 0"),
        ({"p": np.array([1, 2])}, r"event 1 has p=2, outside -1 to 1"),
        ({"t": np.array([1, 1 << 63], np.uint64)}, r"event 1 has t=9223372036854775808"),
        ({"t": np.array([2, 1])}, r"time runs backwards at event 1, from 2 to 1 .*: sort it by"),
        ({name: np.zeros(0, int) for name in "txyp"}, "no events"),
        ({"p": np.array([None, "x"], object)}, r"not a \.npz file .*allow_pickle=False"),
    ],
)
def test_a_broken_npz_file_is_refused(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    columns = {name: np.zeros(2, int) for name in "txyp"} | change
    path = write_npz(tmp_path / "e.npz", **columns)
    with pytest.raises(ValueError, match=rf"e\.npz: {message}") as error:
        read_npz(path)
    assert "\n" not in str(error.value)


def test_npz_files_without_an_array_or_that_are_not_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"e\.npz: not a \.npz file of t, x, y, p .*p is not"):
        read_npz(write_npz(tmp_path / "e.npz", **{name: np.zeros(2, int) for name in "txy"}))
    np.save(tmp_path / "f.npy", np.zeros(3))
    (tmp_path / "f.npy").rename(tmp_path / "f.npz")
    with pytest.raises(ValueError, match=r"f\.npz: not a \.npz file"):
        read_npz(tmp_path / "f.npz")


def test_an_npz_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "e.npz", **{name: np.zeros(9999, int) for name in "txyp"})
    assert path.stat().st_size < 9999
    monkeypatch.setattr("estl.data.formats.npz.MAX_BYTES", 9999)
    with pytest.raises(ValueError, match=r"e\.npz: .* unpacks to more than 9999 bytes"):
        read_npz(path)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    cut=st.integers(0, 2000), places=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)))
)
def test_any_bytes_are_counted_once_or_refused_as_npz(
    cut: int, places: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    write_npz(path, **{name: np.arange(9) % (2 if name == "p" else 9) for name in "txyp"})
    data = bytearray(path.read_bytes())
    for place, value in places:
        data[place % len(data)] = value
    path.write_bytes(data[: len(data) - cut] if cut < len(data) // 2 else data)
    counted_or_refused(path, read_npz)


@settings(max_examples=50, deadline=None)
@given(
    data=st.binary(max_size=60), start=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
)
def test_bytes_that_are_no_archive_are_refused_as_npz(
    data: bytes, start: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "none.npz"
    path.write_bytes(start + data)
    with pytest.raises(ValueError, match=r"none\.npz: "):
        read_npz(path)


def test_an_array_that_claims_80_terabytes_is_refused(tmp_path: Path) -> None:
    header = (
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000,), }".ljust(117) + b"\n"
    )
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        for name in "txyp":
            data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(80)
            archive.writestr(f"{name}.npy", data)
    with pytest.raises(ValueError, match=r"e\.npz: not a \.npz file"):
        read_npz(tmp_path / "e.npz")
