"""Batch norm, shortcut and LIF as one node of the autograd graph, for `norm.py`."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons.fused import refuse_second_derivative
from estl.neurons.norm_passes import (
    gradient_of_current,
    gradient_of_input,
    in_order,
    scale_and_shift,
    spikes_of,
    statistics_of,
)

Norm = nn.BatchNorm1d | nn.BatchNorm2d

MAPS, TOKENS = (1, 0, 3, 4, 2), (1, 0, 2, 3)
BACK = {MAPS: (1, 0, 4, 2, 3), TOKENS: TOKENS}
"""Orders of dimensions, and the inverse of each."""

PIECE = 2**18
"""Minimum number of values per piece in a backward pass that goes in pieces."""

Statistics = tuple[Float[Tensor, " C"], Float[Tensor, " C"] | None]
"""One statistic of x, and the same of its shortcut if that is normalized."""


def order_of(norm: Norm) -> tuple[int, ...]:
    """The permutation of the input of `norm` to the order (T,B,...,C), that of its memory."""
    return MAPS if isinstance(norm, nn.BatchNorm2d) else TOKENS


def fused_norm_lif(
    x: Float[Tensor, "B T *shape"],
    norm: Norm,
    shortcut: Float[Tensor, "B T *shape"] | None = None,
    shortcut_norm: Norm | None = None,
    *,
    may_write: bool = False,
    **options: Any,
) -> tuple[Float[Tensor, "B T *shape"], Statistics, Statistics]:
    """Spikes for the normalized x plus the shortcut, with the options of `lif`; also the means and
    the biased variances. `may_write` is as in `norm.norm_lif`.

    >>> from estl.neurons import LIF
    >>> x = torch.tensor([0.0, 1.0, 0.0, 3.0]).view(1, 4, 1, 1)
    >>> spikes, means, variances = fused_norm_lif(x, nn.BatchNorm1d(1), **LIF.tet().options)
    >>> spikes.detach().flatten(), means, variances
    (tensor([0., 0., 0., 1.]), (tensor([1.]), None), (tensor([1.5000]), None))
    """
    values = in_order(options)
    first = x, norm.weight, norm.bias, norm.eps
    second: tuple[Any, ...] = shortcut, None, None, None
    if shortcut_norm is not None:
        second = shortcut, shortcut_norm.weight, shortcut_norm.bias, shortcut_norm.eps
    order = order_of(norm)
    spikes, means, variances, left = _NormLIF.apply(*first, *second, order, may_write, *values)
    if left is not None:
        spikes = _Fire.apply(spikes, left, order, values)
    return spikes, means, variances


class _NormLIF(torch.autograd.Function):
    """The passes of `norm_passes.py` as one node of the autograd graph; `other` is the shortcut.

    If it `may_write` over its inputs, as when layers are recomputed, it leaves spikes to `_Fire`
    and returns only a placeholder of their shape: the second time, computation ends here.

    The order of dimensions changes in here. Outputs are detached as in `fused.py`. Between two
    passes over large tensors the interpreter is slow, since they evict it from the cache: there are
    as few operations as possible.
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
        may_write: bool,
        *options: Any,
    ) -> tuple[Any, ...]:
        last = x.permute(order)
        shape, x = last.shape, _rows(last)
        mean, variance, invstd = statistics_of(x, eps)
        alpha, beta = scale_and_shift(weight, bias, mean, invstd)
        other = None if other is None else _rows(other.permute(order))
        other_mean = other_variance = other_invstd = gamma = None
        if other_weight is not None:
            assert other is not None
            assert other_bias is not None
            assert other_eps is not None
            other_mean, other_variance, other_invstd = statistics_of(other, other_eps)
            gamma, shift = scale_and_shift(other_weight, other_bias, other_mean, other_invstd)
            beta = beta + shift
        ctx.options, ctx.order, ctx.shape = options, order, shape
        ctx.may_write = may_write
        ctx.save_for_backward(x, alpha, beta, mean, invstd, other, gamma, other_mean, other_invstd)
        reads, left = (x, alpha, beta, other, gamma), None
        if may_write:
            spikes, left = x.new_zeros(()).expand(x.shape), reads
        else:
            spikes = spikes_of(reads, options)
        return _unrows(spikes, shape, order), (mean, other_mean), (variance, other_variance), left

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, alpha, beta, mean, invstd, other, gamma, other_mean, other_invstd = ctx.saved_tensors
        grad = _rows(grads[0].permute(ctx.order))

        def of_current(piece: slice) -> tuple[Tensor, ...]:
            read = grad, x, alpha, beta, mean, other, gamma, other_mean
            return gradient_of_current(_piece(read, piece), ctx.options)

        def through_statistics(grad_y: Tensor, piece: slice) -> tuple[Tensor, Tensor | None]:
            x_, other_ = _piece((x, other), piece)
            grad_other = None
            if gamma is not None:
                how = gamma, other_mean, offset, other_slope
                grad_other = gradient_of_input(grad_y, other_, *how)
            elif ctx.needs_input_grad[4]:
                grad_other = grad_y  # the gradient of the current, which is not overwritten
            over = grad_other is not grad_y
            return gradient_of_input(grad_y, x_, alpha, mean, offset, slope, over=over), grad_other

        pieces = _pieces(x) if ctx.may_write else [slice(None)]
        grad_y, *partial = of_current(pieces[0])
        if len(pieces) > 1:  # first the sums over all pieces, then the gradients, which need them
            sums = partial, *(of_current(piece)[1:] for piece in pieces[1:])
            partial = [torch.cat(parts) for parts in zip(*sums, strict=True)]
            del sums
        grad_bias, grad_weight, *more = [part.sum(0) for part in partial]
        del partial  # frees memory for what comes next
        n = x.shape[0] * x.shape[1]
        offset = grad_bias / n
        grad_weight = grad_weight * invstd
        slope = invstd * grad_weight / n
        of_other: tuple[Any, ...] = None, None
        if gamma is not None:
            other_weight = more[0] * other_invstd
            other_slope = other_invstd * other_weight / n
            of_other = other_weight, grad_bias.clone()
        if len(pieces) == 1:
            grad_x, grad_other = through_statistics(grad_y, pieces[0])
        else:
            grad_x, grad_other = x, other if gamma is not None else None
            if gamma is None and ctx.needs_input_grad[4]:
                grad_other = torch.empty_like(x)
            for piece in pieces:
                made = through_statistics(of_current(piece)[0], piece)
                for whole, part in zip((grad_x, grad_other), made, strict=True):
                    if whole is not None:
                        whole[:, piece] = part
        grad_x = _unrows(grad_x, ctx.shape, ctx.order)
        if grad_other is not None:
            grad_other = _unrows(grad_other, ctx.shape, ctx.order)
        nothing = (None,) * (3 + len(ctx.options))
        return grad_x, grad_weight, grad_bias, None, grad_other, *of_other, *nothing


