"""CIFAR-10 and CIFAR-100 from their original Python batches, which are read but never executed."""

import io
import pickle
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from estl.data.formats.images import read_rgb
from estl.data.items import Item, read_splits, select_items, split_items
from estl.data.module import EventData

MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
"""Mean of R, G and B over all pixels of the training images, in [0,1]."""

STD = {10: (0.2470, 0.2435, 0.2616), 100: (0.2673, 0.2564, 0.2762)}
"""Standard deviation of R, G and B over all pixels of the training images."""

Classes = Literal[10, 100]

_FOLDER = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
_BATCHES = {
    10: {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    100: {"train": ["train"], "test": ["test"]},
}
_META = {10: ("batches.meta", "label_names"), 100: ("meta", "fine_label_names")}
_LABELS = {10: "labels", 100: "fine_labels"}
_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 29  # bytes of a file; the largest batch has 155 million


class CIFAR(EventData):
    """CIFAR-10 or CIFAR-100, a static set: one image at every time step (direct coding).

    Files are `root/cifar-10-batches-py/{data_batch_1,...,5,test_batch,batches.meta}` or
    `root/cifar-100-python/{train,test,meta}`, as distributed; `root` may be that folder itself.
    An item's number is its batch and its row there, `data_batch_1_00017`. Labels are the fine ones
    of CIFAR-100; in both sets the order of the names is the official order.

    The batches stay in memory as bytes, so that a cache is of no use here.

    Args:
        root: the folder that holds the batches.
        classes: 10 or 100.
        T: number of time steps.
        images: whether `Batch.image` is the image in [0,1]; None without.
        standardize: whether events are (x - `MEAN`) / `STD` of each color, or in [0,1].
        splits: folder of published lists (`pairs.read_splits`) in place of the official test split.
        val_fraction: share of the training images of each class that is the validation split.
        per_class: training images a class, all if None. The rest is unused.
        split_seed: of the choice of validation and `per_class` images.
        loading: arguments of `EventData`: batch_size, seed, num_workers and others.

    Raises:
        FileNotFoundError: a batch is missing.
        ValueError: a file is not a CIFAR batch, or a class has fewer than `per_class` images.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Classes = 10,
        T: int = 4,
        images: bool = False,
        standardize: bool = True,
        splits: Path | None = None,
        val_fraction: float = 0.1,
        per_class: int | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        root = Path(root)
        folder = root / _FOLDER[classes] if (root / _FOLDER[classes]).is_dir() else root
        names = read_names(folder / _META[classes][0], classes)
        found = {
            part: [
                Item(names[label], f"{batch}_{row:05d}")
                for batch in batches
                for row, label in enumerate(read_batch(folder / batch, classes)[1])
            ]
            for part, batches in _BATCHES[classes].items()
        }
        if splits is not None:
            everything = found["train"] + found["test"]
            parts = read_splits(splits, everything, val_fraction=val_fraction, seed=split_seed)
        else:
            train, val = split_items(found["train"], val_fraction, split_seed)
            parts = {"train": train, "val": val, "test": found["test"]}
        if per_class is not None:
            parts["train"] = select_items(parts["train"], per_class, split_seed)
        super().__init__(
            parts,
            partial(
                load_image,
                folder=str(folder),
                classes=classes,
                T=T,
                images=images,
                standardize=standardize,
            ),
            T=T,
            image_size=(32, 32),
            in_channels=3,
            content=lambda item: [_pixels(item, folder, classes).tobytes()],
            **loading,
        )

    def read_image(self, path: Path) -> Tensor:
        """One image file (3,32,32)."""
        return read_rgb(path, 32)


def load_image(
    item: Item, folder: str, classes: Classes, T: int, images: bool, standardize: bool
) -> tuple[Float[Tensor, "T 3 32 32"], Float[Tensor, "3 32 32"] | None]:
    """An image at each of T time steps, expanded without a copy, and the image."""
    pixels = _pixels(item, Path(folder), classes).reshape(3, 32, 32)
    image = torch.from_numpy(pixels.astype(np.float32)) / 255
    step = image
    if standardize:
        mean, std = (torch.tensor(x[classes]).view(3, 1, 1) for x in (MEAN, STD))
        step = (image - mean) / std
    return step.expand(T, -1, -1, -1), image if images else None


def _pixels(item: Item, folder: Path, classes: Classes) -> np.ndarray:
    batch, row = item.number.rsplit("_", 1)
    return read_batch(folder / batch, classes)[0][int(row)]


@lru_cache(maxsize=16)
def read_batch(path: Path, classes: Classes) -> tuple[np.ndarray, list[int]]:
    """Pixels (n,3072), bytes in the order color, row, column, and labels of a batch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a batch of this set; the text names the file.
    """
    content = read_pickle(path)
    pixels, labels = content.get("data"), content.get(_LABELS[classes])
    if not isinstance(pixels, np.ndarray):
        _refuse(path, "it has no array 'data'")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        _refuse(path, f"it has no list {_LABELS[classes]!r} of {len(pixels)} labels")
    for label in labels:
        if type(label) is not int or not 0 <= label < classes:
            _refuse(path, f"label {str(label)[:20]} is not in 0 to {classes - 1}")
    return pixels, labels


def read_names(path: Path, classes: Classes) -> list[str]:
    """The classes' names, in the order of their labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not the names of this set; the text names the file.
    """
    names = read_pickle(path).get(_META[classes][1])
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) != classes
        or len(names) != classes
    ):
        _refuse(path, f"it has no list {_META[classes][1]!r} of {classes} names")
    return names


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of numbers, texts, lists and arrays of bytes, executing nothing.

    Of all that a pickle may name, only what an array is made of is known here, and that stands for
    itself: the array is built afterwards, from a checked shape and checked bytes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else is in the file; the text names it and the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no CIFAR batch {path}: point --data-path at the unpacked archive")
    if path.stat().st_size > _LARGEST:
        _refuse(path, f"it has {path.stat().st_size} bytes, more than any batch")
    try:
        content = _Reader(path.read_bytes()).load()
    except pickle.UnpicklingError as error:
        _refuse(path, str(error))
    except Exception as error:  # broken bytes raise whatever they run into
        _refuse(path, f"it is broken ({type(error).__name__})")
    if not isinstance(content, dict):
        _refuse(path, "it holds no dictionary")
    return {
        name: _array(path, value) if isinstance(value, _Array) else value
        for name, value in content.items()
        if isinstance(name, str)
    }


def _refuse(path: Path, why: str) -> NoReturn:
    text = " ".join(why.split())[:200]
    raise ValueError(f"{path} is not a CIFAR batch: {text}; fetch the archive again")


class _Array:
    """What stands for an array: the state that would have been given to it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type:
    """What stands for the array's type of numbers: the name it is made from."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes have none of."""


class _Name:
    """What stands for a name in the pickle: `make` is called where it would be called."""

    def __init__(self, make: type[_Array] | type[_Type] | None) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        if self._make is None:
            raise pickle.UnpicklingError("it calls numpy.ndarray")
        return self._make() if self._make is _Array else self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what it has only named")


_KNOWN: dict[tuple[str, str], type[_Array] | type[_Type] | None] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # as numpy 2 writes it
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
}


