"""CIFAR's Python batches: pickles, which are read but never executed."""

import io
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

Classes = Literal[10, 100]

_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 29  # bytes of a file; the largest batch has 155 million
_KNOWN = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")


@lru_cache(maxsize=16)
def read_batch(path: Path, classes: Classes) -> tuple[np.ndarray, list[int]]:
    """Pixels (n,3072), bytes in the order color, row, column, and labels of a batch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a batch of this set; the text names the file.
    """
    content = read_pickle(path)
    try:
        pixels = content["data"].pixels()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        _refuse(path, f"it has no array 'data' (n,{_PIXELS}) of bytes")
    key = "labels" if classes == 10 else "fine_labels"
    labels = content.get(key)
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(label) is int and 0 <= label < classes for label in labels)
    ):
        _refuse(path, f"it has no list {key!r} of {len(pixels)} labels from 0 to {classes - 1}")
    return pixels, labels


def read_names(path: Path, classes: Classes) -> list[str]:
    """The classes' names, in the order of their labels; it raises what `read_batch` raises."""
    key = "label_names" if classes == 10 else "fine_label_names"
    names = read_pickle(path).get(key)
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not len(set(names)) == len(names) == classes
    ):
        _refuse(path, f"it has no list {key!r} of {classes} names")
    return names


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of numbers, texts, lists and NumPy arrays (`_Part`), executing nothing.

    A file that asks for anything else is refused as one that is no batch.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no CIFAR batch {path}: point --data-path at the unpacked archive")
    if path.stat().st_size > _LARGEST:
        _refuse(path, f"it has {path.stat().st_size} bytes, more than any batch")
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        _refuse(path, str(error))
    except Exception as error:  # broken bytes raise whatever they run into
        _refuse(path, f"it is broken ({type(error).__name__})")
    if not isinstance(content, dict):
        _refuse(path, "it holds no dictionary")
    return content


def _refuse(path: Path, why: str) -> NoReturn:
    text = " ".join(why.split())[:200]
    raise ValueError(f"{path} is not a CIFAR batch: {text}; fetch the archive again")


class _Part:
    """Stands for each part of NumPy that a pickled array names, and keeps what that would be given.

    NumPy's own would be less safe: `ndarray(1 << 40)` takes the memory before a shape can be
    checked, `dtype` takes object types and any state, and a file may set attributes of what it
    names, for the whole process.
    """

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """The array (n,3072) of bytes; some error if this stands for anything else."""
        _, shape, dtype, column_first, content = self.state
        if isinstance(content, str):  # bytes of Python 2
            content = content.encode("latin1")
        pixels = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS)
        if dtype.args[0] not in ("u1", "|u1") or shape != pixels.shape or column_first:
            raise ValueError
        return pixels


class _Unpickler(pickle._Unpickler):
    """Reads pickles; every name that no NumPy array needs is refused.

    It is Python's own: the one in C takes memory by an index in the file, however large. Both take
    memory by the length of a `bytearray`, which no batch has.
    """

    dispatch: ClassVar = {
        k: v for k, v in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> type[_Part]:
        """`_Part` for each of `_KNOWN`; NumPy 2 writes `_core` for `core`."""
        if f"{module}.{name}".replace("._core.", ".core.", 1) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module[:60]}.{name[:60]}, which is refused")
        return _Part
