"""Images without a recording beside the pairs of a training batch: what a bridge is built from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from estl.data.augment import Augment
from estl.data.frames import Normalization
from estl.data.items import Item, list_images
from estl.data.simulator import simulate
from estl.guidance.grid import on_frames
from estl.types import Batch

P = TypeVar("P")


@dataclass(frozen=True)
class Bridge:
    """Further images in each training batch, which have neither recording nor label.

    Args:
        images: a folder of images `<class>/<name>.png` or .jpg; class and name only serve to refuse
            what is held out. Or "unused", the images of the training items that `per_class` leaves
            out; or None for those of the training pairs, a control.
        per_step: images per batch, on each process.
        augment: random changes of them, or None for none.
        recordings: "drawn" by the supervision (see `EdgeGuidedDistillation`), or "simulated" by
            `estl.data.simulator`, a control.

    Raises:
        ValueError: `per_step` below 1.
    """

    images: Path | Literal["unused"] | None = None
    per_step: int = 25
    augment: Augment | None = None
    recordings: Literal["drawn", "simulated"] = "drawn"

    def __post_init__(self) -> None:
        if self.per_step < 1:
            raise ValueError(f"bridge.per_step={self.per_step}: at least 1")

    def check(self, normalize: Normalization) -> None:
        """Raise ValueError for frames that are scaled."""
        if normalize != "none":
            raise ValueError(
                f"bridge: recordings are drawn as counts, not as normalize={normalize!r} has "
                "them: leave normalize out"
            )

    def items(self, pairs: Sequence[Item], unused: list[Item]) -> list[Item]:
        """Its items that are not training `pairs`; none if the images are the pairs' own."""
        if self.images is None:
            return []
        if str(self.images) == "unused":
            if not unused:
                raise ValueError("bridge.images=unused: no training item is, give per_class")
            return unused
        known = set(pairs)
        images = list_images(Path(self.images), option="--data.init_args.bridge.images")
        return [item for item in images if item not in known]

    def add(self, batch: Batch, pictures: "Pictures[P]", classes: int) -> Batch:
        """`batch` with `per_step` of the pictures drawn at random."""
        chosen = torch.randint(len(pictures), (self.per_step,)).tolist()
        found = [pictures[i] for i in chosen]
        shape = (found if batch.image is None else batch.image)[0].shape
        for i, image in zip(chosen, found, strict=True):
            if image.shape != shape:
                sides = " by ".join(str(side) for side in shape[1:])
                raise ValueError(
                    f"bridge: the image of {pictures.items[i]} has {image.shape[1]} by "
                    f"{image.shape[2]} pixels, that of a pair {sides}: resize it"
                )
        images = torch.stack(found).to(batch.events.device)
        if self.augment is not None:
            events = images.new_zeros(len(images), 1, 2, 1, 1)
            label = batch.label.new_zeros(len(images))
            changed = self.augment(Batch(events, label, images), classes).image
            images = images if changed is None else changed
        batch = replace(batch, unpaired=images)
        if self.recordings == "drawn":
            return batch
        return batch.extend(simulate(on_frames(images, batch.events), batch.events.shape[1]))


class Pictures(Generic[P]):
    """Images of items or files, read once and kept as bytes."""

    def __init__(self, items: Sequence[P], read: Callable[[P], Tensor | None]) -> None:
        self.items, self.read = items, read
        self.kept: list[Tensor | None] = [None] * len(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Tensor:
        kept = self.kept[i]
        if kept is None:
            image = self.read(self.items[i])
            if image is None:
                raise ValueError(f"item {self.items[i]} has no image: a bridge needs paired data")
            kept = self.kept[i] = (image * 255).round().byte()
        return kept / 255
