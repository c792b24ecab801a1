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

from estl.data.catalog import BY_NAME
from estl.data.formats.images import read_rgb
from estl.data.items import Item
from estl.data.splits import SplitData

MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
"""Mean of R, G and B over all pixels of the training images, in [0,1]."""

STD = {10: (0.2470, 0.2435, 0.2616), 100: (0.2673, 0.2564, 0.2762)}
"""Standard deviation of R, G and B over all pixels of the training images."""

Classes = Literal[10, 100]

_META = {10: ("batches.meta", "label_names"), 100: ("meta", "fine_label_names")}
_LABELS = {10: "labels", 100: "fine_labels"}
_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 29  # bytes of a file; the largest batch has 155 million


class CIFAR(SplitData):
    """CIFAR-10 or CIFAR-100, a static set: one image at every time step (direct coding).

    Files are `root/cifar-10-batches-py/{data_batch_1,...,5,test_batch,batches.meta}` or
    `root/cifar-100-python/{train,test,meta}`, as distributed; `root` may be that folder itself.
    With the test batch and the names alone the set can be tested. An item's number is its batch and
    its row there, `data_batch_1_00017`. Labels are the fine ones of CIFAR-100; in both sets the
    order of the names is the official order.

    The batches stay in memory as bytes, so that a cache is of no use here.

    Args:
        root: the folder that holds the batches.
        classes: 10 or 100.
        T: number of time steps.
        images: whether `Batch.image` is the image in [0,1]; None without.
        standardize: whether events are (x - `MEAN`) / `STD` of each color, or in [0,1].
        loading: arguments of `SplitData`, `ItemData` and `EventData`.

    Raises:
        FileNotFoundError: a batch is missing.
        ValueError: a file is not a CIFAR batch.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Classes = 10,
        T: int = 4,
        images: bool = False,
        standardize: bool = True,
        **loading: Any,
    ) -> None:
        root, row = Path(root), BY_NAME[f"cifar{classes}"]
        no_training = row.test_alone(root)
        train, test = row.files["train"], row.files["test"]
        folder = test.folder(root) or train.folder(root) or root
        names = read_names(folder / _META[classes][0], classes)

        def items(batches: tuple[str, ...]) -> list[Item]:
            return [
                Item(names[label], f"{batch}_{row:05d}")
                for batch in batches
                for row, label in enumerate(read_batch(folder / batch, classes)[1])
            ]

        how: dict[str, Any] = {"T": T, "images": images, "standardize": standardize}
        super().__init__(
            [] if no_training else items(train.patterns),
            partial(load_image, folder=str(folder), classes=classes, **how),
            test=items(test.patterns),
            T=T,
            frame_size=(32, 32),
            in_channels=3,
            content=lambda item: [_pixels(item, folder, classes).tobytes()],
            **loading,
        )
        self.no_training = no_training

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

    Errors are those of `read_pickle`.
    """
    content = read_pickle(path)
    pixels, labels = content.get("data"), content.get(_LABELS[classes])
    if not isinstance(pixels, np.ndarray):
        _refuse(path, "it has no array 'data'")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        _refuse(path, f"it has no list {_LABELS[classes]!r} of {len(pixels)} labels")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        _refuse(path, f"not all of its labels are in 0 to {classes - 1}")
    return pixels, labels


def read_names(path: Path, classes: Classes) -> list[str]:
    """The classes' names, in the order of their labels; errors are those of `read_pickle`."""
    names: Any = read_pickle(path).get(_META[classes][1])
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or not len(names) == len(set(names)) == classes:
        _refuse(path, f"it has no list {_META[classes][1]!r} of {classes} names")
    return list(names)


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of numbers, texts, lists and arrays of bytes, executing nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else is in the file; the text names it and the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no CIFAR batch {path}: point --data-path at the unpacked archive")
    if path.stat().st_size > _LARGEST:
        _refuse(path, f"it has {path.stat().st_size} bytes, more than any batch")
    try:
        content = _Unpickler(path.read_bytes()).load()
        return {k: v.pixels() if isinstance(v, _Array) else v for k, v in content.items()}
    except pickle.UnpicklingError as error:
        _refuse(path, str(error))
    except Exception as error:  # broken bytes raise whatever they run into
        _refuse(path, f"it is broken ({type(error).__name__})")


def _refuse(path: Path, why: str) -> NoReturn:
    text = " ".join(why.split())[:200]
    raise ValueError(f"{path} is not a CIFAR batch: {text}; fetch the archive again")


class _Array:
    """The state that a pickle would give to an array."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """The array (n,3072) of bytes that this state describes."""
        match self.state:
            case _, (int(), int()) as shape, _Dtype("u1" | "|u1"), False, bytes() | str() as pixels:
                if isinstance(pixels, str):  # as Python 2 wrote bytes
                    pixels = pixels.encode("latin1")
                if pixels and shape == (len(pixels) // _PIXELS, _PIXELS):
                    return np.frombuffer(pixels, np.uint8).reshape(shape)
        raise pickle.UnpicklingError(f"an array in it is not (n, {_PIXELS}) bytes, row by row")


class _Dtype(str):
    """The name of a type of numbers."""

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes have none of."""


# The reader in Python: that in C takes memory by an index in the file, however large.
class _Unpickler(pickle._Unpickler):
    """Knows what an array is made of and no other names; nothing of numpy is called or changed."""

    def __init__(self, content: bytes) -> None:
        # latin1 is how numpy reads the bytes of Python 2, in which the batches are written
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return lambda *_: _Array()
            case "numpy", "dtype":
                return lambda kind, *_: _Dtype(kind)
            case "numpy", "ndarray":
                return None
        raise pickle.UnpicklingError(f"it asks for {module[:60]}.{name[:60]}, which is refused")
