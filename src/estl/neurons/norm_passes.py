"""The passes over batch norm, shortcut and LIF: pure functions, each compiled into one loop.

Maps and tokens are rows (T,M,C), and what is said of a channel (C). With x the norm's input and
other a shortcut or None, the neurons' current is

    y = alpha * x + beta [+ other, or gamma * other if it has a norm of its own]
    alpha = weight / std,    beta = bias - alpha * mean [+ the same of the shortcut's norm]

The backward pass is written out, as in `fused.py`, including the part through the statistics.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from estl.neurons.fused import scan, scan_back, stacked, steps_of
from estl.neurons.kernels import run
from estl.neurons.moments import statistics, sum_of


def in_order(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """The options of `lif` as those of `scan_back`, of which the fourth is whether resets are hard.

    >>> from estl.neurons import LIF
    >>> in_order(LIF.tet().options)
    (0.5, 1.0, 1.0, True, False, Triangle(...), False)
    """
    names = ("decay", "gain", "threshold", "reset", "detach_reset", "surrogate", "inclusive")
    values = [options[name] for name in names]
    values[3] = values[3] == "hard"
    return tuple(values)


def statistics_of(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of x (T,M,C), and the inverse of the standard deviation."""
    mean, variance = statistics(x.flatten(0, 1))
    return mean, variance, (variance + eps).rsqrt()


def scale_and_shift(
    weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor]:
    """alpha and beta of a norm."""
    alpha = weight * invstd
    return alpha, torch.addcmul(bias, mean, alpha, value=-1)


def spikes_of(reads: Iterable[Tensor | None], options: Sequence[Any]) -> Tensor:
    """Spikes (T,M,C), given what `_forward` reads; the options are those of `scan_back`."""
    decay, gain, threshold, hard, _, _, inclusive = options
    return cast(Tensor, run(_forward, *reads, decay, gain, threshold, hard, inclusive))


def gradient_of_current(
    reads: Iterable[Tensor | None], options: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Gradient dy of the current (T,M,C), given what `_backward` reads; sums over T, (M,C), of dy,
    of dy * (x - mean) and, if the shortcut has a norm, of dy * (other - its mean).
    """
    grad, x, alpha, *others = reads
    decay, gain, threshold, *rest = options
    # One threshold per channel: with a scalar, part of the code does not depend on channels, and
    # the compiler then makes two loops, with the potential in memory between them.
    options = decay, gain, torch.full_like(cast(Tensor, alpha), threshold), *rest
    return cast("tuple[Tensor, ...]", run(_backward, grad, x, alpha, *others, *options))


def gradient_of_input(
    grad_y: Tensor,
    x: Tensor,
    alpha: Tensor,
    mean: Tensor,
    offset: Tensor,
    slope: Tensor,
    *,
    over: bool = False,
) -> Tensor:
    """Gradient of x, alpha * (dy - offset - (x - mean) * slope), with the means over all rows

        offset = mean(dy),    slope = mean(dy * (x - mean)) / variance

    With `over` it is written over dy, since fresh memory costs more than the computation.
    """
    last = _in_place if over else _through_statistics
    return cast(Tensor, run(last, grad_y, x, alpha, mean, offset, slope))


def _currents(
    x: Tensor, alpha: Tensor, beta: Tensor, other: Tensor | None, gamma: Tensor | None
) -> list[Tensor]:
    """The input current of the neuron at each step."""
    currents = [x_t * alpha + beta for x_t in x]
    if other is None:
        return currents
    added = list(other) if gamma is None else [x_t * gamma for x_t in other]
    return [a + b for a, b in zip(currents, added, strict=True)]


def _forward(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    other: Tensor | None,
    gamma: Tensor | None,
    *options: Any,
) -> Tensor:
    """Spikes (T,M,C) of x (T,M,C)."""
    return stacked(scan(_currents(x, alpha, beta, other, gamma), *options)[0], x.dtype)


def _backward(
    grad: Tensor,
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    mean: Tensor,
    other: Tensor | None,
    gamma: Tensor | None,
    other_mean: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    """`gradient_of_current`, compiled."""
    decay, gain, threshold, hard, _, _, inclusive = options
    currents = _currents(x, alpha, beta, other, gamma)
    potential = scan(currents, decay, gain, threshold, hard, inclusive)[1]
    grad_y = scan_back(steps_of(grad), potential, *options)
    sums = [sum_of(grad_y), _products(grad_y, x, mean)]
    if other is not None and other_mean is not None:
        sums.append(_products(grad_y, other, other_mean))
    return stacked(grad_y, x.dtype), *sums


def _products(grad_y: list[Tensor], x: Tensor, mean: Tensor) -> Tensor:
    """The sum over T of the gradient times x - mean."""
    return sum_of([g * (x_t - mean) for g, x_t in zip(grad_y, x, strict=True)])


def _through_statistics(
    grad_y: Tensor, x: Tensor, alpha: Tensor, mean: Tensor, offset: Tensor, slope: Tensor
) -> Tensor:
    """Gradient of x: alpha * (dy - mean(dy) - xhat * mean(dy * xhat))."""
    return (alpha * (grad_y - offset - (x - mean) * slope)).to(x.dtype)


def _in_place(
    grad_y: Tensor, x: Tensor, alpha: Tensor, mean: Tensor, offset: Tensor, slope: Tensor
) -> Tensor:
    """The same, written over dy, since fresh memory costs more than the computation."""
    return grad_y.copy_(_through_statistics(grad_y, x, alpha, mean, offset, slope))
