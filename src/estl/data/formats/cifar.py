"""CIFAR's Python batches: pickles, which are read but never executed."""

import io
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

Classes = Literal[10, 100]

_LABELS = {10: "labels", 100: "fine_labels"}
_NAMES = {10: "label_names", 100: "fine_label_names"}
_PIXELS = 3 * 32 * 32
_KNOWN = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")
_LARGEST = 1 << 29  # bytes of a file; the largest batch has 155 million


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
    labels = content.get(_LABELS[classes])
    if not isinstance(labels, list) or len(labels) != len(pixels):
        _refuse(path, f"it has no list {_LABELS[classes]!r} of {len(pixels)} labels")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            _refuse(path, f"its label {row} is no number from 0 to {classes - 1}")
    return pixels, labels


def read_names(path: Path, classes: Classes) -> list[str]:
    """The classes' names, in the order of their labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not the names of this set; the text names the file.
    """
    names = read_pickle(path).get(_NAMES[classes])
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not len(set(names)) == len(names) == classes
    ):
        _refuse(path, f"it has no list {_NAMES[classes]!r} of {classes} names")
    return names


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of numbers, texts, lists and NumPy arrays, executing nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else is in the file; the text names it and the file.
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
    """Stands for whatever of NumPy a pickled array is made of, and keeps what that would be given.

    NumPy's own would do for files of good will, but not for others: `ndarray(1 << 40)` takes memory
    of any size before its shape can be checked, `dtype` takes object types and untested states, and
    the state of a class or a function named in the file would be changed for the whole process.
    """

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """The array (n,3072) of bytes; any of five errors if this stands for another thing."""
        _, shape, dtype, column_first, content = self.state
        if isinstance(content, str):  # bytes of Python 2
            content = content.encode("latin1")
        pixels = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS)
        if dtype.args[0] not in ("u1", "|u1") or shape != pixels.shape or column_first:
            raise ValueError
        return pixels


class _Unpickler(pickle._Unpickler):
    """Reads pickles; every name but those of which NumPy makes an array is refused.

    Python's own reader, not that in C, which takes memory by an index in the file, however large;
    and without `bytearray`s, for which both take memory by a length in the file.
    """

    dispatch: ClassVar = {
        k: v for k, v in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> type[_Part]:
        """`_Part` for the three names of NumPy, whose 2 writes `_core` for `core`."""
        if f"{module}.{name}".replace("numpy._core", "numpy.core", 1) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module[:60]}.{name[:60]}, which is refused")
        return _Part
