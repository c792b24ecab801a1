"""Where the time of a training step goes, part by part."""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn

from estl.supervision import Sum
from estl.training.init_from import with_weights
from estl.training.learner import Learner
from estl.training.recipe import build, make_learner
from estl.training.rehearsal import ONCE
from estl.training.results import peak_memory
from estl.training.screen import quiet
from estl.training.trainer import make_trainer, plainly
from estl.types import Supervision

WARM = 3
"""Steps that are not counted: they compile, and fill the allocator's pools."""

METHODS = ("forward", "look", "fuse")
"""What a supervision calls of its parts."""


class Clock(Callback):
    """Notes the seconds of each part of every step; a part within another counts on its own.

    Args:
        learner: its student, its supervision and the supervision's parts are watched.

    >>> from estl.students import VGGSNN
    >>> from estl.supervision import TET
    >>> clock = Clock(Learner(VGGSNN(frame_size=(8, 8), layers=(8,)), TET()))
    >>> with_it = clock.learner.student(torch.rand(2, 3, 2, 8, 8))
    >>> list(clock.step)
    ['student']
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.step: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self.within: list[tuple[str, float, float]] = []  # name, since when, seconds of its parts
        self._watch("student", learner.student, "forward")
        summed = learner.supervision
        for supervision in summed.supervisions if isinstance(summed, Sum) else [summed]:
            assert isinstance(supervision, Supervision)
            self._watch("losses", supervision, "forward")
            if supervision.extends:
                self._watch("bridge: drawing", supervision, "extend")
            for name, part in supervision.named_children():
                for method in METHODS:
                    self._watch(name, part, method)

    def _watch(self, name: str, module: nn.Module, method: str) -> None:
        if hasattr(module, method):
            setattr(module, method, partial(self._timed, name, getattr(module, method)))

    def _timed(self, name: str, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.begin(name)
        result = method(*args, **options)
        self.end()
        return result

    def begin(self, name: str) -> None:
        """A part begins."""
        self.within.append((name, _now(), 0.0))

    def end(self) -> None:
        """The part that began last ends."""
        name, since, parts = self.within.pop()
        seconds = _now() - since
        self.step[name] += seconds - parts
        if self.within:
            above, began, of_parts = self.within.pop()
            self.within.append((above, began, of_parts + seconds))

    def on_train_batch_start(self, *args: Any) -> None:
        """The data are there."""
        if self.within:
            self.end()

    def on_before_backward(self, *args: Any) -> None:
        """The loss is there."""
        self.begin("backward")

    def on_after_backward(self, *args: Any) -> None:
        """The gradients are there."""
        self.end()

    def on_before_optimizer_step(self, *args: Any) -> None:
        """The optimizer follows."""
        self.begin("optimizer, logging")

    def on_train_batch_end(self, *args: Any) -> None:
        """A step has ended; the data of the next one follow."""
        if self.within:  # none where gradients are accumulated
            self.end()
        self.steps.append(dict(self.step))
        self.step.clear()
        self.begin("data")

    def on_train_epoch_end(self, *args: Any) -> None:
        """No step follows at once."""
        self.within.clear()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@quiet()
def profiled(config: Namespace, given: Namespace, steps: int = 20) -> dict[str, float]:
    """Median seconds of each part of a run's training step, the longest first. Nothing is written.

    Args:
        config: configuration of the run.
        given: the part of it that was given explicitly.
        steps: number of steps that are counted.

    Raises:
        ValueError: what `training.run.fit` would raise, before the training or in its first steps.
    """
    seed_everything(config.seed, verbose=False)
    parts = build(config, given)
    parts.data.require("train")
    parts = with_weights(config, parts)
    learner = make_learner(config, parts)
    learner.preparing = 2
    clock = Clock(learner)
    once = ONCE | {"max_epochs": -1, "max_steps": steps + WARM, "limit_val_batches": 0}
    options = config.trainer.as_dict() | once
    trainer = make_trainer(options, logger=False, enable_checkpointing=False, callbacks=[clock])
    with plainly():
        trainer.fit(learner, parts.data)
    counted = clock.steps[WARM:]
    names = {name for step in counted for name in step}
    seconds = {name: median(step.get(name, 0.0) for step in counted) for name in names}
    return dict(sorted(seconds.items(), key=lambda part: -part[1]))


def lines(seconds: dict[str, float]) -> list[str]:
    """The parts as text.

    >>> print(lines({"backward": 0.03, "student": 0.01})[0])
    backward                30.0 ms a step   75.0 %
    """
    total = sum(seconds.values())
    parts = seconds | {"all": total}
    found = [f"{n:20} {1e3 * s:7.1f} ms a step  {100 * s / total:5.1f} %" for n, s in parts.items()]
    return [*found, f"memory: {peak_memory()} MiB"]
