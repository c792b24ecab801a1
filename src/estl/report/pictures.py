"""A page of pictures every few epochs: what teacher, edge detector and student look at."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from estl.data.items import evenly
from estl.data.module import EventData
from estl.data.samples import Sample, Split, collate
from estl.data.show import event_picture
from estl.guidance.watch import Maps, footprint
from estl.supervision.distillation import EdgeGuidedDistillation
from estl.training.learner import Learner
from estl.types import Batch, Supervision


class Pictures(Callback):
    """Writes `pictures/epoch_NNN.png` in the run folder every `every` epochs of a guided run.

    One row a sample of the validation split, or of training where there is no validation, each of
    another class and the same on every page (`choose`); `draw` says what is in a row. A supervision
    without guidance has nothing to show and is left alone.

    Args:
        every: epochs between two pages; the last epoch always has one.
        samples: rows of a page.
    """

    def __init__(self, every: int = 10, samples: int = 4) -> None:
        self.every, self.samples = every, samples

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw a page if it is time for one."""
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
        draw(batch, seen, names, folder / f"epoch_{epoch + 1:03d}.png")


def guided_part(supervision: Supervision) -> EdgeGuidedDistillation | None:
    """The guided distillation in a supervision, itself or within a `Sum`; None if there is none."""
    parts = (m for m in supervision.modules() if isinstance(m, EdgeGuidedDistillation))
    return next(parts, None)


def choose(data: EventData, split: str, n: int) -> Batch:
    """At most `n` samples of a split, of different classes where it has so many.

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

    That is one saccade: later ones draw the same edges the other way. Of direct-coded events, that
    are pictures (B,T,3,H,W), the first step.
    """
    if events.shape[2] != 2:
        return events[:, 0]
    return events[:, : -(-events.shape[1] // 3)].sum(1)


def draw(batch: Batch, maps: Maps, names: Sequence[str], path: Path) -> None:
    """Write a page as PNG: one row a sample, its columns on scales that all rows share.

    * the image, with the class's name;
    * the edges, if there are any, from 0 to 1; beside them Sobel's, and of event frames the counts
      of the whole recording, in shares of the page's largest;
    * of a fused target, how far its gate is open at each of the teacher's patches, from 0 to 1, and
      how much it lets into the target there, in shares of the page's largest;
    * the teacher's attention (times the edges) and the student's, in multiples of even attention,
      one over the number of places: both from 0 to 2, or to the most of either on the page;
    * the events of the first third of the steps (ON red, OFF blue), or direct-coded ones.
    """
    from matplotlib.figure import Figure

    assert batch.image is not None
    places = maps.teacher[0].numel()
    attention = "teacher attention" + ("" if maps.edges is None else ", times edges")
    most = max(2.0, places * max(float(maps.teacher.max()), float(maps.student.max())))
    columns: list[tuple[str, Tensor, float]] = [("image", batch.image, 1.0)]
    if maps.edges is not None:
        columns += [("edges", maps.edges[:, 0], 1.0), ("Sobel", maps.sobel[:, 0], 1.0)]
        if batch.events.shape[2] == 2:
            counts = footprint(batch.events)[:, 0]
            columns.append(("event counts", counts / counts.max().clamp(min=1), 1.0))
    if maps.gate is not None and maps.added is not None:
        let_in = maps.added / maps.added.max().clamp(min=1e-12)
        columns += [("gate", maps.gate, 1.0), ("added to target", let_in, 1.0)]
    columns += [(attention, places * maps.teacher, most)]
    columns += [("student attention", places * maps.student, most)]
    columns += [("events", event_picture(first_saccade(batch.events)), 1.0)]

    figure = Figure(figsize=(2 * len(columns), 2 * len(names) + 0.7), layout="constrained")
    heights = [1.0] * len(names) + [0.05]
    *rows, bars = figure.subplots(len(heights), len(columns), height_ratios=heights)
    for *column, bar, (title, pictures, top) in zip(*rows, bars, columns, strict=True):
        column[0].set_title(title, fontsize=9)
        for ax, picture in zip(column, pictures.float().cpu(), strict=True):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if picture.ndim == 3:
                ax.imshow(picture.movedim(0, -1).clamp(0, 1).numpy())
            else:
                shown = ax.imshow(picture.numpy(), cmap="magma", vmin=0, vmax=top)
        if pictures.ndim == 4:
            bar.set_axis_off()
            continue
        figure.colorbar(shown, cax=bar, orientation="horizontal")
        bar.set_xlabel("times even attention" if "attention" in title else "", fontsize=8)
        bar.tick_params(labelsize=7)
    for row, name in zip(rows, names, strict=True):
        row[0].set_ylabel(name, fontsize=9)
    figure.savefig(path, dpi=80)
