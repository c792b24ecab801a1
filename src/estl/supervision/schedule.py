"""Numbers that change during training: on a schedule, or learned."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Shape = Literal["constant", "linear", "cosine"]

NEVER = 2.0
"""A threshold above every probability: nothing is erased."""


@dataclass(frozen=True)
class Schedule:
    """A threshold as a function of the training's progress x in [0,1].

        x < warmup    NEVER, so that nothing is erased
        constant      start
        linear        start + (end - start) u                        u = (x - warmup)/(1 - warmup)
        cosine        end + (start - end) (1 + cos(pi u)) / 2

    Args:
        start: value after the warm-up, >= 0.
        end: value at the end of the training, >= 0; None for "constant".
        shape: "constant", "linear" or "cosine".
        warmup: share of the training without erasing, in [0,1).

    Raises:
        ValueError: an argument outside its range.

    >>> fall = Schedule(0.9, 0.5, "linear", warmup=0.2)
    >>> [f"{fall(x):.2f}" for x in (0.0, 0.2, 0.6, 1.0)]
    ['2.00', '0.90', '0.70', '0.50']
    """

    start: float
    end: float | None = None
    shape: Shape = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape must be 'constant', 'linear' or 'cosine', not {self.shape!r}")
        if (self.end is None) != (self.shape == "constant"):
            wanted = "None" if self.shape == "constant" else "a number"
            raise ValueError(f"end must be {wanted} for shape={self.shape!r}, not {self.end}")
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, not {value}")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup must be in [0,1), not {self.warmup}")

    def __call__(self, progress: float) -> float:
        """The value at `progress`, the share of the training that is done, in [0,1]."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must be in [0,1], not {progress}")
        if progress < self.warmup:
            return NEVER
        if self.end is None:
            return self.start
        u = (progress - self.warmup) / (1.0 - self.warmup)
        done = u if self.shape == "linear" else (1.0 - math.cos(math.pi * u)) / 2.0
        return self.start + (self.end - self.start) * done


def unscheduled(**thresholds: object) -> dict[str, Any]:
    """Those that are numbers; each `Schedule` has checked itself. A tensor counts as a number.

    Raises:
        ValueError: a threshold that is neither, such as a recipe's keywords for a schedule.

    >>> unscheduled(tau_f=0.5, theta0=Schedule(0.9))
    {'tau_f': 0.5}
    """
    for name, value in thresholds.items():
        if not isinstance(value, Real | Tensor | Schedule):
            raise ValueError(
                f"{name} must be a number or a Schedule, such as estl.supervision.Schedule(0.9, "
                f"0.5, 'cosine'), not {value!r}"
            )
    return {name: value for name, value in thresholds.items() if not isinstance(value, Schedule)}


class Scheduled:
    """Mixin for a module with a `Schedule`, which is given the training progress.

    `progress` is its only state, 0 until `at` is called, and in no checkpoint. `Learner` calls `at`
    before every batch with the share of steps done, so that a resumed run continues where it was.
    Without `Learner`, call `set_progress` yourself; otherwise progress stays 0.
    """

    progress: float = 0.0

    def at(self, progress: float) -> None:
        """Set `progress`, the share of the training that is done, in [0,1]."""
        self.progress = progress

    def now(self, value: float | Schedule) -> float:
        """`value` itself, or the schedule's value at the current progress."""
        return value(self.progress) if isinstance(value, Schedule) else value

    def scheduled(self, like: Tensor) -> dict[str, Tensor]:
        """The current value of every attribute that is a `Schedule`, as metrics."""
        values = {n: self.now(v) for n, v in vars(self).items() if isinstance(v, Schedule)}
        return {name: like.new_full((), value) for name, value in values.items()}


def set_progress(supervision: nn.Module, progress: float) -> None:
    """Pass the training progress (steps done / total) to every `Scheduled` part of a supervision.

    `Learner` does so before every batch; in a training loop of your own, call this yourself.
    """
    for module in supervision.modules():
        if isinstance(module, Scheduled):
            module.at(progress)


class Positive(nn.Module):
    """A learned number above 0, log(1 + exp(raw)), which no optimizer step can take below 0.

    Args:
        start: its initial value, > 0.

    >>> Positive(1.0)
    Positive(1)
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(start + math.log(-math.expm1(-start))))

    def forward(self) -> Float[Tensor, ""]:
        """The number."""
        return F.softplus(self.raw)

    def extra_repr(self) -> str:
        """The number, as `print` shows it."""
        return f"{self().item():.4g}"
