"""CIFAR10-DVS: CIFAR-10 images moved about on a screen before a DVS128."""

from functools import partial
from pathlib import Path
from typing import Any

from estl.data.catalog import BY_NAME
from estl.data.frames import Slicing
from estl.data.items import Item
from estl.data.reading import read_cifar10dvs
from estl.data.splits import SplitData


def find_recordings(root: Path) -> list[Item]:
    """Items of the recordings under `root`, sorted; see `CIFAR10DVS`."""
    row = BY_NAME["cifar10dvs"]
    classes = [Path(archive.into).name for archive in row.archives]
    raw, converted = row.files["raw"], row.files["converted"]
    found: dict[Item, Path] = {}
    for path in (raw if raw.folder(root) else converted).find(root):
        item = Item(path.parent.name, path.stem, events=path)
        if item.label not in classes:
            raise ValueError(f"{path}: its folder is not named as one of {', '.join(classes)}")
        if item in found:
            raise ValueError(f"{path} and {found[item]} are the same recording: remove one")
        found[item] = path
    return sorted(found)


class CIFAR10DVS(SplitData):
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
        loading: arguments of `SplitData`, `ItemData` and `EventData`.

    Raises:
        ValueError: a folder that is no class, or a recording found twice.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 10,
        size: int = 48,
        by: Slicing = "count",
        test_fraction: float = 0.1,
        **loading: Any,
    ) -> None:
        super().__init__(
            find_recordings(Path(root)),
            partial(read_cifar10dvs, T=T, size=size, by=by),
            test_fraction=test_fraction,
            T=T,
            frame_size=(size, size),
            **loading,
        )
