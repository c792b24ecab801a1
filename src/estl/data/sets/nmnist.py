"""N-MNIST, alone or with the MNIST images that it was recorded from."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from estl.data.catalog import BY_NAME
from estl.data.frames import Slicing
from estl.data.items import find_pairs
from estl.data.reading import NMNIST_SENSOR, read_digit, read_nmnist
from estl.data.splits import SplitData


def number_in_mnist(name: str) -> str:
    """Name of a test recording, counted on from the 60,000 of the training set.

    Where test files are numbered from 1 again, they would share their names with training items.

    >>> number_in_mnist("00004"), number_in_mnist("60004")
    ('60004', '60004')
    """
    if name.isdecimal() and 1 <= int(name) <= 10_000:
        return f"{60_000 + int(name):05d}"
    return name


class NMNISTPairs(SplitData):
    """Recordings of N-MNIST, each with its MNIST digit: real RGB-event pairs.

    Files are `root/N-MNIST/{Train,Test}/<digit>/<number>.bin` and, with `images`,
    `root/MNIST/{Train,Test}/<digit>/<number>.png`, where the same number is the same digit. The
    public archive has no folder N-MNIST: `root/{Train,Test}` is read too. With Test alone the set
    can be tested.

    The 28×28 digit is laid in the middle of 34×34 black pixels, so that image and events share one
    field of view. Polarity is that of dark digits on a bright ground: a stroke that moves onto a
    pixel, bright in MNIST, is an OFF event.

    Args:
        root: the folder that holds the recordings.
        T: number of frames.
        by: frames of equal event "count" or of equal "time".
        images: whether the pairs have images; without, `Batch.image` is None.
        loading: arguments of `SplitData`, `ItemData` and `EventData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 10,
        by: Slicing = "count",
        images: bool = True,
        **loading: Any,
    ) -> None:
        root, row = Path(root), BY_NAME["nmnist"]
        no_training = row.test_alone(root)
        train = [] if no_training else find_pairs(row.files["train"], root, images=images).items
        test = find_pairs(row.files["test"], root, images=images).items
        super().__init__(
            train,
            partial(read_nmnist, T=T, by=by),
            test=[replace(item, number=number_in_mnist(item.number)) for item in test],
            T=T,
            frame_size=NMNIST_SENSOR,
            **loading,
        )
        self.no_training = no_training

    def read_image(self, path: Path) -> Tensor:
        """One MNIST image (3,34,34)."""
        return read_digit(path)
