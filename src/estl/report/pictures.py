"""A page every few epochs: what teacher, edge detector and student look at."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from estl.data.items import evenly
from estl.data.module import EventData
from estl.data.samples import Sample, Split, collate
from estl.data.show import event_picture
from estl.guidance.watch import Maps, footprint
from estl.supervision.distillation import EdgeGuidedDistillation
from estl.training.files import aside
from estl.training.learner import Learner
from estl.types import Batch, Supervision

LARGEST = 96
"""Pixels, the longest side of a picture that is kept."""


class Pictures(Callback):
    """Writes `pictures/epoch_NNN.npz` in the run folder every `every` epochs of a guided run.

    The samples are from the validation split, or from training if there is no validation, each of
    another class and the same on every page (`choose`); `page` says what is kept of them. The
    report draws it. A supervision without guidance has nothing to show and is left alone.

    Args:
        every: epochs between two pages; the last epoch always has one.
        samples: samples per page.
    """

    def __init__(self, every: int = 10, samples: int = 4) -> None:
        self.every, self.samples = every, samples

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a page if it is time for one."""
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs
        assert isinstance(pl_module, Learner)
        guided = guided_part(pl_module.supervision)
        if guided is None or not trainer.is_global_zero or (not last and (epoch + 1) % self.every):
            return
        data: EventData = trainer.datamodule  # type: ignore[attr-defined]
        batch = choose(data, "val" if data.sizes["val"] else "train", self.samples)
        if batch.image is None:
            return
        batch = batch.to(pl_module.device)
        pl_module.eval()
        with torch.inference_mode():
            seen = guided.maps(pl_module.student(batch.events), batch)
        pl_module.train()
        folder = Path(trainer.default_root_dir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        names = [data.classes[label] for label in batch.label.tolist()]
        arrays: dict[str, Any] = page(batch, seen, names)
        with aside(folder / f"epoch_{epoch + 1:03d}.npz") as file:
            np.savez_compressed(file, **arrays)


def guided_part(supervision: Supervision) -> EdgeGuidedDistillation | None:
    """The guided distillation in a supervision, itself or within a `Sum`; None if there is none."""
    parts = (m for m in supervision.modules() if isinstance(m, EdgeGuidedDistillation))
    return next(parts, None)


def choose(data: EventData, split: str, n: int) -> Batch:
    """At most `n` samples of a split, of different classes if it has that many.

    The first of each class, the classes chosen evenly from the split (`one_a_class`). A stream is
    read from its start until it has given `n` classes, or all.
    """
    loader = data.loader(split)
    if isinstance(loader.dataset, Split):
        chosen = one_a_class([item.label for item in loader.dataset.items], n)
        return collate(loader.dataset.__getitems__(chosen))
    found: dict[int, Sample] = {}
    for batch in loader:
        for i, label in enumerate(batch.label.tolist()):
            image = None if batch.image is None else batch.image[i]
            found.setdefault(label, (batch.events[i], label, image))
        if len(found) >= n:
            break
    return collate(list(found.values())[:n])


def one_a_class(labels: Sequence[Hashable], n: int) -> list[int]:
    """Indices of `n` labels, spread evenly over the first of each class, then the second, ...

    >>> one_a_class("aaabbbcccddd", 2), one_a_class("aaabbb", 3)
    ([0, 6], [0, 3, 1])
    """
    seen: Counter[Hashable] = Counter()
    rounds: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        rounds[seen[label]].append(i)
        seen[label] += 1
    chosen: list[int] = []
    for k in range(len(rounds)):
        chosen += evenly(rounds[k], n - len(chosen))
    return chosen


def first_saccade(events: Tensor) -> Tensor:
    """Counts (B,2,H,W) of the first third of the steps of events (B,T,2,H,W).

    That is one saccade: later ones draw the same edges the other way. For direct-coded events,
    which are pictures (B,T,3,H,W), it is the first step.
    """
    if events.shape[2] != 2:
        return events[:, 0]
    return events[:, : -(-events.shape[1] // 3)].sum(1)


def page(batch: Batch, maps: Maps, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What a page holds of n samples, each (n,...); what a run does not have is left out.

    * `names` of the classes; `image`, and the `events` of the first third of the steps (ON red,
      OFF blue) or direct-coded ones, as bytes (n,H,W,3);
    * `edges`, and Sobel's (`sobel`), from 0 to 1; of event frames the `counts` of all steps;
    * of a fused target, how far its `gate` is open at each of the teacher's patches, from 0 to 1,
      and how much is `added` to the target there;
    * the `teacher` attention (times the edges) and the `student`'s, in multiples of even attention,
      one over the number of places.
    """
    assert batch.image is not None
    kept: dict[str, Tensor | None] = {
        "edges": None if maps.edges is None else maps.edges[:, 0],
        "sobel": None if maps.edges is None else maps.sobel[:, 0],
        "counts": footprint(batch.events)[:, 0] if batch.events.shape[2] == 2 else None,
        "gate": maps.gate,
        "added": maps.added,
        "teacher": maps.teacher[0].numel() * maps.teacher,
        "student": maps.student[0].numel() * maps.student,
    }
    shown = {
        name: np.asarray(smaller(m.float().cpu()).half())
        for name, m in kept.items()
        if m is not None
    }
    return {
        "names": np.array(names, dtype=np.str_),
        "image": as_bytes(batch.image.float().cpu()),
        "events": as_bytes(event_picture(first_saccade(batch.events)).float().cpu()),
    } | shown


def smaller(maps: Tensor) -> Tensor:
    """Maps (...,H,W) by areas, so that no side is longer than `LARGEST`."""
    H, W = maps.shape[-2:]
    if max(H, W) <= LARGEST:
        return maps
    size = [max(1, round(x * LARGEST / max(H, W))) for x in (H, W)]
    flat = F.interpolate(maps.reshape(-1, 1, H, W), size, mode="bilinear", antialias=True)
    return flat.reshape(*maps.shape[:-2], *size)


def as_bytes(pictures: Tensor) -> np.ndarray:
    """RGB (...,3,H,W) in [0,1] as bytes (...,H,W,3), made smaller where it is large."""
    shown = (255 * smaller(pictures).clamp(0, 1)).round().byte().movedim(-3, -1)
    return np.asarray(shown)
