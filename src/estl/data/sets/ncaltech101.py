"""N-Caltech101, alone or with the Caltech101 photographs that it was recorded from."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from estl.data.formats.atis import read_events
from estl.data.formats.images import Box, read_rgb, read_size
from estl.data.frames import Slicing, to_frames
from estl.data.items import (
    Item,
    check_partners,
    pair_items,
    read_splits,
    select_items,
    split_items,
)
from estl.data.module import EventData

SCREEN = (180, 240)
MARGIN = 7
OFFSET = (4.5, 4.0)
LEFT_OUT = ("BACKGROUND_Google", "Faces")

RECORDINGS = ("Caltech101", "N-Caltech101", "N-Caltech101/Caltech101", ".")
PHOTOGRAPHS = ("101_ObjectCategories", "caltech-101/101_ObjectCategories")

_SOURCE = "N-Caltech101 (Orchard et al. 2015)"


def screen_size(photograph: tuple[int, int]) -> tuple[int, int]:
    """(H,W) at which a photograph was shown: fitted into `SCREEN`, rounded up to even numbers.

    >>> screen_size((300, 223)), screen_size((193, 300))
    ((180, 134), (156, 240))
    """
    h, w = photograph
    H, W = SCREEN
    if W * h <= H * w:
        return 2 * -(-h * W // (2 * w)), W
    return H, 2 * -(-w * H // (2 * h))


def sensor_size(photograph: tuple[int, int]) -> tuple[int, int]:
    """(H,W) of the recording of a photograph of (h,w): what the screen shows less `MARGIN`.

    >>> sensor_size((300, 223)), sensor_size((193, 300))
    ((173, 127), (149, 233))
    """
    H, W = screen_size(photograph)
    return H - MARGIN, W - MARGIN


def seen(photograph: tuple[int, int], sensor: tuple[int, int]) -> Box:
    """The part of a photograph of (h,w) that a recording of (H,W) shows."""
    H, W = screen_size(photograph)
    top, left = OFFSET
    lower, right = min((top + sensor[0]) / H, 1.0), min((left + sensor[1]) / W, 1.0)
    return left / W, top / H, right, lower


def extent(events: np.ndarray) -> tuple[int, int]:
    """(H,W) of the smallest sensor that holds all events."""
    return int(events["y"].max()) + 1, int(events["x"].max()) + 1


def load_pair(
    item: Item, T: int, size: int, rgb: int, by: Slicing
) -> tuple[Float[Tensor, "T 2 h w"], Float[Tensor, "3 H W"] | None]:
    """Event counts of the recording on a grid of `size`, and what it shows of the photograph."""
    assert item.events is not None
    events = read_events(item.events)
    H, W = extent(events)
    if item.image is None:
        return to_frames(events, T, (size, size), by, sensor=(H, W)), None
    photograph = read_size(item.image)
    rows, columns = sensor_size(photograph)
    sensor = (max(H, rows), max(W, columns))  # no event is lost, should a recording be larger
    frames = to_frames(events, T, (size, size), by, sensor=sensor)
    return frames, read_rgb(item.image, rgb, seen(photograph, sensor))


class NCaltech101Pairs(EventData):
    """Recordings of N-Caltech101, each with its Caltech101 photograph: real RGB-event pairs.

    Files are `root/Caltech101/<class>/image_XXXX.bin` and, with `images`,
    `root/101_ObjectCategories/<class>/image_XXXX.jpg`, where the same number is the same
    photograph. A folder N-Caltech101 and, for recordings, `root` itself are looked into as well.

    Of Caltech101's classes 100 are used: the recordings have a background class, which is no
    object, and no `Faces` (the photographs of `Faces_easy` are cut-outs of them).

    Geometry: recordings differ in size. The photograph was shown as large as 240×180 pixels of the
    sensor allow, each side rounded up to an even number, and the recording is a window of it that
    is 7 pixels smaller and starts at row 4.5, column 4. Three pairs, 188×300, 223×300 and 300×193,
    have exactly this size; the offset has, of all half pixels, the highest correlation of event
    counts with the photographs' gradients. What lies outside is cut from the photograph, so that
    image and events share one field of view; both are then scaled to squares, the events by
    binning them straight into the grid. Without a photograph the largest x and y give the size.

    Args:
        root: the folder that holds both sets.
        T: number of frames.
        size: height and width of the frames.
        rgb: height and width of the images.
        by: frames of equal event "count" or of equal "time".
        images: whether the pairs have images; without, `Batch.image` is None.
        missing: "raise" if a recording has no photograph, or "skip" such recordings: they are
            counted in a warning and kept in `alone`.
        leave_out: classes that are not used.
        splits: folder of published lists (`pairs.read_splits`) in place of the two fractions.
        val_fraction: share of the items outside the test split that is the validation split.
        test_fraction: share of the items of each class that is the test split.
        per_class: training items a class, all if None. The rest is unused.
        split_seed: of the choice of test, validation and `per_class` items.
        loading: arguments of `EventData`: batch_size, seed, num_workers, cache and others.

    Attributes:
        alone: recordings that were skipped because they have no photograph.
        extra_images: number of photographs without a recording.

    Raises:
        FileNotFoundError: no recordings, or a recording's photograph is missing.
        ValueError: a class has fewer than `per_class` training items, or a bad list in `splits`; on
            loading, a broken recording or photograph.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 10,
        size: int = 48,
        rgb: int = 224,
        by: Slicing = "count",
        images: bool = True,
        missing: Literal["raise", "skip"] = "raise",
        leave_out: tuple[str, ...] = LEFT_OUT,
        splits: Path | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        per_class: int | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        recordings = _folder(Path(root), RECORDINGS, "*/*.bin", "recordings", images)
        photographs = None
        if images:
            photographs = _folder(Path(root), PHOTOGRAPHS, "*/*.jpg", "photographs", images)
        pairing = pair_items(recordings, photographs, leave_out)
        if photographs is not None and pairing.alone:
            if missing == "raise":
                check_partners(pairing, photographs)
            warnings.warn(
                f"{len(pairing.alone)} recordings without a photograph are left out, the first "
                f"{pairing.alone[0]}",
                stacklevel=2,
            )
        if splits is not None:
            absent = {f"{path.parent.name}/{path.stem}" for path in pairing.alone}
            parts = read_splits(
                splits,
                pairing.items,
                val_fraction=val_fraction,
                seed=split_seed,
                left_out=absent | {f"{name}/" for name in leave_out},
            )
        else:
            rest, test = split_items(pairing.items, test_fraction, split_seed)
            train, val = split_items(rest, val_fraction, split_seed)
            parts = {"train": train, "val": val, "test": test}
        if per_class is not None:
            parts["train"] = select_items(parts["train"], per_class, split_seed)
        super().__init__(
            parts,
            partial(load_pair, T=T, size=size, rgb=rgb, by=by),
            T=T,
            image_size=(size, size),
            **loading,
        )
        self.rgb = rgb
        self.alone = tuple(pairing.alone)
        self.extra_images = pairing.extra_images

    @staticmethod
    def read(path: Path, **options: Any) -> Tensor:
        """Frames of one recording; T, `size` and `by` of `options` are used."""
        item = Item(path.parent.name, path.stem, events=path)
        return load_pair(item, options["T"], options["size"], 1, options["by"])[0]

    def read_image(self, path: Path) -> Tensor:
        """What its recording shows of one photograph (3,rgb,rgb)."""
        photograph = read_size(path)
        return read_rgb(path, self.rgb, seen(photograph, sensor_size(photograph)))


def _folder(root: Path, names: tuple[str, ...], files: str, what: str, images: bool) -> Path:
    """The first of the folders that has such files."""
    for name in names:
        folder = root / name
        if next(folder.glob(files), None) is not None:
            return folder
    hint = " and its Caltech101 photographs, or use --data.init_args.images=false" if images else ""
    raise FileNotFoundError(
        f"no {what} {root / names[0]}/<class>/image_XXXX{Path(files).suffix}: "
        f"point --data-path at {_SOURCE}{hint}"
    )
