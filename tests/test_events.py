import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from estl.data.events import EVENT, read_events, to_frames

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
    frames = to_frames(events, steps, (5, 9), by)  # type: ignore[arg-type]
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


def test_all_real_recordings_are_read_and_lose_no_event(shared: Path) -> None:
    for path in all_recordings(shared):
        events = read_events(path)
        assert len(events) == path.stat().st_size // 5
        assert (np.diff(events["t"]) >= 0).all()
        assert events["t"][-1] < 400_000
        size = (int(events["y"].max()) + 1, int(events["x"].max()) + 1)
        for by in ("count", "time"):
            assert to_frames(events, 10, size, by).sum(dtype=torch.float64) == len(events)  # type: ignore[arg-type]
