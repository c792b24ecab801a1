"""Any file is a CIFAR batch or is refused in one line, and none is executed."""

import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from estl.data.formats.cifar import read_batch, read_names, read_pickle
from tests.tiny_sets import pickled, pixels, python2


class Evil:
    """Creates a file when it is unpickled by `pickle.load`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickled(content))


NAMES = [
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
]


def test_a_batch_that_python_2_wrote_is_read(tmp_path: Path) -> None:
    data = pixels(3, 0)
    write(tmp_path / "batch", {"batch_label": "one", "labels": [1, 2, 3], "data": data})
    read, labels = read_batch(tmp_path / "batch", 10)
    assert type(read) is np.ndarray
    assert np.array_equal(read, data)
    assert labels == [1, 2, 3]


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
    pickle.loads(path.read_bytes())["data"].close()
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


def test_a_length_in_the_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    huge = 1 << 28
    for code in (
        b"\x96" + struct.pack("<Q", huge) + b".",  # a bytearray
        b"\x8e" + struct.pack("<Q", huge) + b".",  # bytes
        b"Nr" + struct.pack("<I", huge) + b".",  # an index of the memory
        b"cnumpy\nndarray\nJ" + struct.pack("<i", huge) + b"\x85R.",  # an array
    ):
        path.write_bytes(b"\x80\x05" + code)
        tracemalloc.start()
        with pytest.raises(ValueError, match="batch is not a CIFAR batch"):
            read_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < huge // 16
        tracemalloc.stop()


def test_what_a_name_stands_for_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    for name in (b"numpy\ndtype", b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct"):
        for state in (b"}U\x01aK\x01s", b"N}U\x01aK\x01s\x86"):  # __dict__ and attributes
            path.write_bytes(b"\x80\x02c" + name + b"\n" + state + b"b0}.")
            with pytest.raises(ValueError, match=r"it is broken \(TypeError\)"):
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
    "a label too many": pickled({"labels": [0] * 3, "data": pixels(2, 0)}),
    "a label too large": pickled({"labels": [0, 10], "data": pixels(2, 0)}),
    "a label that is text": pickled({"labels": ["0", 1], "data": pixels(2, 0)}),
    "no labels": pickled({"data": pixels(2, 0)}),
    "no data": pickled({"labels": []}),
    "a list": pickled([1]),
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
    for names in (NAMES[:9], [*NAMES[:9], "airplane"], [1] * 10, "airplane"):
        write(tmp_path / "meta", {"label_names": names})
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
