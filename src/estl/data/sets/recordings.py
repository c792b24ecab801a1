"""A user's own recordings: one folder a class, in any format that is read."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from estl.data.catalog import BY_NAME, IMAGE_SUFFIXES, RECORDING_SUFFIXES
from estl.data.formats.images import read_rgb
from estl.data.formats.recording import read_recording
from estl.data.frames import Slicing
from estl.data.items import Item, list_nested
from estl.data.reading import read_own
from estl.data.splits import SplitData
from estl.data.windows import microseconds, sensor_shape, windows


class Recordings(SplitData):
    """Own recordings `root/<class>/<name>.<format>`, alone or each with its image.

    Where `root` holds `train/<class>`, and `val/<class>` or `test/<class>`, these are the splits.
    Otherwise, and for what is not there, shares of each class are drawn by the recordings' names.

    The format of a file is told by its content (`read_recording`). Events are binned from the
    sensor straight into the grid; an image is taken to show what the sensor saw, and both are
    squashed to squares. Image and recording go by the same name.

    Args:
        root: the folder.
        T: number of frames.
        size: height and width of the frames.
        rgb: height and width of the images.
        by: frames of equal event "count" or of equal "time".
        sensor: height and width in pixels, "720x1280", of files that do not tell them.
        window: cut recordings into items of this time, "300ms"; whole recordings if None. All
            windows of a recording are in one split: fractions, `per_class` and lists are of
            recordings.
        stride: time from the start of a window to that of the next; a window's if None.
        images: a folder of images `<class>/<name>.png` or .jpg, or whether they lie beside the
            recordings; None to see for yourself, by whether any does.
        loading: arguments of `SplitData`, `ItemData` and `EventData`.

    Attributes:
        places: the folders that hold those of the classes: `root`, or one a split.

    Raises:
        FileNotFoundError: no recordings, only deeper ones, or one without its image.
        ValueError: recordings of one class only, two of the same name, a time or a size that is
            none; with a `window`, a broken recording.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 10,
        size: int = 48,
        rgb: int = 224,
        by: Slicing = "count",
        sensor: str | tuple[int, int] | None = None,
        window: str | int | None = None,  # a number is refused in one line
        stride: str | int | None = None,
        images: bool | str | Path | None = None,
        **loading: Any,
    ) -> None:
        root, row = Path(root), BY_NAME["recordings"]
        if window is None and stride is not None:
            raise ValueError(f"stride={stride} without a window: add window, such as 300ms")
        length = None if window is None else microseconds(window)
        step = length if stride is None else microseconds(stride)
        no_training = row.test_alone(root)
        own = no_training is not None or row.files["train"].folder(root) is not None
        found = {split: _listed(root, split) for split in ("train", "val", "test") if own}
        if not own:
            if row.files["all"].folder(root) is None and (nested := list_nested(root)):
                raise FileNotFoundError(
                    f"no recordings {root}/<class>/<name>, but {len(nested)} that lie deeper, the "
                    f"first {nested[0]}: move them up, or give the folder that holds the classes"
                )
            found = {"train": _unique(row.files["all"].find(root))}
        found = dict(zip(found, _paired(root, list(found.values()), images), strict=True))
        labels = {item.label for items in found.values() for item in items}
        if len(labels) < 2:
            raise ValueError(
                f"{root} has recordings of one class, {min(labels)}: "
                "a folder a class is needed, with two classes at least"
            )
        how: dict[str, Any] = {"sensor": sensor_shape(sensor), "cut": length is not None}
        super().__init__(
            found["train"],
            partial(read_own, T=T, size=size, rgb=rgb, by=by, **how),
            val=found.get("val") or None,
            test=found.get("test") or None,
            cut=None if length is None or step is None else partial(cut, length, step),
            T=T,
            frame_size=(size, size),
            **loading,
        )
        self.rgb = rgb
        self.places = (
            [root / split for split in found if (root / split).is_dir()] if own else [root]
        )
        self.no_training = no_training

    def read_image(self, path: Path) -> Tensor:
        """One image file (3,rgb,rgb)."""
        return read_rgb(path, self.rgb)


def cut(window: int, stride: int, item: Item) -> list[Item]:
    """The windows of a recording, named by their times since its first event."""
    assert item.events is not None
    events, _ = read_recording(item.events)
    return [
        replace(item, number=f"{item.number}/{start}-{stop}")
        for start, stop in windows(events["t"], window, stride)
    ]


def overlooked(places: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """What lies in these folders of classes and is not used.

    Returns:
        Recordings that lie deeper than `<class>/<name>`; and folders that hold neither a recording
        nor an image, at any depth.
    """
    nested, bare = list[Path](), list[Path]()
    for place in places:
        nested += list_nested(place)
        for folder in sorted(place.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                suffixes = {path.suffix.lower() for path in folder.rglob("*")}
                if suffixes.isdisjoint((*RECORDING_SUFFIXES, *IMAGE_SUFFIXES)):
                    bare.append(folder)
    return nested, bare


def _listed(root: Path, split: str) -> list[Item]:
    """The recordings of a folder `train`, `val` or `test`; those of the last two are named so."""
    items = _unique(BY_NAME["recordings"].files[split].glob(root))
    if split == "train":
        return items
    return [replace(item, number=f"{split}/{item.number}") for item in items]


def _unique(paths: Iterable[Path]) -> list[Item]:
    found: dict[Item, Path] = {}
    for path in paths:
        item = Item(path.parent.name, path.stem, events=path)
        if item in found:
            raise ValueError(f"{path} and {found[item]} have the same name: rename or remove one")
        found[item] = path
    return sorted(found)


def _paired(
    root: Path, splits: list[list[Item]], images: bool | str | Path | None
) -> list[list[Item]]:
    """The items with their images; as they are if there are none, or none are wanted."""
    if images is False:
        return splits
    beside = images is None or images is True
    folder = root if beside else Path(str(images))
    paired = [[_with_image(root, folder, item) for item in items] for items in splits]
    everything = [item for items in paired for item in items]
    alone = [item for item in everything if item.image is None]
    if images is None and len(alone) == len(everything):
        return splits
    if alone:
        where = "beside it" if beside else f"in {folder}"
        raise FileNotFoundError(
            f"{len(alone)} recordings have no image, the first {alone[0].events}: put "
            f"<class>/{alone[0].number.rpartition('/')[2]}.png {where}, or leave images out "
            "with --data.init_args.images=false"
        )
    return paired


def _with_image(root: Path, folder: Path, item: Item) -> Item:
    assert item.events is not None
    below = item.events.relative_to(root).parent
    for parent in (folder / below, folder / below.name):
        for suffix in IMAGE_SUFFIXES:
            for end in (suffix, suffix.upper()):
                if (path := parent / f"{item.events.stem}{end}").is_file():
                    return replace(item, image=path)
    return item
