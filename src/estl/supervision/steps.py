"""What TSE and TRE share: one criterion at every time step, and a head that is asked aside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from estl.types import Classify

Reduction = Literal["sum", "mean"]

Criterion = nn.Module | Callable[[Tensor, Tensor], Tensor]
"""Logits (rows,K) and labels (rows,), or class weights (rows,K), to a scalar, the rows' mean."""


def over_time(
    logits: Float[Tensor, "B T K"],
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
    criterion: Criterion | None,
    reduction: Reduction,
    label_smoothing: float,
) -> Float[Tensor, ""]:
    """The criterion of every step, mean over the batch, sum or mean over time.

    Args:
        logits: predictions of all time steps (B,T,K).
        labels: class numbers (B,), or class weights (B,K), rows summing to 1.
        criterion: called once, with the steps of all samples as rows; None for cross-entropy with
            `label_smoothing`.
        reduction: over the time steps: "sum" or "mean".
        label_smoothing: of the cross-entropy.

    Raises:
        ValueError: the criterion returns no scalar.
    """
    T = logits.shape[1]
    rows, labels_per_row = logits.flatten(0, 1), labels.repeat_interleave(T, 0)
    if criterion is None:
        mean = F.cross_entropy(rows, labels_per_row, label_smoothing=label_smoothing)
    else:
        mean = criterion(rows, labels_per_row)
        if mean.ndim:
            raise ValueError(
                f"criterion must return a scalar, the mean over its rows, not {tuple(mean.shape)}"
            )
    return mean * T if reduction == "sum" else mean


def check_over_time(reduction: str, label_smoothing: float, criterion: Criterion | None) -> None:
    """Raise ValueError for options of `over_time` outside their range."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0,1], not {label_smoothing}")
    if criterion is not None and label_smoothing:
        raise ValueError(
            f"label_smoothing must be 0 beside a criterion, not {label_smoothing}: smooth there"
        )


@contextmanager
def eval_mode(classify: Classify) -> Iterator[None]:
    """The module behind `classify`, if there is one, in eval mode."""
    owner = getattr(classify, "__self__", classify)
    modules = [m for m in owner.modules() if m.training] if isinstance(owner, nn.Module) else []
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module in modules:
            module.training = True
