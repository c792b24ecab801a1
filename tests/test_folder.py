"""A folder of images becomes pairs: the image, and its simulated recording."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from estl.data.folder import ImageFolder
from estl.data.images import list_images, read_rgb
from estl.data.saccades import simulate


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
    data = ImageFolder(folder, T=3, size=8, rgb=16)
    item = data.splits["train"][0]
    assert item.image is not None
    fine = simulate(read_rgb(item.image, 16)[None], 3, amplitude=5 * 16 / 240)[0]
    events, _ = data.load(item)
    for y in range(8):
        for x in range(8):
            cell = fine[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum((-2, -1))
            torch.testing.assert_close(events[:, :, y, x], cell)
    again, _ = data.load(item)
    assert torch.equal(events, again)


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
