"""A rehearsal of a run: two steps of its parts on their real shapes, and what a whole run takes."""

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from estl.training.history import start_line
from estl.training.init_from import with_weights
from estl.training.leaks import without_leaks
from estl.training.learner import Learner
from estl.training.recipe import Parts, build, make_callbacks, make_learner
from estl.training.results import peak_memory
from estl.training.screen import quiet
from estl.training.trainer import make_trainer, plainly
from estl.types import Batch, Loss, Output, Supervision

ONCE: dict[str, Any] = {
    "devices": 1, "num_nodes": 1, "strategy": "auto", "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": 1, "val_check_interval": 1.0,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
"""Options of a trainer that only tries a run."""


@dataclass(frozen=True)
class Rehearsal:
    """What a run is made of and how long it takes, as far as two steps can tell.

    Args:
        parts: the run's, as `training.recipe.build` made them; their weights have been trained.
        learner: the one that trained them.
        output: the student's, for the last training batch.
        loss: the supervision's, for that batch.
        step_seconds: time of the second training step with its data: the first one compiles.
        steps: steps per epoch.
        epochs: epochs of the run; `max_steps` may cut the last one short.
        memory_mib: the most that the process held, on the GPU if there is one.
    """

    parts: Parts
    learner: Learner
    output: Output
    loss: Loss
    step_seconds: float
    steps: int
    epochs: int
    memory_mib: int

    @property
    def seconds(self) -> float:
        """Estimated time of all training steps; validation and test come on top."""
        return self.step_seconds * self.steps * self.epochs

    def lines(self) -> list[str]:
        """The rehearsal as text."""
        data, student = self.parts.data, self.parts.student
        sizes = ", ".join(f"{split} {size}" for split, size in data.sizes.items())
        H, W = data.frame_size
        out, loss = self.output, self.loss
        terms = " + ".join(f"{name} {float(term):.3g}" for name, term in loss.terms.items())
        groups: Counter[tuple[str, float]] = Counter()
        for group in self.learner.groups():
            part = group["name"].partition("/")[0]
            groups[part, group["lr"]] += sum(p.numel() for p in group["params"])
        rates = "; ".join(f"{part} {lr:g} ({n:,})" for (part, lr), n in groups.items())
        weights = sum(p.numel() for p in student.parameters())
        return [
            f"data: {type(data).__name__} {data.fingerprint}: {sizes}; {len(data.classes)} classes",
            f"batch: {data.batch_size} x T {data.T} x {data.in_channels} x {H} x {W}",
            f"student: {type(student).__name__}, {weights:,} parameters; "
            f"features {_shape(out.features)}, logits {_shape(out.logits)}",
            f"supervision: {start_line(self.parts.supervision)}",
            f"loss: {float(loss.total):.3g} = {terms}",
            f"optimizer: {self.learner.optimizer}, learning rates (parameters): {rates}",
            f"memory: {self.memory_mib} MiB",
            f"time: {self.step_seconds:.3g} s a step, {self.steps} steps an epoch, {self.epochs} "
            f"epochs: about {duration(self.seconds)}, without validation and test",
        ]


class _Watch(Callback):
    """Notes when training steps end, and what the last of them computed."""

    def __init__(self, supervision: Supervision) -> None:
        self.times: list[float] = []
        supervision.register_forward_hook(self._note)

    def _note(self, module: Supervision, args: tuple[Output, Batch], loss: Loss) -> None:
        terms = {name: term.detach() for name, term in loss.terms.items()}
        self.output, self.loss = args[0], Loss(loss.total.detach(), terms)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step begins."""
        self.times.append(time.perf_counter())

    def on_train_batch_end(self, *args: Any) -> None:
        """A step, from loading its data on, has ended."""
        self.times.append(time.perf_counter())


@quiet()
def rehearse(config: Namespace, given: Namespace) -> Rehearsal:
    """Build a run and train it for two steps, with one validation batch, on its real shapes.

    Nothing is written. It takes one device, with the whole batch.

    Raises:
        ValueError: what `training.run.fit` would raise, before the training or in its first steps.
    """
    seed_everything(config.seed, verbose=False)
    parts = build(config, given)
    for split in ("train", "test"):
        parts.data.require(split)
    parts = with_weights(config, without_leaks(parts))
    learner = make_learner(config, parts)
    learner.preparing = 2
    watch = _Watch(parts.supervision)
    once = ONCE | {
        "max_epochs": 1, "max_steps": 2, "limit_val_batches": 1 if parts.data.sizes["val"] else 0,
    }  # fmt: skip
    make_callbacks(config)  # they are not called: what they write belongs to the run
    options = config.trainer.as_dict()
    trainer = make_trainer(
        options, **once | {"logger": False, "enable_checkpointing": False, "callbacks": [watch]}
    )
    with plainly():
        trainer.fit(learner, parts.data)
    steps, epochs = int(trainer.num_training_batches), options["max_epochs"]
    if (most := options["max_steps"]) >= 0:  # of the optimizer
        epochs = min(epochs, math.ceil(most * options["accumulate_grad_batches"] / steps))
    return Rehearsal(
        parts,
        learner,
        watch.output,
        watch.loss,
        step_seconds=watch.times[-1] - watch.times[-2],
        steps=steps,
        epochs=epochs,
        memory_mib=peak_memory(),
    )


def duration(seconds: float) -> str:
    """A time as one would say it.

    >>> [duration(s) for s in (4.2, 130, 9000, 200_000)]
    ['4 s', '2 min', '2.5 h', '2.3 days']
    """
    for unit, size, digits in (("days", 86_400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def _shape(x: Any) -> str:
    return "x".join(map(str, x.shape))
