"""N-Caltech101, alone or with the Caltech101 photographs that it was recorded from."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from estl.data.catalog import BY_NAME
from estl.data.formats.images import read_rgb, read_size
from estl.data.frames import Slicing
from estl.data.items import find_pairs
from estl.data.reading import read_ncaltech101, seen, sensor_size
from estl.data.splits import SplitData

LEFT_OUT = ("BACKGROUND_Google", "Faces")


class NCaltech101Pairs(SplitData):
    """Recordings of N-Caltech101, each with its Caltech101 photograph: real RGB-event pairs.

    Files are `root/Caltech101/<class>/image_XXXX.bin` and, with `images`,
    `root/101_ObjectCategories/<class>/image_XXXX.jpg`, where the same number is the same
    photograph. A folder N-Caltech101 and, for recordings, `root` itself are looked into as well.

    Of Caltech101's classes 100 are used: the recordings have a background class, which is no
    object, and no `Faces` (the photographs of `Faces_easy` are cut-outs of them).

    Geometry: recordings differ in size. The photograph was shown as large as 240×180 pixels of the
    sensor allow, each side rounded up to an even number, and the recording is a window of it that
    is 7 pixels smaller and starts at row 4.5, column 4. What lies outside is cut from the
    photograph, so that image and events share one field of view; both are then scaled to squares,
    the events by binning them straight into the grid. Without a photograph the largest x and y give
    the size.

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
        loading: arguments of `SplitData`, `ItemData` and `EventData`.

    Attributes:
        alone: recordings that were skipped because they have no photograph.
        extra_images: number of photographs without a recording.
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
        **loading: Any,
    ) -> None:
        files = BY_NAME["ncaltech101"].files["all"]
        how: dict[str, Any] = {"images": images, "leave_out": leave_out, "missing": missing}
        pairing = find_pairs(files, Path(root), **how)
        if pairing.alone:
            warnings.warn(f"{pairing}: they are left out", stacklevel=2)
        absent = {f"{path.parent.name}/{path.stem}" for path in pairing.alone}
        super().__init__(
            pairing.items,
            partial(read_ncaltech101, T=T, size=size, rgb=rgb, by=by),
            left_out=absent | {f"{name}/" for name in leave_out},
            T=T,
            frame_size=(size, size),
            **loading,
        )
        self.rgb = rgb
        self.alone = tuple(pairing.alone)
        self.extra_images = len(pairing.extra)

    def read_image(self, path: Path) -> Tensor:
        """What its recording shows of one photograph (3,rgb,rgb)."""
        photograph = read_size(path)
        return read_rgb(path, self.rgb, seen(photograph, sensor_size(photograph)))
