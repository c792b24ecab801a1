"""A user's own recordings, in any format that is read: a folder a class, or a table of labels."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from estl.data.catalog import BY_NAME, IMAGE_SUFFIXES, RECORDING_SUFFIXES, DataSet
from estl.data.formats.images import read_rgb
from estl.data.frames import Slicing
from estl.data.items import Item, list_nested
from estl.data.labels import TABLE, read_table, recording_of, span_of
from estl.data.reading import read_kept, read_own
from estl.data.splits import SplitData
from estl.data.windows import microseconds, sensor_shape, windows

_SPLITS = ("train", "val", "test")


class Recordings(SplitData):
    """A user's own recordings `root/<class>/<name>.<format>`, alone or each with its image.

    Where `root` holds `train/<class>`, and `val/<class>` or `test/<class>`, these are the splits.
    Otherwise, and for a missing split, shares of each class are drawn by the recordings' names.

    The format of a file is told by its content (`read_recording`). Events are binned from the
    sensor straight into the grid; an image is taken to show what the sensor saw, and both are
    squashed to squares. Image and recording have the same name.

    Where `root` has a table `labels.csv` (`read_table`), it says instead which stretch of which
    recording below `root` is of which class:

        recording,start,end,class
        session1/walk.raw,1.5s,4s,chair
        session1/walk.raw,4s,,cup

    An item is a stretch, its times since the recording's first event; what no row names is not
    used, and there are no images. All stretches of a recording are in one split: folders `train`,
    `val` and `test` if these hold all recordings, or else shares of the recordings of each class,
    of which the last one stays in training. Lists name recordings, by their paths.

    Args:
        root: the folder.
        T: number of frames.
        size: height and width of the frames.
        rgb: height and width of the images.
        by: frames of equal event "count" or of equal "time".
        sensor: height and width in pixels, "720x1280", of files that do not state them.
        window: cut recordings, or each stretch, into items this long, "300ms"; whole ones if
            None. All windows of a recording are in one split: fractions, `per_class` and lists are
            of recordings, or stretches.
        stride: time from one window's start to the next one's; a window's length if None.
        images: a folder of images `<class>/<name>.png` or .jpg, or whether they lie beside the
            recordings; None to decide by whether any does.
        loading: arguments of `SplitData`, `ItemData` and `EventData`.

    Attributes:
        places: the folders that hold those of the classes: `root`, or one per split; none
            with a table.
        table: the table of labels, or None.

    Raises:
        FileNotFoundError: no recordings, only deeper ones, or one without its image.
        ValueError: recordings of one class only, two of the same name, a time or a size that is
            none, a broken table, or one with `images`; with a `window`, a broken recording, or a
            stretch that is not in it.
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
        self.table = root / TABLE if row.files["labels"].folder(root) else None
        if self.table:
            found, self.places, no_training = _in_table(self.table, images)
            self.group = recording_of
        else:
            found, self.places, no_training = _in_folders(root, row, images)
        labels = {item.label for items in found.values() for item in items}
        if len(labels) < 2:
            needed = "give rows of" if self.table else "a folder a class is needed, with"
            raise ValueError(
                f"{self.table or root} has recordings of one class, {min(labels)}: "
                f"{needed} two classes at least"
            )
        how: dict[str, Any] = {"sensor": sensor_shape(sensor), "cut": length is not None}
        labelled = self.table is not None
        how |= {"labelled": True} if labelled else {}  # caches know no argument that is left out
        super().__init__(
            found["train"],
            partial(read_own, T=T, size=size, rgb=rgb, by=by, **how),
            val=found.get("val") or None,
            test=found.get("test") or None,
            cut=None if length is None or step is None else partial(cut, length, step, labelled),
            listed=self.group,
            T=T,
            frame_size=(size, size),
            **loading,
        )
        self.rgb = rgb
        self.no_training = no_training

    def read_image(self, path: Path) -> Tensor:
        """One image file (3,rgb,rgb)."""
        return read_rgb(path, self.rgb)

    def require(self, split: str) -> None:
        """Raise ValueError, saying why, if a split is empty."""
        if self.table and self.no_training is None and not self.sizes[split]:
            raise ValueError(
                f"the {split} split is empty: all of a recording is in one split, and {self.table} "
                "has too few of each class: record more, or see test_fraction and val_fraction"
            )
        super().require(split)


def cut(window: int, stride: int, labelled: bool, item: Item) -> list[Item]:
    """The windows of a recording or a stretch, named by their times since its first event."""
    assert item.events is not None
    t, name = read_kept(item.events)[0]["t"], item.number
    within = span_of(item, t) if labelled else None
    if labelled:
        name = name.rpartition("/")[0]
    return [
        replace(item, number=f"{name}/{start}-{stop}")
        for start, stop in windows(t, window, stride, within)
    ]


def unnamed(data: Recordings) -> list[Path]:
    """The recordings below the folder of a table that it does not name, sorted."""
    if data.table is None:
        return []
    named = {item.events for items in (*data.splits.values(), data.unused) for item in items}
    paths = (p for p in data.table.parent.rglob("*") if p.suffix.lower() in RECORDING_SUFFIXES)
    return sorted(p for p in paths if p not in named and p != data.table and p.is_file())


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


Found = tuple[dict[str, list[Item]], list[Path], str | None]
"""Items by split, "train" alone where splits are drawn; folders of classes; what is missing."""


def _in_folders(root: Path, row: DataSet, images: bool | str | Path | None) -> Found:
    """The recordings in folders of classes, in `root` or in one for each split."""
    no_training = row.test_alone(root)
    own = no_training is not None or row.files["train"].folder(root) is not None
    found = {split: _listed(root, split) for split in _SPLITS if own}
    if not own:
        if row.files["all"].folder(root) is None and (nested := list_nested(root)):
            raise FileNotFoundError(
                f"no recordings {root}/<class>/<name>, but {len(nested)} that lie deeper, the "
                f"first {nested[0]}: move them up, or give the folder that holds the classes"
            )
        found = {"train": _unique(row.files["all"].find(root))}
    found = dict(zip(found, _paired(root, list(found.values()), images), strict=True))
    places = [root / split for split in found if (root / split).is_dir()] if own else [root]
    return found, places, no_training


def _in_table(table: Path, images: bool | str | Path | None) -> Found:
    """The stretches of a table."""
    if images:
        raise ValueError(f"images={images}: {table} has none: leave images out")
    items = read_table(table.parent)
    first = {item: item.number.partition("/")[0] for item in items}
    if not {"train", "test"}.isdisjoint(first.values()) and {*first.values()} <= {*_SPLITS}:
        found = {split: [item for item in items if first[item] == split] for split in _SPLITS}
        return found, [], None if found["train"] else f"{table} has no recordings in train/"
    return {"train": items}, [], None


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
