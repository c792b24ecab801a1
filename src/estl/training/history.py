"""One line per epoch, on the screen and in `history.csv`."""

import csv
import io
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from estl.data.module import EventData
from estl.training.files import aside
from estl.training.groups import owner
from estl.training.learner import Learner
from estl.training.results import peak_memory
from estl.types import Supervision

LAST = ("train/loss", "train/acc", "val/acc", "lr", "seconds", "step_seconds", "memory_mib")
"""Columns after the epoch and the weighted terms."""

SHOWN = ("train/", "watch/", "gradient/")
"""What the metrics of a column begin with."""


class History(Callback):
    """Prints a line per epoch, and writes it to `history.csv` in `folder`.

    Its columns: `epoch`, counted from 1; `train/NAME` for every weighted term; `watch/NAME` for
    every metric of the supervision, such as the correlations of the edges; `gradient/PART`, the
    norm in the last step that was logged; `lr/PART` of parts with their own rate; `train/loss`;
    `train/acc`, of the training steps themselves (augmented, in training mode, while the weights
    change); `val/acc`, empty where the epoch was not validated; `lr`, of the first parameter group
    (the student's) in the first step; `seconds`, validation included; `step_seconds`, the mean of a
    step, its data included; `memory_mib`, the most that the process has held so far, on the GPU if
    there is one.

    A resumed run overwrites the epochs that it trains again. Only the first process writes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "history.csv"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what is trained."""
        if trainer.is_global_zero and isinstance(pl_module, Learner):
            print(parts(pl_module), flush=True)
            data = trainer.datamodule  # type: ignore[attr-defined]
            if isinstance(data, EventData):
                print(f"batch: {shares(data.batch_size, trainer.world_size)}", flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time and the learning rate."""
        self.start, self.validated = time.monotonic(), False
        self.steps, self.stepped = 0, self.start
        groups = trainer.optimizers[0].param_groups
        self.lr = float(groups[0]["lr"])
        named = {str(group.get("name", "")).partition("/")[0]: group["lr"] for group in groups}
        own = pl_module.part_lr if isinstance(pl_module, Learner) else {}
        self.rates = {f"lr/{part}": float(named[part]) for part in own if part in named}

    def on_train_batch_end(self, *args: Any) -> None:
        """Count the steps, and note when the last one ended."""
        self.steps, self.stepped = self.steps + 1, time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has been validated: figures of earlier ones stay in the trainer."""
        self.validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the line, before the epoch's checkpoint is written."""
        metrics = trainer.callback_metrics  # in every process: they take the means together
        if not trainer.is_global_zero:
            return
        row = {"epoch": float(trainer.current_epoch + 1)}
        row |= {
            name: float(metrics[name])
            for kind in SHOWN
            for name in metrics
            if name.startswith(kind)
        }
        if self.validated:
            row["val/acc"] = float(metrics["val/acc"])
        row |= self.rates | {"lr": self.lr, "seconds": time.monotonic() - self.start}
        row["step_seconds"] = (self.stepped - self.start) / max(1, self.steps)
        row["memory_mib"] = peak_memory()
        write(row, self.path)
        print(line(row, trainer.max_epochs), flush=True)


def parts(learner: Learner) -> str:
    """The supervision and its options, the student, and the number of parameters by part."""
    sizes: Counter[str] = Counter()
    for name, parameter in learner.named_parameters():
        sizes[owner(name)] += parameter.numel()
    listed = ", ".join(f"{part} {size:,}" for part, size in sizes.items())
    student = type(learner.student).__name__
    return f"{start_line(learner.supervision)}\n{student}, parameters: {listed}"


def start_line(supervision: Supervision) -> str:
    """The supervision and its options, as the written design's scripts print them at the start.

    >>> from estl.supervision import TSE
    >>> start_line(TSE(tau_f=0.3))
    "TSE: True, tau_f=0.3, kappa=1.0, reduction='sum', label_smoothing=0.0"
    """
    options = supervision.extra_repr()
    return f"{type(supervision).__name__}: True" + (f", {options}" if options else "")


def shares(batch_size: int, processes: int) -> str:
    """What a batch holds.

    >>> shares(128, 1), shares(128, 4)
    ('128 samples', '128 samples, 32 for each of 4 processes')
    """
    each = f", {batch_size // processes} for each of {processes} processes"
    return f"{batch_size} samples" + (each if processes > 1 else "")


def write(row: dict[str, float], path: Path) -> None:
    """Write the row into the file, in place of the rows of its epoch and of all later ones.

    The file is replaced as a whole, so that a run that is killed leaves no half of a line.
    """
    rows: list[dict[str, str]] = []
    try:
        if path.exists():
            with path.open(newline="") as file:
                rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
    except (KeyError, ValueError, TypeError, csv.Error):
        pass
    if len(rows) != (before := int(row["epoch"]) - 1):
        print(
            f"{path} is damaged: it has {len(rows)} of the first {before} epochs", file=sys.stderr
        )
    rows.append({name: f"{value:.6g}" for name, value in row.items()})
    terms = [name for name in dict.fromkeys(n for r in rows for n in r) if name not in LAST]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [*terms, *LAST], restval="")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as file:
        file.write(table.getvalue().encode())


def line(row: dict[str, float], epochs: int | None) -> str:
    """A row for the screen, of `epochs` epochs in all.

    >>> row = {"epoch": 3, "train/cls": 1.5, "train/kl": 0.5, "train/loss": 2.0, "train/acc": 0.4}
    >>> line(row | {"val/acc": 0.35, "lr": 5e-3, "seconds": 12.34}, epochs=20)
    'epoch  3/20   12.3 s  lr 0.005     accuracy: train 40.0 %, val 35.0 %
    loss 2.00 = cls 1.50 + kl 0.500'
    """
    number = f"{row['epoch']:{len(str(epochs))}.0f}/{epochs}"
    terms = [
        f"{name.removeprefix('train/')} {value:#.3g}"
        for name, value in row.items()
        if name.startswith("train/") and name not in LAST
    ]
    val = f"{100 * row['val/acc']:4.1f} %" if "val/acc" in row else f"{'-':>4}  "
    return (
        f"epoch {number}  {row['seconds']:5.1f} s  lr {row['lr']:<8.3g} "
        f"accuracy: train {100 * row['train/acc']:4.1f} %, val {val}  "
        f"loss {row['train/loss']:#.3g} = {' + '.join(terms)}"
    )
