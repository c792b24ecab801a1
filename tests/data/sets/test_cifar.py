import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from estl.data.sets.cifar import CIFAR, MEAN, STD
from estl.types import is_static


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=4))


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


NAMES = [
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
]


def write_cifar10(root: Path, n: int = 20) -> Path:
    folder = root / "cifar-10-batches-py"
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [row % 10 for row in range(n)]
        write(folder / name, {"batch_label": name, "labels": labels, "data": pixels(n, i)})
    write(folder / "batches.meta", {"num_cases_per_batch": n, "label_names": NAMES})
    return root


def test_cifar10_is_one_image_at_every_step(tmp_path: Path) -> None:
    data = CIFAR(write_cifar10(tmp_path), T=3, images=True, batch_size=4, val_fraction=0.2)
    assert data.classes == tuple(NAMES)
    assert data.sizes == {"train": 80, "val": 20, "test": 20}
    assert (data.in_channels, data.image_size, data.T) == (3, (32, 32), 3)
    item = next(item for item in data.splits["test"] if item.number == "test_batch_00013")
    assert item.label == "cat"
    frames, image = data.load(item)
    row = pixels(20, 5)[13]
    for color in range(3):
        for y, x in ((0, 0), (0, 31), (17, 4), (31, 31)):
            value = row[color * 1024 + y * 32 + x] / 255
            assert image[color, y, x].item() == pytest.approx(value)
            scaled = (value - MEAN[10][color]) / STD[10][color]
            assert frames[:, color, y, x].tolist() == pytest.approx([scaled] * 3, abs=1e-6)


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
    content = pickle.loads(path.read_bytes())
    content["data"][-1, -1] ^= 1
    write(path, content)
    assert CIFAR(root).fingerprint != first


def test_cifar100_has_fine_labels_and_its_folder_may_be_the_root(tmp_path: Path) -> None:
    names = [f"class{i:02d}" for i in range(100)]
    for part, seed in (("train", 0), ("test", 1)):
        content = {
            "filenames": ["x.png"] * 200,
            "fine_labels": [i % 100 for i in range(200)],
            "coarse_labels": [0] * 200,
            "data": pixels(200, seed),
        }
        write(tmp_path / part, content)
    write(tmp_path / "meta", {"fine_label_names": names, "coarse_label_names": ["all"]})
    data = CIFAR(tmp_path, classes=100, val_fraction=0.5, per_class=1)
    assert data.classes == tuple(names)
    assert data.sizes == {"train": 100, "val": 100, "test": 200}
    item = data.splits["test"][3]
    assert torch.equal(data.load(item)[0], data.load(item)[0])
    with pytest.raises(FileNotFoundError, match=r"no CIFAR batch .*batches\.meta"):
        CIFAR(tmp_path, classes=10)
