"""What is the same in two splits is found, and stops a training."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from estl.commands import main
from estl.data.check import check, refuse_leaks
from estl.data.formats.atis import read_events
from estl.data.formats.images import read_rgb
from estl.data.frames import to_frames
from estl.data.items import Item, missing_partners
from estl.data.module import ItemData
from estl.data.sets.digits import Digits
from estl.data.sets.nmnist import NMNISTPairs
from estl.data.similar import near, perceptual_hash
from estl.data.twins import repeated

NMNIST = ["--arch=vggsnn-pooled", "--student.init_args.layers=[4]", "--T=2", "--epochs=1"]


@pytest.fixture
def root(shared: Path, tmp_path: Path) -> Path:
    """Real pairs: six training recordings of two digits, two test recordings, their images."""
    source, root = shared / "data" / "nmnist-pairs", tmp_path / "set"
    for part, digit, n in (
        ("Train", "0", 3),
        ("Train", "1", 3),
        ("Test", "0", 1),
        ("Test", "1", 1),
    ):
        for path in sorted((source / "N-MNIST" / part / digit).iterdir())[:n]:
            for folder, name in (("N-MNIST", path.name), ("MNIST", f"{path.stem}.png")):
                target = root / folder / part / digit / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / folder / part / digit / name, target)
    return root


def files(root: Path, part: str) -> list[Path]:
    return sorted((root / part).glob("*/*"))


def load(item: Item) -> tuple[Tensor, Tensor | None]:
    return torch.zeros(2, 2, 4, 4), None if item.image is None else read_rgb(item.image)


def listed(train: list[Item], test: list[Item]) -> ItemData:
    """A set by lists of names."""
    return ItemData({"train": train, "val": [], "test": test}, load, T=2, frame_size=(4, 4))


def test_real_sets_have_no_leak(shared: Path) -> None:
    for data in (NMNISTPairs(shared / "data" / "nmnist-pairs"), Digits(T=3, size=16)):
        refuse_leaks(data)
        assert repeated(data) == []


@pytest.mark.parametrize(("folder", "what"), [("MNIST", "image"), ("N-MNIST", "recording")])
def test_a_training_file_that_is_the_twin_of_a_test_item_is_refused(
    root: Path, folder: str, what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    twin, planted = files(root, f"{folder}/Test")[0], files(root, f"{folder}/Train")[-1]
    shutil.copy(twin, planted)
    data = NMNISTPairs(root, T=2, val_fraction=0.34)
    (group,) = repeated(data)
    assert group.what == what
    with pytest.raises(ValueError, match=f"same {what}.*allow_leaks=true") as error:
        refuse_leaks(data)
    assert str(twin) in str(error.value)
    assert str(planted) in str(error.value)
    words = ["fit", "--dataset=nmnist", f"--data-path={root}", *NMNIST]
    run = tmp_path / "run"
    assert main([*words, f"--output-dir={run}"]) == 2
    said = capsys.readouterr().err
    assert str(planted) in said
    assert len(said.splitlines()) == 1
    assert not run.exists()


@pytest.mark.slow
def test_a_leak_that_is_allowed_is_trained_on(root: Path, tmp_path: Path) -> None:
    shutil.copy(files(root, "MNIST/Test")[0], files(root, "MNIST/Train")[-1])
    words = ["fit", "--dataset=nmnist", f"--data-path={root}", *NMNIST, "--batch-size=2"]
    words += ["--data.init_args.allow_leaks=true", "--data.init_args.val_fraction=0.34"]
    assert main([*words, f"--output-dir={tmp_path / 'run'}"]) == 0


def test_an_item_that_is_listed_in_two_splits_is_refused() -> None:
    with pytest.raises(ValueError, match="train item a/1 and test item a/1 have the same name"):
        refuse_leaks(listed([Item("a", "1"), Item("a", "2")], [Item("a", "1")]))


def test_files_are_the_same_only_if_every_byte_is(tmp_path: Path) -> None:
    content = bytearray(3 * 4096)
    paths = [tmp_path / f"{i}.bin" for i in range(3)]
    for i, path in enumerate(paths):
        content[6000] = i // 2
        path.write_bytes(content)
    items = [Item("a", str(i), events=path) for i, path in enumerate(paths)]
    refuse_leaks(listed(items[:2], items[2:]))  # the same within a split is no leak
    (group,) = repeated(listed(items[:2], items[2:]))
    assert not group.leak
    with pytest.raises(ValueError, match=r"a/0 \(.*0\.bin\) and test item a/1"):
        refuse_leaks(listed([items[0], items[2]], items[1:2]))


def test_one_file_in_two_splits_is_a_leak_and_windows_of_one_split_are_none(tmp_path: Path) -> None:
    path, other = tmp_path / "1.bin", tmp_path / "2.bin"
    path.write_bytes(b"a")
    other.write_bytes(b"b")
    cut = [Item("a", f"x/{i}", events=path) for i in range(3)]
    assert repeated(listed(cut, [Item("a", "y", events=other)])) == []
    with pytest.raises(ValueError, match=r"a/x/0 \(.*1.bin\) and test item a/y \(.*1.bin\)"):
        refuse_leaks(listed(cut, [Item("a", "y", events=path)]))


def test_sets_without_files_are_compared_by_their_content() -> None:
    def content(item: Item) -> list[bytes]:
        return [b"same" if item.number in "13" else item.number.encode()]

    def data(test: str) -> ItemData:
        splits = {"train": [Item("a", "1"), Item("a", "2")], "test": [Item("b", test)]}
        return ItemData(splits, load, T=2, frame_size=(4, 4), content=content)

    refuse_leaks(data("4"))
    with pytest.raises(ValueError, match="a/1 and test item b/3 have the same content"):
        refuse_leaks(data("3"))


def test_the_report_names_what_is_missing_broken_and_repeated(root: Path) -> None:
    data = NMNISTPairs(root, T=2, val_fraction=0.34)
    report = check(data, root)
    assert not report.wrong
    assert report.decoded == 8
    assert report.counts["train"] == {"0": 2, "1": 2}

    recordings = files(root, "N-MNIST/Train")
    recordings[0].write_bytes(recordings[0].read_bytes()[:-1])
    extra = root / "MNIST/Train/0/59999.png"
    shutil.copy(files(root, "MNIST/Train")[0], extra)
    report = check(data, root)
    assert [str(item) for item in report.unreadable] == [
        "/".join(recordings[0].with_suffix("").parts[-2:])
    ]
    assert "truncated" in next(iter(report.unreadable.values()))
    assert report.decoded == 7
    assert report.no_recording == [extra]
    assert report.wrong
    files(root, "MNIST/Test")[0].unlink()
    assert missing_partners(root)[0] == [files(root, "N-MNIST/Test")[0]]
    text = "\n".join(check(data, root).lines())
    assert str(recordings[0]) in text
    assert text.endswith("something is wrong")
    for i in range(8):
        shutil.copy(files(root, "MNIST/Train")[0], root / f"MNIST/Train/0/{i}.png")
    report = check(data, root)
    assert "  and 4 more (--all lists them)" in list(report.lines())
    assert {f"  {path}" for path in report.no_recording} < {*report.lines(None)}
    one_each = check(data, limit=1)
    assert one_each.decoded + len(one_each.unreadable) == 3


def test_images_that_are_left_out_are_not_missed(root: Path) -> None:
    files(root, "MNIST/Train")[0].unlink()
    with pytest.raises(FileNotFoundError, match="have no image"):
        NMNISTPairs(root, T=2)
    report = check(NMNISTPairs(root, T=2, images=False, val_fraction=0.34), root)
    assert report.no_image == [files(root, "N-MNIST/Train")[0]]
    assert not report.wrong


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("", "a1", "train: no items"),
        ("a1 b1", "", "test: no items"),
        ("a1", "a2 b1 c1", "test: classes that train lacks (2): b, c"),
    ],
)
def test_splits_that_lack_something_are_wrong(train: str, test: str, said: str) -> None:
    def items(names: str) -> list[Item]:
        return [Item(name[0], name[1:]) for name in names.split()]

    text = "\n".join((report := check(listed(items(train), items(test)))).lines())
    assert report.wrong
    assert len(report.lacking) == 1
    assert f"  {said}" in text
    assert "val: 0 items (nothing is selected" in text
    assert text.endswith("something is wrong")


def test_no_validation_is_wrong_unless_it_was_asked_for(root: Path) -> None:
    report = check(NMNISTPairs(root, T=2, images=False, val_fraction=0.0))
    assert (report.wrong, report.lacking) == (False, {})
    assert "val: 0 items (nothing is selected, the final weights are reported)" in report.lines()
    for digit in (root / "N-MNIST" / "Train").iterdir():  # one recording of each class is left
        for path in list(digit.iterdir())[1:]:
            path.unlink()
    report = check(NMNISTPairs(root, T=2, images=False, val_fraction=0.34))
    assert report.lacking == {"val": "no items, though val_fraction is 0.34: too few to draw from"}
    assert report.wrong


@pytest.mark.slow
@pytest.mark.parametrize(("option", "status"), [("val_fraction", 0), ("test_fraction", 1)])
def test_check_of_a_set_with_an_empty_split_has_this_status(option: str, status: int) -> None:
    words = ["data", "check", "--dataset=digits", "--T=3", "--limit=2"]
    assert main([*words, f"--data.init_args.{option}=0"]) == status


def test_the_same_picture_in_another_file_format_is_found(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (12, 9, 3), dtype=torch.uint8).numpy()
    for name in ("a.png", "b.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
    items = [Item("x", p.stem, image=p) for p in sorted(tmp_path.iterdir())]
    report = check(listed(items[:1], items[1:]))
    assert [g.what for g in report.same] == ["pixels"]
    assert report.wrong
    assert report.near == []  # said once


def changed(path: Path, how: str) -> Tensor:
    image = Image.open(path).convert("RGB")
    if how == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=50)
        image = Image.open(buffer).convert("RGB")
    else:
        image = image.resize((image.width // 2, image.height // 2))
    return torch.from_numpy(np.array(image)).movedim(-1, 0) / 255


@pytest.mark.slow
def test_copies_of_photographs_look_the_same_and_other_photographs_do_not(shared: Path) -> None:
    folder = shared / "data" / "caltech101-128px" / "101_ObjectCategories"
    paths = sorted(folder.glob("*/*.jpg"))[::16]
    hashes = np.array([perceptual_hash(read_rgb(path)) for path in paths], np.uint64)
    for how in ("jpeg", "half"):
        copies = [perceptual_hash(changed(path, how)) for path in paths]
        bits = np.bitwise_count(hashes ^ np.array(copies, np.uint64))
        assert (bits <= 2).mean() > 0.98
    assert len(near(hashes, 2)) <= 3  # of 64,261 pairs


def test_a_near_duplicate_is_reported_but_stops_nothing(tmp_path: Path, shared: Path) -> None:
    source = shared / "data" / "ncaltech101-pairs" / "101_ObjectCategories"
    paths = sorted(source.glob("*/*.jpg"))
    with Image.open(paths[0]) as image:
        image.resize((image.width // 2, image.height // 2)).save(tmp_path / "small.png")
    items = [Item(p.parent.name, p.stem, image=p) for p in paths]
    twin = Item(items[-1].label, "small", image=tmp_path / "small.png")
    data = listed(items, [twin])
    report = check(data)
    (group,) = report.near
    assert {m.item for m in group.members} == {items[0], twin}
    assert not report.wrong
    refuse_leaks(data)


def test_near_finds_the_pairs_that_a_loop_finds() -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 8, 1100).astype(np.uint64)
    expected = [
        (i, j)
        for i in range(0, 1100)
        for j in range(i + 1, 1100)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 1
    ]
    assert sorted(near(hashes, 1)) == expected


def test_a_set_of_recordings_alone_is_compared_by_its_frames(root: Path) -> None:
    data = NMNISTPairs(root, T=2, images=False, val_fraction=0.34)
    test, train = data.splits["test"][0], data.splits["train"][0]
    assert test.events is not None
    assert train.events is not None
    raw = test.events.read_bytes()
    later = bytearray(raw)
    later[4] ^= 1  # one microsecond, in the same frame
    train.events.write_bytes(later)
    assert torch.equal(
        to_frames(read_events(train.events), 2, (34, 34)),
        to_frames(read_events(test.events), 2, (34, 34)),
    )
    refuse_leaks(data)  # other bytes
    (group,) = check(data).same
    assert group.what == "pixels"
    assert group.leak
