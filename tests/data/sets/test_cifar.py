import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from estl.data.augment import Augment
from estl.data.frames import normalize
from estl.data.sets.cifar import CIFAR, MEAN, STD
from estl.types import is_static
from tests.tiny_sets import NAMES, pickled, pixels, write, write_cifar10, write_cifar100


def test_cifar10_is_one_image_at_every_step(tmp_path: Path) -> None:
    data = CIFAR(write_cifar10(tmp_path), T=3, images=True, batch_size=4, val_fraction=0.2)
    assert data.classes == NAMES
    assert data.sizes == {"train": 80, "val": 20, "test": 20}
    assert (data.in_channels, data.frame_size, data.T) == (3, (32, 32), 3)
    item = next(item for item in data.splits["test"] if item.number == "test_batch_00013")
    assert item.label == "cat"
    frames, image = data.load(item)
    standard = normalize(frames, data.normalize)
    row = pixels(20, 5)[13]
    for color in range(3):
        for y, x in ((0, 0), (0, 31), (17, 4), (31, 31)):
            value = row[color * 1024 + y * 32 + x] / 255
            assert image[color, y, x].item() == pytest.approx(value)
            scaled = (value - MEAN[10][color]) / STD[10][color]
            assert frames[:, color, y, x].tolist() == pytest.approx([value] * 3)
            assert standard[:, color, y, x].tolist() == pytest.approx([scaled] * 3, abs=1e-6)


def test_the_pictures_are_augmented_before_they_are_standardized(tmp_path: Path) -> None:
    """Colors that jitter by nothing leave every value, and a black square is black in [0,1]."""
    root = write_cifar10(tmp_path)
    plain = next(iter(CIFAR(root, batch_size=100).loader("train")))
    for augment in (Augment(color=1e-9), Augment(cutout=64)):
        data = CIFAR(root, batch_size=100, augment=augment)
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            training=True, world_size=1, global_rank=0
        )
        raw = next(iter(data.loader("train", shuffle=True)))
        assert 0 <= raw.events.min() < raw.events.max() <= 1
        seen = data.on_after_batch_transfer(raw, 0).events
        assert is_static(seen)
        if augment.cutout:
            black = -torch.tensor(MEAN[10]) / torch.tensor(STD[10])
            torch.testing.assert_close(seen, black.view(3, 1, 1).expand_as(seen))
        else:
            mean, std = plain.events.mean((0, 1, 3, 4)), plain.events.std((0, 1, 3, 4))
            torch.testing.assert_close(seen.mean((0, 1, 3, 4)), mean, atol=1e-5, rtol=0)
            torch.testing.assert_close(seen.std((0, 1, 3, 4)), std, atol=1e-5, rtol=0)


def test_a_batch_holds_one_step_and_not_t_copies(tmp_path: Path) -> None:
    data = CIFAR(write_cifar10(tmp_path), T=4, batch_size=5, standardize=False)
    batch = next(iter(data.train_dataloader()))
    assert batch.events.shape == (5, 4, 3, 32, 32)
    assert is_static(batch.events)
    assert batch.image is None
    assert 0 <= batch.events.min() < batch.events.max() <= 1


def test_the_fingerprint_knows_the_pixels(tmp_path: Path) -> None:
    first = CIFAR(write_cifar10(tmp_path / "a")).fingerprint
    assert CIFAR(write_cifar10(tmp_path / "b")).fingerprint == first
    root = write_cifar10(tmp_path / "c")
    path = root / "cifar-10-batches-py" / "test_batch"
    content = pickle.loads(path.read_bytes(), encoding="latin1")
    content["data"][-1, -1] ^= 1
    write(path, pickled(content))
    assert CIFAR(root).fingerprint != first


def test_cifar100_has_fine_labels_and_its_folder_may_be_the_root(tmp_path: Path) -> None:
    names = [f"class{i:02d}" for i in range(100)]
    data = CIFAR(write_cifar100(tmp_path), classes=100, val_fraction=0.5, per_class=1)
    assert data.classes == tuple(names)
    assert data.sizes == {"train": 100, "val": 100, "test": 200}
    item = data.splits["test"][3]
    assert torch.equal(data.load(item)[0], data.load(item)[0])
    with pytest.raises(FileNotFoundError, match=r"no CIFAR batch .*batches\.meta"):
        CIFAR(tmp_path, classes=10)
