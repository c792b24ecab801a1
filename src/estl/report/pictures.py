"""A page of pictures every few epochs: what teacher, edge detector and student look at."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from estl.data.show import event_picture
from estl.supervision.distillation import EdgeGuidedDistillation
from estl.training.learner import Learner
from estl.types import Batch, Supervision

COLUMNS = ("image", "learned edges", "teacher attention", "student attention", "events")


class Pictures(Callback):
    """Writes `pictures/epoch_NNN.png` in the run folder every `every` epochs of a guided run.

    One row a sample of the first validation batch, or training batch where there is no validation:
    RGB, edges, the teacher's attention (times the edges), the student's, and the events of the
    first third of the steps (ON red, OFF blue). A supervision without guidance has nothing to show
    and is left alone.

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
        data = trainer.datamodule  # type: ignore[attr-defined]
        batch: Batch = next(iter(data.loader("val" if data.sizes["val"] else "train")))
        batch = batch.to(pl_module.device)
        rows = slice(0, self.samples)
        if batch.image is None:
            return
        batch = Batch(batch.events[rows], batch.label[rows], batch.image[rows])
        pl_module.eval()
        with torch.inference_mode():
            seen = guided.maps(pl_module.student(batch.events), batch)
        pl_module.train()
        folder = Path(trainer.default_root_dir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        assert batch.image is not None
        edges = torch.zeros_like(batch.image[:, :1]) if seen.edges is None else seen.edges
        events = event_picture(first_saccade(batch.events))
        page = [batch.image, edges[:, 0], seen.teacher, seen.student, events]
        draw(page, folder / f"epoch_{epoch + 1:03d}.png")


def guided_part(supervision: Supervision) -> EdgeGuidedDistillation | None:
    """The guided distillation in a supervision, itself or within a `Sum`; None if there is none."""
    parts = (m for m in supervision.modules() if isinstance(m, EdgeGuidedDistillation))
    return next(parts, None)


def first_saccade(events: Tensor) -> Tensor:
    """Counts (B,2,H,W) of the first third of the steps of events (B,T,2,H,W).

    That is one saccade: later ones draw the same edges the other way.
    """
    return events[:, : -(-events.shape[1] // 3)].sum(1)


def draw(page: list[Tensor], path: Path) -> None:
    """Write columns of pictures, (B,3,H,W) or (B,H,W), as one PNG."""
    from matplotlib.figure import Figure

    rows = len(page[0])
    figure = Figure(figsize=(2 * len(page), 2 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(page), squeeze=False)
    for column, (title, pictures) in enumerate(zip(COLUMNS, page, strict=True)):
        axes[0, column].set_title(title, fontsize=9)
        for row, picture in enumerate(pictures.float().cpu()):
            if picture.ndim == 3:
                axes[row, column].imshow(picture.movedim(0, -1).clamp(0, 1).numpy())
            else:
                axes[row, column].imshow(picture.numpy(), cmap="magma")
            axes[row, column].set_axis_off()
    figure.savefig(path, dpi=80)
