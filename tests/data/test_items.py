from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from estl.data.catalog import Files
from estl.data.items import Item, Pairing, find_pairs, fingerprint
from estl.data.published import pick_items, read_lists
from estl.data.splits import SplitData, select_items, split_items

ITEMS = [
    Item(label, f"{i:04d}") for label, n in (("cat", 20), ("dog", 7), ("eel", 1)) for i in range(n)
]


def write_pairs(root: Path, names: list[str]) -> tuple[Path, Path]:
    for name in names:
        for path in (root / "rec" / f"{name}.bin", root / "img" / f"{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(path))
    return root / "rec", root / "img"


def pair_folders(rec: Path, img: Path | None = None, **options: Any) -> Pairing:
    """As a set pairs them: recordings in the folder `rec`, images in the folder `img`."""
    images = None
    if img is not None:
        images = Files("images", (img.name,), ("*/*.png", "*/*.jpg"), "the images")
    files = Files("recordings", (rec.name,), ("*/*.bin",), "the recordings", images)
    return find_pairs(files, rec.parent, **options)


def list_items(rec: Path, img: Path | None = None) -> list[Item]:
    return pair_folders(rec, img).items


def labels(items: list[Item]) -> dict[str, int]:
    return dict(Counter(item.label for item in items))


@pytest.mark.slow
@settings(deadline=None)
@given(st.permutations(ITEMS), st.integers(0, 5))
def test_a_split_does_not_depend_on_the_listing(order: list[Item], seed: int) -> None:
    assert split_items(order, 0.3, seed) == split_items(ITEMS, 0.3, seed)
    assert select_items(order, 1, seed) == select_items(ITEMS, 1, seed)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_a_split_is_a_partition_with_the_fraction_of_each_class(fraction: float) -> None:
    rest, part = split_items(ITEMS, fraction)
    assert sorted(rest + part) == ITEMS
    assert not set(rest) & set(part)
    for label, n in (("cat", 20), ("dog", 7)):
        expected = max(int(fraction * n + 0.5), 1) if fraction else 0
        assert labels(part).get(label, 0) == expected


def test_another_seed_gives_another_split() -> None:
    assert len({tuple(split_items(ITEMS, 0.3, seed)[1]) for seed in range(10)}) > 5


def test_a_class_is_split_the_same_whatever_the_other_classes_are() -> None:
    cats = [item for item in ITEMS if item.label == "cat"]
    assert [i for i in split_items(ITEMS, 0.3)[1] if i.label == "cat"] == split_items(cats, 0.3)[1]


def test_splits_stay_what_they_were_in_earlier_releases() -> None:
    part = split_items(ITEMS, 0.2)[1]
    assert [str(item) for item in part] == [
        "cat/0003",
        "cat/0007",
        "cat/0012",
        "cat/0015",
        "dog/0003",
    ]


def test_fewer_items_per_class_are_a_subset_of_more() -> None:
    cats = [item for item in ITEMS if item.label == "cat"]
    chosen = [select_items(cats, n, seed=3) for n in range(1, 21)]
    for n, (fewer, more) in enumerate(pairwise(chosen), start=1):
        assert len(fewer) == n
        assert set(fewer) < set(more)


def test_every_item_is_drawn_equally_often() -> None:
    cats = [item for item in ITEMS if item.label == "cat"]
    drawn = Counter(item for seed in range(200) for item in split_items(cats, 0.25, seed)[1])
    assert len(drawn) == 20
    assert all(25 < n < 75 for n in drawn.values())  # 50, standard deviation 6


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction is 1\.0: give a share"):
        split_items(ITEMS, 1.0)
    with pytest.raises(ValueError, match=r"per_class=2: class 'eel' has 1 to 1"):
        select_items(ITEMS, 2)
    with pytest.raises(ValueError, match="per_class=0"):
        select_items(ITEMS, 0)
    with pytest.raises(ValueError, match="cat/0000 is listed twice"):
        split_items([*ITEMS, ITEMS[0]], 0.5)


def test_recordings_are_paired_with_the_image_of_the_same_class_and_number(tmp_path: Path) -> None:
    rec, img = write_pairs(tmp_path, ["b/1", "a/2", "a/1"])
    (img / "a" / "2.png").rename(img / "a" / "2.jpg")
    items = list_items(rec, img)
    assert [str(item) for item in items] == ["a/1", "a/2", "b/1"]
    for item in items:
        assert item.events == rec / item.label / f"{item.number}.bin"
        assert item.image is not None
        assert (item.image.parent.name, item.image.stem) == (item.label, item.number)
    assert all(item.image is None for item in list_items(rec))


def test_a_recording_without_its_image_is_refused(tmp_path: Path) -> None:
    rec, img = write_pairs(tmp_path, ["a/1", "a/2"])
    (img / "a" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 recordings have no image, the first .*2\.bin"):
        list_items(rec, img)


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recordings"):
        list_items(tmp_path / "none")


def test_a_fingerprint_changes_with_items_files_and_splits_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    rec, img = write_pairs(tmp_path, ["a/1", "a/2", "b/1"])
    items = list_items(rec, img)
    splits = {"train": items[:2], "test": items[2:]}
    first = fingerprint(splits)
    assert len(first) == 12
    assert fingerprint(splits) == first
    assert fingerprint({"train": items[1::-1], "test": items[2:]}) == first

    others = [
        fingerprint({"train": items[:1], "test": items[1:]}),
        fingerprint({"train": items[:1], "test": items[2:]}),
        fingerprint({"fit": items[:2], "test": items[2:]}),
        fingerprint({"train": list_items(rec)[:2], "test": list_items(rec)[2:]}),
    ]
    path = rec / "a" / "2.bin"
    text = path.read_bytes()
    for changed in (b"?" + text[1:], text + b"?", text + bytes(5000)):
        path.write_bytes(changed)
        others.append(fingerprint(splits))
    path.write_bytes(text)
    assert fingerprint(splits) == first
    (rec / "a" / "2.bin").rename(rec / "a" / "3.bin")
    (img / "a" / "2.png").rename(img / "a" / "3.png")
    renamed = list_items(rec, img)
    others.append(fingerprint({"train": renamed[:2], "test": renamed[2:]}))
    assert len({first, *others}) == len(others) + 1


def test_recordings_alone_and_images_alone_are_told_apart(tmp_path: Path) -> None:
    rec, img = write_pairs(tmp_path, ["a/1", "a/2", "a/3", "b/1", "c/1"])
    (img / "a" / "2.png").unlink()
    (rec / "a" / "3.bin").unlink()
    (rec / "b" / "1.bin").unlink()
    pairing = pair_folders(rec, img, missing="skip")
    assert [str(item) for item in pairing.items] == ["a/1", "c/1"]
    assert pairing.alone == [rec / "a" / "2.bin"]
    assert pairing.extra == [img / "a" / "3.png", img / "b" / "1.png"]
    assert [str(item) for item in pair_folders(rec, img, leave_out=["a"]).items] == ["c/1"]
    without = pair_folders(rec)
    assert (len(without.items), without.alone, without.extra) == (3, [], [])


def test_a_class_with_one_item_keeps_it_for_training() -> None:
    rest, part = split_items(ITEMS, 0.4)
    assert labels(rest)["eel"] == 1
    assert "eel" not in labels(part)
    assert "eel" in labels(split_items(ITEMS, 0.5)[1])  # floor(1/2 + 1/2) of one is one


class Listed(SplitData):
    """Items without content."""

    def __init__(self, items: list[Item], **options: Any) -> None:
        super().__init__(items, load_nothing, T=1, frame_size=(1, 1), **options)


def load_nothing(item: Item) -> tuple[torch.Tensor, None]:
    return torch.zeros(1, 2, 1, 1), None


def write_lists(folder: Path, **lists: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_published_lists_are_read_with_and_without_suffix(tmp_path: Path) -> None:
    lists = write_lists(
        tmp_path,
        train="cat/0003.bin\n\ncat/0001\r\n",
        val="dog/0000\n",
        test="dog\\0001.jpg\neel/0000\n",
    )
    splits = pick_items(read_lists(lists), ITEMS)
    assert list(splits) == ["train", "val", "test"]
    assert {name: list(map(str, items)) for name, items in splits.items()} == {
        "train": ["cat/0001", "cat/0003"],
        "val": ["dog/0000"],
        "test": ["dog/0001", "eel/0000"],
    }


def test_without_a_list_the_validation_split_is_taken_from_the_training_list(
    tmp_path: Path,
) -> None:
    cats = [item for item in ITEMS if item.label == "cat"]
    lists = write_lists(tmp_path, train="\n".join(map(str, cats)), test="dog/0001")
    splits = Listed(ITEMS, splits=lists, val_fraction=0.2, split_seed=3).splits
    assert (splits["train"], splits["val"]) == split_items(cats, 0.2, 3)
    assert list(splits) == ["train", "val", "test"]
    assert Listed(ITEMS, splits=lists, val_fraction=0.0).splits["val"] == []
    (lists / "val.txt").write_text("dog/0002")
    splits = Listed(ITEMS, splits=lists, val_fraction=0.2).splits
    assert (splits["train"], splits["val"]) == (cats, [Item("dog", "0002")])


def test_a_set_with_a_test_split_of_its_own_keeps_it() -> None:
    data = Listed(ITEMS[:20], test=ITEMS[20:], val_fraction=0.2, per_class=3)
    assert data.splits["test"] == ITEMS[20:]
    assert (data.sizes["train"], data.sizes["val"]) == (3, 4)
    with pytest.raises(ValueError, match=r"test_fraction=0\.3: the set has a test split"):
        Listed(ITEMS[:20], test=ITEMS[20:], test_fraction=0.3)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("cat/0001\ncat/0099", "dog/0001", r"train\.txt line 2: 'cat/0099' is no item of"),
        ("cat/0001\ncat/0001.bin", "dog/0001", r"train\.txt line 2: .* in train\.txt line 1"),
        ("cat/0001", "dog/0001\n\ncat/0001", r"test\.txt line 3: .* in train\.txt line 1"),
        ("cat/0001", "\n", r"test\.txt: no items in this list"),
    ],
)
def test_bad_lists_are_refused_with_file_and_line(
    tmp_path: Path, train: str, test: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pick_items(read_lists(write_lists(tmp_path, train=train, test=test)), ITEMS)


def test_a_missing_or_binary_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no list .*test\.txt"):
        read_lists(write_lists(tmp_path, train="cat/0001"))
    (tmp_path / "test.txt").write_bytes(b"cat/\xff")
    with pytest.raises(ValueError, match=r"test\.txt: not a text file \(byte 4\)"):
        read_lists(tmp_path)


def test_names_and_classes_that_are_left_out_may_be_listed(tmp_path: Path) -> None:
    lists = write_lists(tmp_path, train="cat/0001\nfox/1\nowl/2.bin", test="dog/0001\nowl/3")
    splits = pick_items(read_lists(lists), ITEMS, left_out={"fox/1", "owl/"})
    assert list(map(str, splits["train"] + splits["test"])) == ["cat/0001", "dog/0001"]
    with pytest.raises(ValueError, match=r"line 3: 'owl/2\.bin'"):
        pick_items(read_lists(lists), ITEMS, left_out={"fox/1"})
