"""Batch norm, shortcut and LIF as one pass forward and one backward: the functions of `norm.py`.

The backward pass is written out, as that of `fused.py`, and so is that through the statistics. Both
directions are pure functions, compiled by `kernels.run`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons.fused import (
    refuse_second_derivative,
    scan,
    scan_back,
    stacked,
    steps_of,
)
from estl.neurons.kernels import run

Norm = nn.BatchNorm1d | nn.BatchNorm2d

MAPS, TOKENS = (1, 0, 3, 4, 2), (1, 0, 2, 3)
BACK = {MAPS: (1, 0, 4, 2, 3), TOKENS: TOKENS}
"""Orders of dimensions, and the inverse of each."""

GROUP = 32
"""Rows whose moments compiled code takes at once."""

Statistics = tuple[Float[Tensor, " C"], Float[Tensor, " C"] | None]
"""Of x, and of its shortcut if that is normalized."""


def order_of(norm: Norm) -> tuple[int, ...]:
    """The dimensions of what `norm` reads in the order (T,B,...,C), in which it lies in memory."""
    return MAPS if isinstance(norm, nn.BatchNorm2d) else TOKENS


def fused_norm_lif(
    x: Float[Tensor, "B T *shape"],
    norm: Norm,
    shortcut: Float[Tensor, "B T *shape"] | None = None,
    shortcut_norm: Norm | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "B T *shape"], Statistics, Statistics]:
    """Spikes of the normalized x plus the shortcut, with the options of `lif`; means, and biased
    variances.

    >>> from estl.neurons import LIF
    >>> x = torch.tensor([0.0, 1.0, 0.0, 3.0]).view(1, 4, 1, 1)
    >>> spikes, means, variances = fused_norm_lif(x, nn.BatchNorm1d(1), **LIF.tet().options)
    >>> spikes.detach().flatten(), means, variances
    (tensor([0., 0., 0., 1.]), (tensor([1.]), None), (tensor([1.5000]), None))
    """
    order = ("decay", "gain", "threshold", "reset", "detach_reset", "surrogate", "inclusive")
    values = [options[name] for name in order]
    values[3] = values[3] == "hard"
    first = x, norm.weight, norm.bias, norm.eps
    second: tuple[Any, ...] = shortcut, None, None, None
    if shortcut_norm is not None:
        second = shortcut, shortcut_norm.weight, shortcut_norm.bias, shortcut_norm.eps
    spikes, mean, variance, *others = _NormLIF.apply(*first, *second, order_of(norm), *values)
    shortcut_mean, shortcut_variance = others or (None, None)
    return spikes, (mean, shortcut_mean), (variance, shortcut_variance)


class _NormLIF(torch.autograd.Function):
    """The pure functions below as one node of the autograd graph; `other` is the shortcut.

    The order of dimensions changes in here. What leaves it is detached as in `fused.py`. Between
    two passes over large tensors the interpreter is slow, since they took its place in the cache:
    there are as few operations as can be.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        other: Tensor | None,
        other_weight: Tensor | None,
        other_bias: Tensor | None,
        other_eps: float | None,
        order: tuple[int, ...],
        *options: Any,
    ) -> tuple[Tensor, ...]:
        decay, gain, threshold, hard, _, _, inclusive = options
        last = x.permute(order)
        shape, x = last.shape, _rows(last)
        mean, variance, invstd = _statistics(x, eps)
        alpha = weight * invstd
        beta = torch.addcmul(bias, mean, alpha, value=-1)
        found = [mean, variance]
        other = None if other is None else _rows(other.permute(order))
        other_mean = other_invstd = gamma = None
        if other_weight is not None:
            assert other is not None
            assert other_bias is not None
            assert other_eps is not None
            other_mean, other_variance, other_invstd = _statistics(other, other_eps)
            gamma = other_weight * other_invstd
            beta = beta + torch.addcmul(other_bias, other_mean, gamma, value=-1)
            found += [other_mean, other_variance]
        spikes: Tensor = run(
            _forward, x, alpha, beta, other, gamma, decay, gain, threshold, hard, inclusive
        )
        ctx.options, ctx.order, ctx.shape = options, order, shape
        ctx.save_for_backward(x, alpha, beta, mean, invstd, other, gamma, other_mean, other_invstd)
        ctx.mark_non_differentiable(*found)
        return _unrows(spikes, shape, order), *found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, alpha, beta, mean, invstd, other, gamma, other_mean, other_invstd = ctx.saved_tensors
        grad = _rows(grads[0].permute(ctx.order))
        decay, gain, threshold, *rest = ctx.options
        # A threshold a channel: without it, part of the code does not look at channels, and the
        # compiler then makes two loops, with the potential in memory between them.
        options = (decay, gain, torch.full_like(mean, threshold), *rest)
        grad_y, *partial = run(
            _backward, grad, x, alpha, beta, mean, other, gamma, other_mean, *options
        )
        grad_bias, grad_weight, *more = [part.sum(0) for part in partial]
        del partial  # for what is made next
        n = x.shape[0] * x.shape[1]
        offset = grad_bias / n
        grad_weight = grad_weight * invstd
        grad_other, of_other = None, (None, None)
        through_statistics = _in_place
        if gamma is not None:
            other_weight = more[0] * other_invstd
            slope = other_invstd * other_weight / n
            grad_other = run(_through_statistics, grad_y, other, gamma, other_mean, offset, slope)
            of_other = other_weight, grad_bias.clone()
        elif ctx.needs_input_grad[4]:  # the gradient of the current, which is not overwritten
            grad_other = grad_y
            through_statistics = _through_statistics
        slope = invstd * grad_weight / n
        grad_x = run(through_statistics, grad_y, x, alpha, mean, offset, slope)
        grad_x = _unrows(grad_x, ctx.shape, ctx.order)
        if grad_other is not None:
            grad_other = _unrows(grad_other, ctx.shape, ctx.order)
        nothing = (None for _ in ctx.options)
        return grad_x, grad_weight, grad_bias, None, grad_other, *of_other, None, None, *nothing


