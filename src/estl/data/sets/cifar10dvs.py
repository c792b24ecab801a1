"""CIFAR10-DVS: CIFAR-10 images moved about on a screen before a DVS128."""

from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from estl.data.formats.aedat import DVS128
from estl.data.formats.recording import read_recording
from estl.data.frames import Slicing, to_frames
from estl.data.items import Item, split_items
from estl.data.module import EventData

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_LEVELS = ("*", "*/*", "*/*/*")


def read_frames(path: Path, T: int, size: int, by: Slicing) -> Float[Tensor, "T 2 h w"]:
    """Event counts of one recording, binned from 128×128 into `size` × `size`.

    Of an `.aedat` file, as jAER shows it, rows and columns are exchanged: SpikingJelly's conversion
    to `.npz`, on which most published figures rest, lays them out so, and a recording gives the
    same frames from either file.

    Raises:
        ValueError: a broken recording; the text names the file.
    """
    events, _ = read_recording(path)
    if path.suffix.lower() == ".aedat":
        events["x"], events["y"] = events["y"], events["x"].copy()
    try:
        return to_frames(events, T, (size, size), by, sensor=DVS128)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_recording(
    item: Item, T: int, size: int, by: Slicing
) -> tuple[Float[Tensor, "T 2 h w"], None]:
    """Event counts of an item's recording; there is no image."""
    assert item.events is not None
    return read_frames(item.events, T, size, by), None


def find_recordings(root: Path) -> list[Item]:
    """Items of the recordings under `root`, sorted; see `CIFAR10DVS` for the layouts.

    Raises:
        FileNotFoundError: no recordings.
        ValueError: a folder that is no class of CIFAR-10, or a recording found twice.
    """
    converted = root / "events_np"
    paths = [path for level in _LEVELS for path in root.glob(f"{level}/*.aedat")]
    if not paths:
        folder = converted if converted.is_dir() else root
        paths = [path for level in _LEVELS for path in folder.glob(f"{level}/*.npz")]
    if not paths:
        raise FileNotFoundError(
            f"no recordings {root}/<class>/<name>.aedat or .npz: point --data-path at CIFAR10-DVS"
        )
    found: dict[Item, Path] = {}
    for path in sorted(paths):
        item = Item(path.parent.name, path.stem, events=path)
        if item.label not in CLASSES:
            raise ValueError(f"{path}: its folder is not named as one of {', '.join(CLASSES)}")
        if item in found:
            raise ValueError(f"{path} and {found[item]} are the same recording: remove one")
        found[item] = path
    return sorted(found)


class CIFAR10DVS(EventData):
    """Recordings of CIFAR10-DVS (Li et al. 2017): 1,000 of each class, without images.

    Files are `<class>/<name>.aedat` in `root`, or one or two folders deeper, as archives unpack.
    Where there is none, `.npz` files of t, x, y, p are looked for in the same places, in
    SpikingJelly's folder `root/events_np` if it exists.

    The set has no split of its own. The field's custom is nine to one, at random; here the test
    split is `test_fraction` of each class, by a hash of the recordings' names.

    Args:
        root: the folder that holds the recordings.
        T: number of frames.
        size: height and width of the frames; the sensor has 128.
        by: frames of equal event "count" or of equal "time".
        test_fraction: share of the recordings that is the test split.
        val_fraction: share of the rest that is the validation split.
        split_seed: of the choice of test and validation recordings.
        loading: arguments of `EventData`: batch_size, seed, num_workers, cache and others.

    Raises:
        FileNotFoundError: no recordings.
        ValueError: a folder that is no class, a recording found twice; on loading, a broken one.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 10,
        size: int = 48,
        by: Slicing = "count",
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        rest, test = split_items(find_recordings(Path(root)), test_fraction, split_seed)
        train, val = split_items(rest, val_fraction, split_seed)
        super().__init__(
            {"train": train, "val": val, "test": test},
            partial(load_recording, T=T, size=size, by=by),
            T=T,
            image_size=(size, size),
            **loading,
        )

    @staticmethod
    def read(path: Path, **options: Any) -> Tensor:
        """Frames of one recording; T, `size` and `by` of `options` are used."""
        return read_frames(path, options["T"], options["size"], options["by"])
