"""Learning rates over a run, whole or continued: the schedule, and a run's place in it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Trainer


def constant(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate at `step`: a linear rise over `warmup` steps, then 1.

    >>> [constant(s, total=4, warmup=3) for s in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / (warmup + 1))


def cosine(step: int, total: int, warmup: int) -> float:
    """The same rise, then half a cosine down to 0.

    >>> [round(cosine(s, total=4, warmup=0), 2) for s in range(5)]
    [1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < warmup:
        return constant(step, total, warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def lengths(trainer: Trainer) -> tuple[int, int]:
    """Optimizer steps of a run and of an epoch; a run of unknown epoch length is one epoch."""
    total, batches = int(trainer.estimated_stepping_batches), trainer.num_training_batches
    known = math.isfinite(batches)
    return total, math.ceil(batches / trainer.accumulate_grad_batches) if known else total


def steps_done(trainer: Trainer) -> int:
    """Steps that a run has behind it, counted as those of the present batch size.

    If epochs had another number of steps before the run was continued, its epochs are counted; but
    not in a run that ends after a number of steps.
    """
    total, each = lengths(trainer)
    whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    by_epochs = whole and total != trainer.max_steps
    return trainer.current_epoch * each if by_epochs else trainer.global_step


def go_on(trainer: Trainer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Let a resumed run use the rates and the weight decay of its present options, at its place in
    the schedule: the checkpoint brings back those that it had before.

    Args:
        trainer: its state is that of the checkpoint.
        groups: of parameters, as the options have them.
    """
    (optimizer,) = trainer.optimizers
    rates, done = [group["lr"] for group in groups], steps_done(trainer)
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        schedule.base_lrs, schedule.last_epoch = rates, done
        rates = [rate * way(done) for rate, way in zip(rates, schedule.lr_lambdas, strict=True)]
        schedule._last_lr = rates
    for group, own, rate in zip(optimizer.param_groups, groups, rates, strict=True):
        group |= {"initial_lr": own["lr"], "lr": rate, "weight_decay": own["weight_decay"]}
