"""N-MNIST, alone or with the MNIST images that it was recorded from."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from estl.data.formats.atis import read_events
from estl.data.formats.images import read_rgb
from estl.data.frames import Slicing, to_frames
from estl.data.items import Item, list_items, select_items, split_items
from estl.data.module import EventData

SENSOR = (34, 34)

_SOURCE = "N-MNIST (Orchard et al. 2015)"


def load_pair(
    item: Item, T: int, by: Slicing
) -> tuple[Float[Tensor, "T 2 34 34"], Float[Tensor, "3 34 34"] | None]:
    """Event counts of the recording, and the digit on the sensor's grid."""
    assert item.events is not None
    frames = to_frames(read_events(item.events, SENSOR), T, SENSOR, by)
    if item.image is None:
        return frames, None
    return frames, read_digit(item.image)


def read_digit(path: Path) -> Float[Tensor, "3 34 34"]:
    """An MNIST image in the middle of black pixels, where the sensor sees it.

    Raises:
        ValueError: not 28x28; the text names the file.
    """
    digit = read_rgb(path)
    H, W = digit.shape[-2:]
    if (H, W) != (28, 28):
        raise ValueError(f"{path}: {W} by {H} pixels, but MNIST images are 28 by 28: replace it")
    return F.pad(digit, [(34 - 28) // 2] * 4)


def number_in_mnist(name: str) -> str:
    """Name of a test recording, counted on from the 60,000 of the training set.

    Where test files are numbered from 1 again, they would share their names with training items.

    >>> number_in_mnist("00004"), number_in_mnist("60004")
    ('60004', '60004')
    """
    if name.isdecimal() and 1 <= int(name) <= 10_000:
        return f"{60_000 + int(name):05d}"
    return name


class NMNISTPairs(EventData):
    """Recordings of N-MNIST, each with its MNIST digit: real RGB-event pairs.

    Files are `root/N-MNIST/{Train,Test}/<digit>/<number>.bin` and, with `images`,
    `root/MNIST/{Train,Test}/<digit>/<number>.png`, where the same number is the same digit. The
    public archive has no folder N-MNIST: `root/{Train,Test}` is read too.

    Events are counts, neither scaled nor clipped. The 28×28 digit is laid in the middle of 34×34
    black pixels, so that image and events share one field of view. Of all whole-pixel offsets,
    (3,3) gives the digits' gradients the highest correlation with the event counts; the recordings
    of the test set lie half a pixel higher and more to the left than those of the training set.
    Polarity is that of dark digits on a bright ground: a stroke that moves onto a pixel, bright in
    MNIST, is an OFF event.

    Args:
        root: the folder that holds the recordings.
        T: number of frames.
        by: frames of equal event "count" or of equal "time".
        images: whether the pairs have images; without, `Batch.image` is None.
        val_fraction: share of the training recordings that is the validation split.
        per_class: training recordings a class, all if None. The rest is unused.
        split_seed: of the choice of validation and `per_class` recordings.
        loading: arguments of `EventData`: batch_size, seed, num_workers, cache and others.

    Raises:
        FileNotFoundError: a folder, all recordings, or a recording's image are missing.
        ValueError: a class has fewer than `per_class` training recordings; on loading, a broken
            recording or an image that is not 28×28.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 10,
        by: Slicing = "count",
        images: bool = True,
        val_fraction: float = 0.1,
        per_class: int | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        root = Path(root)
        recordings = root / "N-MNIST" if (root / "N-MNIST").is_dir() else root
        found = {}
        for part in ("Train", "Test"):
            try:
                found[part] = list_items(
                    recordings / part, root / "MNIST" / part if images else None
                )
            except FileNotFoundError as error:
                hint = (
                    " and its MNIST images, or leave them out with --data.init_args.images=false"
                    if images
                    else ""
                )
                raise FileNotFoundError(f"{error}: point --data-path at {_SOURCE}{hint}") from error
        test = [replace(item, number=number_in_mnist(item.number)) for item in found["Test"]]
        train, val = split_items(found["Train"], val_fraction, split_seed)
        if per_class is not None:
            train = select_items(train, per_class, split_seed)
        super().__init__(
            {"train": train, "val": val, "test": test},
            partial(load_pair, T=T, by=by),
            T=T,
            image_size=SENSOR,
            **loading,
        )

    @staticmethod
    def read(path: Path, **options: Any) -> Tensor:
        """Frames of one recording; T and `by` of `options` are used."""
        return to_frames(read_events(path, SENSOR), options["T"], SENSOR, options["by"])

    def read_image(self, path: Path) -> Tensor:
        """One MNIST image (3,34,34)."""
        return read_digit(path)
