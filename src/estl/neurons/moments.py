"""Mean and variance of large tensors in one pass over them, compiled."""

import torch
from jaxtyping import Float
from torch import Tensor

from estl.neurons.fused import precision_of, steps_of
from estl.neurons.kernels import run

GROUP = 32
"""Number of rows whose moments compiled code computes at once."""


def statistics(x: Float[Tensor, "N C"]) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Mean and biased variance of each column of a contiguous x, in one pass over it.

    Compiled code is slow at sums over all rows, so it computes the moments of groups of `GROUP`
    rows, and those of the N / GROUP groups are combined: with M2 the sum of squared deviations,

        variance = (sum of M2_i + sum of n_i (mean_i - mean)^2) / N

    Rows that do not fill a group are combined with the others by the same equation.

    >>> statistics(torch.tensor([[1.0], [3.0], [5.0]]))
    (tensor([3.]), tensor([2.6667]))
    """
    rest = len(x) % GROUP
    if rest == 0:
        means, squares = run(_moments, x.view(-1, GROUP, x.shape[1]).transpose(0, 1))
        mean = means.mean(0)
        apart = (means - mean).square_().sum(0)
        return mean, torch.add(squares.sum(0), apart, alpha=GROUP).div_(len(x))
    rows = x[-rest:].to(precision_of(x))
    mean = rows.mean(0)
    squares = (rows - mean).square_().sum(0)
    if rest < len(x):
        most, n = statistics(x[:-rest]), len(x) - rest
        apart = mean - most[0]
        squares += most[1] * n + apart.square() * (n * rest / len(x))
        mean = most[0] + apart * (rest / len(x))
    return mean, squares / len(x)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first dimension of x and sum of squared deviations from it."""
    steps = steps_of(x)
    mean = sum_of(steps) / len(x)
    return mean, sum_of([(x_t - mean).square() for x_t in steps])


def sum_of(steps: list[Tensor]) -> Tensor:
    """Sum over the steps, without stacking them in memory."""
    total = steps[0]
    for x_t in steps[1:]:
        total = total + x_t
    return total