class _Fire(torch.autograd.Function):
    """Spikes in place of their placeholder, computed from what `_NormLIF` left."""

    @staticmethod
    def forward(
        ctx: Any,
        instead: Tensor,
        left: tuple[Any, ...],
        order: tuple[int, ...],
        options: tuple[Any, ...],
    ) -> Tensor:
        return _unrows(spikes_of(left, options), instead.permute(order).shape, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None, None


def _pieces(x: Tensor) -> list[slice]:
    """Slices that divide the rows of x (T,M,C) into pieces."""
    T, M, C = x.shape
    if x.numel() < 4 * PIECE:
        return [slice(None)]
    each = max(-(-M // 16), PIECE // (T * C))
    return [slice(i, i + each) for i in range(0, M, each)]


def _piece(tensors: Iterable[Tensor | None], piece: slice) -> Iterator[Any]:
    """These rows of all tensors (T,M,C); other tensors are left as they are."""
    for x in tensors:
        yield x if x is None or x.ndim < 3 else x[:, piece].contiguous()


def _rows(last: Tensor) -> Tensor:
    """(T,B,...,C) as (T,M,C), without a copy if it lies so in memory."""
    return last.flatten(1, -2).contiguous()


def _unrows(flat: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    """(T,M,C) as (B,T,...), whose permutation by `order` has this shape; detached, so that autograd
    sees no view."""
    return flat.view(shape).permute(BACK[order]).detach()
