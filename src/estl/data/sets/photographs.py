"""The images of a paired set without the events: what a teacher is trained on."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from estl.data.augment import Augment
from estl.data.items import Item, file_content, list_images
from estl.data.module import EventData, ItemData, with_items
from estl.data.published import pick_items
from estl.data.splits import SplitData


class Photographs(ItemData):
    """The images of a paired set: batches whose `events` are the image as one time step.

    Args:
        data: the paired set; its splits are kept.
        extra: a folder of further training images `<class>/<name>.png`, or None. If the set was
            given `splits` that list images as `extra`, only those are taken from the folder.
        augment: random changes of the training images.

    Raises:
        ValueError: the set has no single items, no images, or none for training or validation;
            `extra` has other classes, lacks a listed image, or has one of the set's validation or
            test items (same class and number).
    """

    def __init__(
        self, data: EventData, extra: Path | None = None, augment: Augment | None = None
    ) -> None:
        pairs = with_items(data)
        pairs.require("train")
        pairs.require("val")
        splits = {name: list(items) for name, items in pairs.splits.items()}
        further = set[Item]()
        if extra is not None:
            held = {*splits["val"], *splits["test"]}
            found = list_images(extra, option="--images")
            if isinstance(pairs, SplitData) and pairs.extra is not None:
                found = pick_items({"extra": pairs.extra}, found, of=extra)["extra"]
            more = [item for item in found if item not in set(splits["train"])]
            leaks = [item for item in more if item in held]
            strange = {item.label for item in more} - set(pairs.classes)
            if leaks or strange:
                what = f"class {min(strange)}" if strange else f"{leaks[0]}, which is held out"
                raise ValueError(f"--images {extra} has {what}: remove it from the folder")
            splits["train"] += more
            further = set(more)

        def content(item: Item) -> Iterable[bytes]:
            return file_content(item) if item in further else pairs.content(item)

        image = pairs.load(splits["val"][0])[1]
        if image is None:
            raise ValueError("this data set has no images to teach from: choose a paired one")
        super().__init__(
            splits,
            partial(_load, load=pairs.load, read=pairs.read_image),
            T=1,
            frame_size=(image.shape[-2], image.shape[-1]),
            in_channels=3,
            batch_size=pairs.batch_size,
            seed=pairs.seed,
            augment=augment,
            content=file_content if pairs.content is file_content else content,
        )


def _load(item: Item, load: Any, read: Any) -> tuple[Tensor, None]:
    image = read(item.image) if item.events is None and item.image else load(item)[1]
    return image[None], None
