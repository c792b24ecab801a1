"""What a network makes of the samples that its report shows, before it has learned anything."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from estl.data.module import EventData, ItemData
from estl.data.samples import collate
from estl.report.collect import sample
from estl.report.drawing import spread
from estl.report.sources import START
from estl.supervision.steps import eval_mode
from estl.training.files import aside
from estl.training.learner import Learner


class Start(Callback):
    """Writes `start.npz` into the run folder before the first step.

    It holds what `collect.sample` keeps, of the weights that the training starts from and of the
    samples that `Collector` will keep at its end. Shards are left out: their samples would have to
    be looked for. An error here becomes one line on standard error, and does not end the run.

    Args:
        samples: as many as `Collector` keeps.
    """

    def __init__(self, samples: int = 8) -> None:
        self.samples = samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the samples, if this is the start."""
        data: EventData = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.global_step or not trainer.is_global_zero or not isinstance(data, ItemData):
            return
        assert isinstance(pl_module, Learner)
        try:
            self.write(pl_module, data, Path(trainer.default_root_dir))
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"the report will show no maps of the start: {reason}", file=sys.stderr)

    def write(self, learner: Learner, data: ItemData, folder: Path) -> None:
        """The same, but errors are raised."""
        chosen = firsts([item.label for item in data.splits["test"]], data.classes, self.samples)
        if not chosen:
            return
        batch = collate(data.dataset("test").__getitems__(chosen)).to(learner.device)
        with eval_mode(learner.student), torch.no_grad():
            output = learner.student(batch.events)
            kept = [sample(learner.supervision, output, batch, i) for i in range(len(chosen))]
        arrays: dict[str, Any] = {
            f"sample_{key}": np.stack([np.asarray(one[key]) for one in kept]) for key in kept[0]
        }
        with aside(folder / START) as file:
            np.savez_compressed(file, **arrays)


def firsts(labels: list[str], classes: tuple[str, ...], n: int) -> list[int]:
    """Where the first item of each of `n` classes is; these are spread evenly over all classes.

    >>> firsts(["a", "a", "b", "c"], ("a", "b", "c"), 2)
    [0, 3]
    """
    wanted = [classes[k] for k in spread(len(classes), n)]
    return sorted(labels.index(name) for name in wanted if name in labels)
