import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import NAMES, pickled, pixels, python2, write, write_cifar10, write_cifar100

from estl.data.sets.cifar import CIFAR, MEAN, STD, read_batch, read_names, read_pickle
from estl.types import is_static


class Evil:
    """Creates a file when it is unpickled by `pickle.load`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_cifar10_is_one_image_at_every_step(tmp_path: Path) -> None:
    data = CIFAR(write_cifar10(tmp_path), T=3, images=True, batch_size=4, val_fraction=0.2)
    assert data.classes == NAMES
    assert data.sizes == {"train": 80, "val": 20, "test": 20}
    assert (data.in_channels, data.frame_size, data.T) == (3, (32, 32), 3)
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
    path.write_bytes(path.read_bytes()[:-5] + b"\x07" + path.read_bytes()[-4:])
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


def test_batches_that_numpy_2_wrote_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    data = pixels(3, 0)
    path.write_bytes(pickle.dumps({"data": data, "labels": [1, 2, 3]}, protocol=4))
    assert b"numpy._core.multiarray" in path.read_bytes()
    read, labels = read_batch(path, 10)
    assert np.array_equal(read, data)
    assert labels == [1, 2, 3]


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_executes_nothing(tmp_path: Path, protocol: int) -> None:
    planted, path = tmp_path / "planted", tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": Evil(planted), "labels": []}, protocol))
    with pytest.raises(ValueError, match=r"batch is not .*asks for \S+\.open, which is ref") as e:
        read_batch(path, 10)
    assert "\n" not in str(e.value)
    assert not planted.exists()
    pickle.loads(path.read_bytes())
    assert planted.exists()  # the pickle would have worked


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(U\x02idtR.",
        b"(U\x02idios\nsystem\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cbuiltins\neval\n.",
        b"cnumpy\nndarray\n(K\x01tR.",  # would take memory of any size
        b"cnumpy\ndtype\n}U\x01aK\x01sb.",  # would change what the name stands for
        b"cnumpy\ndtype\n.",
        b"Pid\n.",
        b"\x82\x01.",
    ],
)
def test_nothing_but_arrays_is_made(tmp_path: Path, code: bytes) -> None:
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02" + code)
    with pytest.raises(ValueError, match="batch is not a CIFAR batch"):
        read_pickle(path)


def array(**changes: Any) -> bytes:
    """A batch whose array says something else of itself."""
    code = pickled({"labels": [0, 1], "data": pixels(2, 0)})
    for old, new in changes.values():
        assert old in code
        code = code.replace(old, new, 1)
    return code


BROKEN = {
    "another type": array(a=(b"u1K", b"O8K")),
    "another shape": array(a=(python2(3072), python2(3071))),
    "too many rows": array(a=(python2(2) + python2(3072), python2(9) + python2(3072))),
    "column by column": array(a=(b"b\x89T", b"b\x88T")),
    "text": array(a=(b"T" + struct.pack("<i", 6144), b"X" + struct.pack("<i", 6144))),
    "a label too many": b"\x80\x02" + python2({"labels": [0] * 3, "data": pixels(2, 0)}) + b".",
    "a label too large": b"\x80\x02" + python2({"labels": [0, 10], "data": pixels(2, 0)}) + b".",
    "a label that is text": b"\x80\x02"
    + python2({"labels": ["0", 1], "data": pixels(2, 0)})
    + b".",
    "no labels": b"\x80\x02" + python2({"data": pixels(2, 0)}) + b".",
    "no data": b"\x80\x02" + python2({"labels": []}) + b".",
    "a list": b"\x80\x02" + python2([1]) + b".",
    "truncated": array()[:-100],
    "empty": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_batch_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(BROKEN[name])
    with pytest.raises(ValueError, match=r"batch is not a CIFAR batch: .*; fetch") as error:
        read_batch(path, 10)
    assert "\n" not in str(error.value)


def test_names_must_be_those_of_the_classes(tmp_path: Path) -> None:
    for names in ([*NAMES[:9]], [*NAMES[:9], "airplane"], [1] * 10, "airplane"):
        write(tmp_path / "meta", pickled({"label_names": names}))
        with pytest.raises(ValueError, match=r"meta is not .*'label_names' of 10 names"):
            read_names(tmp_path / "meta", 10)


def test_a_huge_sparse_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(ValueError, match="2147483648 bytes, more than any batch"):
        read_batch(path, 10)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300), st.booleans())
@example(b"r\xff\xff\xff\x7f.", 0, True)
@example(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f", 0, True)
def test_any_bytes_give_arrays_or_the_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, alone: bool
) -> None:
    whole = array()
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(
        b"\x80\x02]" + noise if alone else whole[:place] + noise + whole[place + len(noise) :]
    )
    read_batch.cache_clear()
    told = ""
    try:
        data, labels = read_batch(path, 10)
    except ValueError as error:
        told = str(error)
    else:
        assert data.shape == (len(labels), 3072)
        assert data.dtype == np.uint8
    assert not told or (told.startswith(f"{path} is not a CIFAR batch: ") and "\n" not in told)
