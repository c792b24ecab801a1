"""Any folder of class-named images: paired with simulated events, or static pictures."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from estl.data.catalog import BY_NAME
from estl.data.formats.images import read_rgb
from estl.data.items import list_images
from estl.data.reading import Coding, read_photograph
from estl.data.splits import SplitData


class ImageFolder(SplitData):
    """Photographs in one folder a class, each with its simulated recording, or without events.

    The photograph is resized to a square of twice `size`, the sensor; its recording (`simulate`)
    is counted in cells of 2x2 pixels. Image and frames thus share one field of view. Both are
    squashed to a square, as CLIP-sized students expect, rather than cropped or padded: nothing of a
    photograph is lost, and no border makes events.

    A photograph is simulated whenever it is loaded, unless a `cache` keeps the counts.

    Args:
        root: the folder; `root/<class>/<name>.jpg` or .png. A folder that holds Caltech101's
            `101_ObjectCategories` stands for that. Where it holds `train/<class>` and
            `test/<class>`, these are the splits.
        T: number of frames; a multiple of 3 lets no frame mix two saccades.
        size: height and width of the frames.
        rgb: height and width of the images.
        amplitude: length of the third saccade, as a share of the sensor's width; 5 pixels of 240
            as in N-Caltech101.
        threshold: contrast that makes an event (`simulate`).
        coding: "saccades" for the simulated recording, or "direct": a static set, whose events are
            the photograph in [0,1] itself at every time step, of `size` and without an image
            beside it. `normalize: {mean: [...], std: [...]}` standardizes it.
        classes_used: how many classes to keep, in the order of their names; all if None.
        loading: arguments of `SplitData`, `ItemData` and `EventData`.

    Raises:
        ValueError: `classes_used` below 1.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 6,
        size: int = 48,
        rgb: int = 224,
        amplitude: float = 5 / 240,
        threshold: float = 0.35,
        coding: Coding = "saccades",
        classes_used: int | None = None,
        **loading: Any,
    ) -> None:
        root, files = Path(root), BY_NAME["folder"].files
        own = files["train"].folder(root) is not None
        items = list_images(root, files["train" if own else "all"])
        test = list_images(root, files["test"]) if own else []
        if classes_used is not None and classes_used < 1:
            raise ValueError(f"classes_used={classes_used}: at least 1")
        # A class that only the test folder has stays, so that it is missed in training.
        unused = set(sorted({i.label for i in items})[classes_used:]) if classes_used else set()
        camera: dict[str, Any] = {"amplitude": amplitude, "threshold": threshold, "coding": coding}
        super().__init__(
            [item for item in items if item.label not in unused],
            partial(read_photograph, T=T, size=size, rgb=rgb, **camera),
            # Of the same name as a training image it is another one.
            test=[replace(i, number=f"test/{i.number}") for i in test if i.label not in unused]
            if own
            else None,
            left_out={f"{label}/" for label in unused},
            T=T,
            frame_size=(size, size),
            in_channels=2 if coding == "saccades" else 3,
            **loading,
        )
        self.rgb = rgb

    def read_image(self, path: Path) -> Tensor:
        """One image file (3,rgb,rgb)."""
        return read_rgb(path, self.rgb)