# The reader in Python: that in C takes memory by an index in the file, however large.
class _Reader(pickle._Unpickler):
    """Reads pickles; every name outside of `_KNOWN` is refused."""

    def __init__(self, content: bytes) -> None:
        # latin1 is how numpy reads the bytes of Python 2, in which the batches are written
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module[:60]}.{name[:60]}, which is refused")
        return _Name(_KNOWN[module, name])


def _array(path: Path, array: _Array) -> np.ndarray:
    """The array (n,3072) of bytes that `array` stands for."""
    state = array.state
    if not isinstance(state, tuple) or len(state) != 5:
        _refuse(path, "an array in it has no content")
    _, shape, kind, column_first, content = state
    if not isinstance(kind, _Type) or kind.name not in ("u1", "|u1"):
        _refuse(path, "an array in it is not of bytes (u1)")
    if column_first:
        _refuse(path, "an array in it is stored column by column")
    if isinstance(content, str):
        try:
            content = content.encode("latin1")
        except UnicodeEncodeError:
            _refuse(path, "an array in it is text")
    if not isinstance(content, bytes):
        _refuse(path, "an array in it has no bytes")
    if shape != (len(content) // _PIXELS, _PIXELS) or not content or len(content) % _PIXELS:
        _refuse(path, f"an array of {len(content)} bytes in it is not (n, {_PIXELS})")
    return np.frombuffer(content, np.uint8).reshape(-1, _PIXELS)
