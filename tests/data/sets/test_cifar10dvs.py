from pathlib import Path

import pytest
import torch

from estl.data.frames import Slicing
from estl.data.items import Item
from estl.data.reading import read_cifar10dvs
from estl.data.sets.cifar10dvs import CIFAR10DVS, find_recordings
from tests.tiny_sets import EVENTS, read_file, write_aedat, write_cifar10dvs, write_npz


def read_frames(path: Path, T: int, size: int, by: Slicing) -> torch.Tensor:
    return read_cifar10dvs(Item("bird", path.stem, events=path), T, size, by)[0]


def test_frames_hold_each_event_where_the_fields_conversion_puts_it(tmp_path: Path) -> None:
    frames = read_frames(write_aedat(tmp_path / "e.aedat"), T=2, size=128, by="count")
    expected = torch.zeros(2, 2, 128, 128)
    for i, (_, x, y, p) in enumerate(EVENTS):
        expected[i // 2, p, y, x] += 1
    assert torch.equal(frames, expected)


def test_a_recording_gives_the_same_frames_from_aedat_and_from_npz(tmp_path: Path) -> None:
    raw, converted = write_aedat(tmp_path / "e.aedat"), write_npz(tmp_path / "e.npz")
    for size in (48, 128):
        frames = read_frames(raw, T=3, size=size, by="time")
        assert torch.equal(frames, read_frames(converted, T=3, size=size, by="time"))
        assert frames.sum() == len(EVENTS)


@pytest.mark.parametrize("below", ["", "extract", "some/folder"])
@pytest.mark.parametrize("suffix", ["aedat", "npz"])
def test_recordings_are_found_in_any_layout(tmp_path: Path, below: str, suffix: str) -> None:
    items = find_recordings(write_cifar10dvs(tmp_path, below, suffix, each=2))
    assert [str(item) for item in items] == [
        "airplane/cifar10_airplane_0",
        "airplane/cifar10_airplane_1",
        "bird/cifar10_bird_0",
        "bird/cifar10_bird_1",
    ]


def test_an_archive_unpacked_into_a_folder_of_its_name_is_read(tmp_path: Path) -> None:
    write_aedat(tmp_path / "bird" / "bird" / "cifar10_bird_0.aedat")
    assert [str(item) for item in find_recordings(tmp_path)] == ["bird/cifar10_bird_0"]


def test_raw_recordings_win_and_of_converted_ones_frames_are_not_events(tmp_path: Path) -> None:
    write_cifar10dvs(tmp_path, "events_np", "npz", each=1)
    write_cifar10dvs(tmp_path, "frames_number_10_split_by_number", "npz", each=1)
    found = {item.events.parts[-3] for item in find_recordings(tmp_path) if item.events}
    assert found == {"events_np"}
    write_cifar10dvs(tmp_path, "extract", "aedat", each=1)
    found = {item.events.parts[-3] for item in find_recordings(tmp_path) if item.events}
    assert found == {"extract"}


def test_no_recordings_no_class_and_the_same_recording_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no recordings .*point --data-path at CIFAR10-DVS"
    ):
        find_recordings(tmp_path)
    twice = write_aedat(tmp_path / "a" / "bird" / "cifar10_bird_0.aedat")
    write_aedat(tmp_path / "b" / "bird" / "cifar10_bird_0.aedat")
    with pytest.raises(
        ValueError, match=rf"b/bird/cifar10_bird_0\.aedat and {twice} are the same recording"
    ):
        find_recordings(tmp_path)
    wrong = write_aedat(tmp_path / "a" / "cifar10_a_0.aedat")
    with pytest.raises(ValueError, match=rf"{wrong}: its folder is not named as one of airplane"):
        find_recordings(tmp_path)


def test_nine_to_one_by_class_and_a_tenth_of_the_nine_for_validation(tmp_path: Path) -> None:
    data = CIFAR10DVS(write_cifar10dvs(tmp_path), batch_size=4)
    assert data.sizes == {"train": 32, "val": 4, "test": 4}
    assert {item.label for item in data.splits["test"]} == {"airplane", "bird"}
    names = [str(item) for items in data.splits.values() for item in items]
    assert len(set(names)) == 40
    again = CIFAR10DVS(tmp_path)
    assert again.splits == data.splits
    assert again.fingerprint == data.fingerprint
    other = CIFAR10DVS(tmp_path, split_seed=1)
    assert other.splits["test"] != data.splits["test"]


def test_a_batch_has_frames_of_the_size_asked_for_and_no_image(tmp_path: Path) -> None:
    data = CIFAR10DVS(write_cifar10dvs(tmp_path, each=4), batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.events.shape == (4, 10, 2, 48, 48)
    assert batch.image is None
    assert (batch.events.sum((1, 2, 3, 4)) == len(EVENTS)).all()
    small = CIFAR10DVS(tmp_path, T=3, size=16, by="time")
    assert small.load(small.splits["test"][0])[0].shape == (3, 2, 16, 16)


def test_one_file_is_read_as_the_set_reads_it(tmp_path: Path) -> None:
    data = CIFAR10DVS(write_cifar10dvs(tmp_path, each=4))
    item = data.splits["train"][0]
    assert item.events is not None
    options = {"T": 10, "size": 48, "by": "count", "root": "ignored"}
    frames = read_file(item.events, "estl.data.CIFAR10DVS", options)
    assert torch.equal(frames, data.load(item)[0])


def test_an_event_outside_the_sensor_names_the_file(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "e.npz", [(1, 128, 0, 1)])
    with pytest.raises(ValueError, match=rf"{path}: event 0, x=128 y=0, outside the sensor"):
        read_frames(path, T=1, size=48, by="count")
