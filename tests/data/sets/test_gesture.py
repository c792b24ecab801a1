import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from estl.data import reading
from estl.data.reading import GESTURES, interval, read_labels
from estl.data.sets.gesture import DVSGesture
from tests.tiny_sets import TITLE, read_file, write_gestures, write_recording


def read_whole(path: Path, **options: Any) -> torch.Tensor:
    return read_file(path, "estl.data.DVSGesture", {"by": "count"} | options)


def test_each_labeled_interval_is_an_item_of_its_own(tmp_path: Path) -> None:
    data = DVSGesture(write_gestures(tmp_path, training=2, test=1), val_fraction=0.0)
    assert [str(item) for item in data.splits["test"]] == sorted(
        f"{label}/user03_{light}/{i}"
        for light in ("led", "natural")
        for i, label in enumerate(["hand_clapping", "arm_roll", "arm_roll", "other_gestures"])
    )
    assert data.sizes == {"train": 16, "val": 0, "test": 8}


def test_an_item_holds_the_events_of_its_interval_and_no_others(tmp_path: Path) -> None:
    data = DVSGesture(write_gestures(tmp_path), T=2, size=128)
    for items in data.splits.values():
        item = next(item for item in items if item.number.endswith("/1"))
        start, stop = interval(item)
        assert (start, stop) == (200, 445)
        frames, image = data.load(item)
        assert image is None
        x = list(range(20, 45))  # times 200, 210, ... 440
        y = int(item.number[4:6])
        assert frames.nonzero().tolist() == [[int(k >= 13), 1, y, x[k]] for k in range(25)]
        assert frames.sum() == 25


def test_validation_and_test_are_of_people_who_are_not_in_training(tmp_path: Path) -> None:
    data = DVSGesture(write_gestures(tmp_path))
    users = {name: {item.number[:6] for item in items} for name, items in data.splits.items()}
    assert {name: len(found) for name, found in users.items()} == {"train": 18, "val": 2, "test": 2}
    assert not users["train"] & users["val"]
    assert users["test"] == {"user21", "user22"}
    assert DVSGesture(tmp_path).splits == data.splits
    assert DVSGesture(tmp_path, split_seed=1).splits != data.splits


def test_a_batch_has_frames_of_the_size_asked_for(tmp_path: Path) -> None:
    data = DVSGesture(write_gestures(tmp_path / "DvsGesture", 4, 1).parent, batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.events.shape == (4, 16, 2, 64, 64)
    assert batch.image is None
    assert data.classes == ("arm_roll", "hand_clapping", "other_gestures")


def test_one_file_is_read_whole(tmp_path: Path) -> None:
    path = write_recording(tmp_path, "user01_led", [])
    frames = read_whole(path, T=4, size=32, root="ignored")
    assert frames.shape == (4, 2, 32, 32)
    assert frames.sum((1, 2, 3)).tolist() == [25] * 4


def test_only_the_packets_of_an_interval_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DVSGesture(write_gestures(tmp_path, 2, 1), T=1)
    read: list[int] = []
    plain = reading.to_frames
    monkeypatch.setattr(
        reading, "to_frames", lambda e, *a, **k: (read.append(len(e)), plain(e, *a, **k))[1]
    )
    item = next(item for item in data.splits["test"] if item.number.endswith("/0"))
    assert item.events is not None
    broken = bytearray(item.events.read_bytes())
    broken[-4:] = struct.pack("<i", 0)  # time runs backwards in the last packet
    item.events.write_bytes(broken)
    assert data.load(item)[0].sum() == 10
    assert read == [10]
    with pytest.raises(ValueError, match="time runs backwards"):
        read_whole(item.events, T=1, size=64)


def test_the_fingerprint_knows_the_intervals(tmp_path: Path) -> None:
    data = DVSGesture(write_gestures(tmp_path, 2, 1))
    before = data.fingerprint
    assert DVSGesture(tmp_path).fingerprint == before
    labels = tmp_path / "user03_led_labels.csv"
    labels.write_text(labels.read_text().replace("600,700", "600,710"))
    assert DVSGesture(tmp_path).fingerprint != before


def test_an_interval_without_events_names_the_file_and_the_interval(tmp_path: Path) -> None:
    write_gestures(tmp_path, 2, 1)
    (tmp_path / "user03_led_labels.csv").write_text(TITLE + "1,5000,6000\n")
    data = DVSGesture(tmp_path)
    item = next(item for item in data.splits["test"] if "led" in item.number)
    with pytest.raises(ValueError, match=r"user03_led\.aedat: no events from 5000 to 6000 micro"):
        data.load(item)


def test_labels_are_read_by_the_sets_own_numbers(tmp_path: Path) -> None:
    lines = "".join(f"{i},{i},{i + 9}\r\n" for i in range(1, 12))
    (tmp_path / "a_labels.csv").write_text(TITLE + lines + "\n")
    assert read_labels(tmp_path / "a.aedat") == [
        (name, (i, i + 9)) for i, name in enumerate(GESTURES, 1)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 is ''"),
        ("start,stop\n1,2\n", "line 1 is 'start,stop'"),
        (TITLE + "1,2,3\n1,2\n", "line 3 is '1,2', not three numbers"),
        (TITLE + "1,2,3,4\n", "line 2 is '1,2,3,4', not three"),
        (TITLE + "one,2,3\n", "line 2 is 'one,2,3', not three"),
        (TITLE + "0,2,3\n", "line 2, '0,2,3', is not a class of 1 to 11"),
        (TITLE + "12,2,3\n", "line 2, '12,2,3', is not a class"),
        (TITLE + "1,3,3\n", "line 2, '1,3,3', is not a class"),
        (TITLE + "1,-3,3\n", "line 2, '1,-3,3', is not a class"),
    ],
)
def test_broken_labels_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a_labels.csv").write_text(text)
    with pytest.raises(ValueError, match=f"a_labels.csv: {message}") as error:
        read_labels(tmp_path / "a.aedat")
    assert "\n" not in str(error.value)


def test_a_recording_in_both_lists_or_twice_in_one_is_refused(tmp_path: Path) -> None:
    write_gestures(tmp_path, 2, 1)
    test = tmp_path / "trials_to_test.txt"
    listed = test.read_text()
    test.write_text(listed + "user01_led.aedat\n")
    with pytest.raises(
        ValueError, match=r"user01_led\.aedat is listed in trials_to_train\.txt and"
    ):
        DVSGesture(tmp_path)
    test.write_text(listed + "user03_led.aedat\n")
    with pytest.raises(ValueError, match=r"trials_to_test\.txt: user03_led\.aedat is listed twice"):
        DVSGesture(tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("trials_to_test.txt", r"no list trials_to_test\.txt in .*: point --data-path at DVS128"),
        ("user01_led.aedat", r"no recording .*user01_led\.aedat"),
        ("user03_led_labels.csv", r"no labels .*user03_led_labels\.csv"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, missing: str, message: str) -> None:
    write_gestures(tmp_path, 2, 1)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        DVSGesture(tmp_path)


def test_frames_are_the_same_whether_cut_by_packet_or_from_the_whole(tmp_path: Path) -> None:
    data = DVSGesture(write_gestures(tmp_path, 2, 1), T=1, size=128)
    item = data.splits["test"][2]
    assert item.events is not None
    whole = read_whole(item.events, T=1, size=128)
    start, stop = interval(item)
    keep = torch.zeros(128)
    keep[start // 10 : (stop + 9) // 10] = 1
    assert torch.equal(data.load(item)[0], whole * keep)
