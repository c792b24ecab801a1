"""What a training requires of its options, and of what student and supervision return.

The latter is checked once, in the first step: those who write their own learn more from one line
here than from what goes wrong later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from estl.data.augment import Augment
from estl.types import Batch, Loss, Output

CHANGING = (_BatchNorm, _DropoutNd)
"""Layers that behave differently in training."""

REPEATING = ("flip", "drop_time", "drop_area", "drop_events", "polarity", "noise")
"""Options of `Augment` that make an image one of two, or leave it as it is."""


def check_numbers(positive: Mapping[str, float], not_negative: Mapping[str, float]) -> None:
    """Refuse options outside their ranges.

    >>> check_numbers({"lr": 0.1}, {"warmup": -1})
    Traceback (most recent call last):
    ValueError: warmup is -1: it must be 0 or more
    """
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}: it must be above 0")
    for name, value in not_negative.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}: it must be 0 or more")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not among those known.

    >>> check_choice("schedule", "step", ["cosine", "constant"])
    Traceback (most recent call last):
    ValueError: schedule is 'step': it must be one of cosine, constant
    """
    if value not in known:
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(known)}")


def check_student(student: nn.Module, output: Any, batch: Batch, classes: int = 0) -> None:
    """Refuse an `output` of `student` for `batch` that is no `Output`, has other shapes than it
    documents, or claims that its head reads pooled features although its logits differ.

    Args:
        classes: K of the data; 0 if it is not known.

    Raises:
        ValueError: with what is there, and what has to be.

    >>> import torch
    >>> from estl.students import VGGSNN
    >>> student = VGGSNN(3, layers=(8,), pooled=True)
    >>> batch = Batch(torch.rand(1, 4, 2, 8, 8), torch.tensor([0]))
    >>> check_student(student, student(batch.events), batch, classes=10)
    Traceback (most recent call last):
    ValueError: VGGSNN has 3 classes (Output.logits), but the data 10: build it for these
    """
    name = type(student).__name__
    if not isinstance(output, Output):
        raise ValueError(f"{name} returned a {type(output).__name__}: return an estl.Output")
    B, T = batch.events.shape[:2]
    shapes = {"logits": "BTK", "features": "BTDHW", "class_token": "BTD", "patch_tokens": "BTND"}
    for field, letters in shapes.items():
        x = getattr(output, field)
        if x is None and field == "patch_tokens":
            continue
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        if not isinstance(x, Tensor) or x.ndim != len(letters) or found[:2] != (B, T):
            raise ValueError(
                f"{name}: Output.{field} is {found}, but has to be ({','.join(letters)}) with "
                f"B = {B} and T = {T}"
            )
    if output.logits.shape[2] < classes:
        raise ValueError(
            f"{name} has {output.logits.shape[2]} classes (Output.logits), but the data {classes}: "
            "build it for these"
        )
    _check_head(student, output)


def _check_head(student: nn.Module, output: Output) -> None:
    """Refuse a student whose head does not read the mean of its features although it says so:
    TSE and TRE would train another function than the one that predicts.

    A head that is random (dropout), or that changes when it is called (batch norm), is taken at
    its word.
    """
    head = getattr(output.classify, "__self__", output.classify)
    modules = head.modules() if isinstance(head, nn.Module) else ()
    if not output.pooled_head or any(isinstance(m, CHANGING) for m in modules):
        return
    pooled, devices = output.features.detach().mean((-2, -1)), [output.logits.device]
    with torch.random.fork_rng(devices if output.logits.is_cuda else []):
        logits = output.classify(pooled)
        if _near(logits, output.logits) or not _near(output.classify(pooled), logits):
            return
    raise ValueError(
        f"{type(student).__name__}: Output.logits are not classify(features.mean((-2, -1))): "
        "give Output what the head reads, or pooled_head=False (which TSE and TRE refuse)"
    )


def _near(logits: Tensor, others: Tensor) -> bool:
    """Whether they are the same up to rounding."""
    if logits.shape != others.shape:
        return False
    return bool((logits - others).abs().mean() <= 0.1 * others.abs().mean() + 0.01)


def check_kept_images(*augments: Augment | None) -> None:
    """Refuse augmentation that makes new images in every epoch (a flip only makes two of each).

    Raises:
        ValueError: such an option, named.

    >>> check_kept_images(None, Augment(flip=0.5, drop_time=0.3))
    >>> check_kept_images(Augment(shift=0.1))
    Traceback (most recent call last):
    ValueError: cache_teacher=true is for images that stay the same, and augment.shift=0.1 ...
    """
    for augment in augments:
        if augment is None:
            continue
        for option in fields(augment):
            value = getattr(augment, option.name)
            if value != option.default and option.name not in REPEATING:
                raise ValueError(
                    f"cache_teacher=true is for images that stay the same, and augment."
                    f"{option.name}={value} changes them: leave out one of the two (flip and what "
                    "changes events alone may stay)"
                )


def check_loss(supervision: nn.Module, loss: Any) -> None:
    """Refuse what `supervision` returned where it is no `Loss`, or a `Loss` that cannot be learned.

    Raises:
        ValueError: another type, values that are no scalars, a total without a gradient, or one
            that is not the sum of its terms.

    >>> import torch
    >>> total = torch.ones((), requires_grad=True)
    >>> check_loss(nn.Identity(), Loss(total, {"a": 2 * total}))
    Traceback (most recent call last):
    ValueError: Identity: Loss.terms sum to 2, but total is 1: terms are weighted, and what is ...
    """
    name = type(supervision).__name__
    if not isinstance(loss, Loss):
        raise ValueError(f"{name} returned a {type(loss).__name__}: return an estl.Loss")
    named = {f"terms[{key!r}]": x for key, x in loss.terms.items()}
    named |= {f"metrics[{key!r}]": x for key, x in loss.metrics.items()}
    for field, x in ({"total": loss.total} | named).items():
        if not isinstance(x, Tensor) or x.ndim:
            found = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(
                f"{name}: Loss.{field} has to be one number, a scalar tensor, not {found}"
            )
    if not loss.total.requires_grad:
        raise ValueError(
            f"{name}: Loss.total has no gradient: nothing that is trained was in it, or it was "
            "detached"
        )
    total = float(loss.total.detach())
    parts = sum(float(term.detach()) for term in loss.terms.values())
    if abs(total - parts) > 0.02 * (abs(total) + 1e-3):
        raise ValueError(
            f"{name}: Loss.terms sum to {parts:.4g}, but total is {total:.4g}: terms are weighted, "
            "and what is only watched is in metrics"
        )
