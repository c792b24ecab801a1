"""A folder of images becomes pairs: the image, and its simulated recording."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from estl.data.catalog import BY_NAME, recognize
from estl.data.check import lacking, refuse_leaks
from estl.data.formats.images import read_rgb
from estl.data.frames import Standard
from estl.data.items import list_images
from estl.data.sets.folder import ImageFolder
from estl.data.simulator import simulate
from estl.types import is_static
from tests.tiny_sets import read_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten small images in two classes."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(5):
            pixels = torch.randint(0, 256, (12, 9, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / label / f"image_{i:04d}.png")
    return tmp_path


def test_every_image_is_in_one_split_with_its_recording(folder: Path) -> None:
    data = ImageFolder(folder, T=3, size=8, rgb=16, test_fraction=0.2, val_fraction=0.25)
    assert data.classes == ("cat", "dog")
    assert data.sizes == {"train": 6, "val": 2, "test": 2}
    batch = next(iter(data.test_dataloader()))
    assert batch.events.shape == (2, 3, 2, 8, 8)
    assert batch.image is not None
    assert batch.image.shape == (2, 3, 16, 16)


def test_frames_are_the_simulated_counts_in_cells_of_two_by_two(folder: Path) -> None:
    data = ImageFolder(folder, T=3, size=8, rgb=16, amplitude=0.1, threshold=0.2)
    item = data.splits["train"][0]
    assert item.image is not None
    fine = simulate(read_rgb(item.image, 16)[None], 3, amplitude=1.6, threshold=0.2)[0]
    events, image = data.load(item)
    for y in range(8):
        for x in range(8):
            cell = fine[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum((-2, -1))
            torch.testing.assert_close(events[:, :, y, x], cell)
    again, same = data.load(item)
    assert torch.equal(events, again)
    assert image is not None
    assert same is not None
    assert torch.equal(image, same)


def test_the_saccades_are_those_of_n_caltech101_unless_told_otherwise(folder: Path) -> None:
    data = ImageFolder(folder, T=3, size=24)
    item = data.splits["train"][0]
    assert item.image is not None
    fine = simulate(read_rgb(item.image, 48)[None], 3, amplitude=5 * 48 / 240)[0]
    assert data.load(item)[0].sum() == pytest.approx(fine.sum().item(), rel=1e-3)


def test_a_file_is_read_to_predict_as_its_item_is_loaded(folder: Path) -> None:
    data = ImageFolder(folder, T=3, size=8, rgb=16)
    item = data.splits["test"][0]
    assert item.image is not None
    options = {"T": 3, "size": 8, "rgb": 16, "amplitude": 5 / 240, "threshold": 0.35, "seed": 4}
    assert torch.equal(read_file(item.image, "estl.data.ImageFolder", options), data.load(item)[0])


def test_counts_are_kept_in_a_cache_that_knows_the_cameras_options(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    plain = ImageFolder(folder, T=3, size=8, rgb=16)
    for threshold in (0.35, 0.2):
        kept = ImageFolder(folder, T=3, size=8, rgb=16, threshold=threshold, cache=cache)
        item = kept.splits["test"][0]
        same = torch.equal(kept.load(item)[0], plain.load(item)[0])
        assert same == (threshold == 0.35)


def test_the_folder_above_caltech101s_is_its_folder(folder: Path, tmp_path: Path) -> None:
    above = tmp_path / "above"
    (above / "101_ObjectCategories").mkdir(parents=True)
    for label in ("cat", "dog"):
        (folder / label).rename(above / "101_ObjectCategories" / label)
    whole = ImageFolder(above)
    assert whole.classes == ("cat", "dog")
    assert whole.splits == ImageFolder(above / "101_ObjectCategories").splits


def test_published_lists_are_the_splits(folder: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("cat/image_0000.png\ncat/image_0001.png\ndog/image_0002.png\n")
    (lists / "val.txt").write_text("dog/image_0000\ncat/image_0004\n")
    (lists / "test.txt").write_text("dog/image_0001\ncat/image_0003\n")
    data = ImageFolder(folder, splits=lists)
    assert [str(item) for item in data.splits["train"]] == [
        "cat/image_0000",
        "cat/image_0001",
        "dog/image_0002",
    ]
    assert data.sizes == {"train": 3, "val": 2, "test": 2}
    assert ImageFolder(folder, splits=lists, classes_used=1).sizes == {
        "train": 2,
        "val": 1,
        "test": 1,
    }


def test_folders_of_training_and_test_images_are_the_splits(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "own"
    for split in ("train", "test"):  # the same names, and other pictures
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = torch.randint(0, 256, (9, 9, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    data = ImageFolder(root, T=2, size=8, val_fraction=0.25, coding="direct")
    assert data.sizes == {"train": 6, "val": 2, "test": 8}
    assert {i.image.parents[1].name for i in data.splits["test"] if i.image} == {"test"}
    refuse_leaks(data)
    assert recognize(root) == BY_NAME["folder"]
    (root / "test" / "dog").rename(root / "test" / "Dog")  # is said, and not left out
    data = ImageFolder(root, T=2, size=8)
    assert data.sizes["test"] == 8
    assert lacking(data) == {"test": "classes that train lacks (1): Dog"}
    assert ImageFolder(root, T=2, size=8, classes_used=1).classes == ("Dog", "cat")
    for used in (0, -1):
        with pytest.raises(ValueError, match=f"classes_used={used}: at least 1"):
            ImageFolder(root, T=2, size=8, classes_used=used)


def test_direct_coding_gives_the_picture_at_every_step(folder: Path) -> None:
    data = ImageFolder(
        folder, T=3, size=8, coding="direct", normalize=Standard((0.5,) * 3, (0.25,) * 3)
    )
    item = data.splits["test"][0]
    frames, image = data.load(item)
    assert image is None
    assert item.image is not None
    picture = read_rgb(item.image, 8)
    assert is_static(frames[None])
    assert torch.equal(frames[2], picture)
    assert (data.in_channels, data.frame_size) == (3, (8, 8))
    batch = next(iter(data.loader("test")))
    torch.testing.assert_close(batch.events[0, 1], (picture - 0.5) / 0.25)


def test_the_real_photographs_are_read(shared: Path) -> None:
    root = shared / "data" / "caltech101-128px" / "101_ObjectCategories"
    data = ImageFolder(root, T=6, size=48, rgb=64, classes_used=3)
    assert len(data.classes) == 3
    events, image = data.load(data.splits["test"][0])
    assert events.sum() > 500
    assert image is not None
    assert 0.0 <= image.min() < image.max() <= 1.0


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--data-path"):
        list_images(tmp_path)
    broken = tmp_path / "cat" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_rgb(broken)