def _rows(last: Tensor) -> Tensor:
    """(T,B,...,C) as (T,M,C), without a copy if it lies so in memory."""
    return last.flatten(1, -2).contiguous()


def _unrows(flat: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    """(T,M,C) as (B,T,...), of which the permutation by `order` has this shape; to autograd no
    view."""
    return flat.view(shape).permute(BACK[order]).detach()


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of x (T,M,C), and what a norm divides by, inverted."""
    mean, variance = statistics(x.flatten(0, 1))
    return mean, variance, (variance + eps).rsqrt()


def statistics(x: Float[Tensor, "N C"]) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Mean and biased variance of each column of a contiguous x, in one pass over it.

    Compiled code is slow at sums over all rows, so it takes those over `GROUP` rows, and what is
    left of N / GROUP groups is summed after that: with M2 the sum of squared deviations,

        variance = (sum of M2_i + sum of n_i (mean_i - mean)^2) / N

    Rows that fill no group are added to the others by the same equation.

    >>> statistics(torch.tensor([[1.0], [3.0], [5.0]]))
    (tensor([3.]), tensor([2.6667]))
    """
    rest = len(x) % GROUP
    if rest == 0:
        means, squares = run(_moments, x.view(-1, GROUP, x.shape[1]).transpose(0, 1))
        mean = means.mean(0)
        apart = (means - mean).square_().sum(0)
        return mean, torch.add(squares.sum(0), apart, alpha=GROUP).div_(len(x))
    mean, squares = _moments(x[-rest:].unsqueeze(1))
    mean, squares = mean[0], squares[0]
    if rest < len(x):
        most, n = statistics(x[:-rest]), len(x) - rest
        apart = mean - most[0]
        squares += most[1] * n + apart.square() * (n * rest / len(x))
        mean = most[0] + apart * (rest / len(x))
    return mean, squares / len(x)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first dimension of x and sum of squared deviations from it."""
    steps = steps_of(x)
    mean = _sum(steps) / len(x)
    return mean, _sum([(x_t - mean).square() for x_t in steps])


def _currents(
    x: Tensor, alpha: Tensor, beta: Tensor, other: Tensor | None, gamma: Tensor | None
) -> list[Tensor]:
    """What the neuron reads at each step."""
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
    """Gradient of the current (T,M,C); its sum over T and that of its product with x - mean, both
    (M,C), and with the same of the shortcut if that has a norm. The options are those of
    `scan_back`.
    """
    decay, gain, threshold, hard, _, _, inclusive = options
    currents = _currents(x, alpha, beta, other, gamma)
    potential = scan(currents, decay, gain, threshold, hard, inclusive)[1]
    grad_y = scan_back(steps_of(grad), potential, *options)
    sums = [_sum(grad_y), _products(grad_y, x, mean)]
    if other is not None and other_mean is not None:
        sums.append(_products(grad_y, other, other_mean))
    return stacked(grad_y, x.dtype), *sums


def _products(grad_y: list[Tensor], x: Tensor, mean: Tensor) -> Tensor:
    """The sum over T of the gradient times x - mean."""
    return _sum([g * (x_t - mean) for g, x_t in zip(grad_y, x, strict=True)])


def _through_statistics(
    grad_y: Tensor, x: Tensor, alpha: Tensor, mean: Tensor, offset: Tensor, slope: Tensor
) -> Tensor:
    """Gradient of x: alpha * (dy - mean(dy) - xhat * mean(dy * xhat))."""
    return (alpha * (grad_y - offset - (x - mean) * slope)).to(x.dtype)


def _in_place(
    grad_y: Tensor, x: Tensor, alpha: Tensor, mean: Tensor, offset: Tensor, slope: Tensor
) -> Tensor:
    """The same in the memory of dy, since fresh memory costs more than the computation."""
    return grad_y.copy_(_through_statistics(grad_y, x, alpha, mean, offset, slope))


def _sum(steps: list[Tensor]) -> Tensor:
    """Sum over the steps, without a list of them in memory."""
    total = steps[0]
    for x_t in steps[1:]:
        total = total + x_t
    return total
