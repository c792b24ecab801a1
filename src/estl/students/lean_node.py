"""A lean layer (`lean.py`) as one node of the autograd graph, and what is kept between two."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from estl.neurons.fused import precision_of, refuse_second_derivative
from estl.neurons.norm_passes import (
    gradient_of_current,
    gradient_of_input,
    scale_and_shift,
    spikes_of,
    statistics_of,
)
from estl.students.pooling import spread
from estl.students.recompute import from_bits, to_bits

BAND = 2**18
"""Number of values in a band of rows at most, unless a single row of windows has more."""
STEPS = 2**20
"""Number of values that a convolution reads or writes at once at most, unless a step has more."""


class Spikes(NamedTuple):
    """Spikes or means of them (B,T,C,H,W), packed.

    Args:
        link: of their shape, without values and memory; their gradient goes to it.
        data: spikes as bits (T,bytes), or sums over k x k as bytes (T,B,H,W,C).
        k: side of the windows, 1 for spikes.
    """

    link: Tensor
    data: Tensor
    k: int

    def steps(self, dtype: torch.dtype, steps: slice = slice(None)) -> Float[Tensor, "N C H W"]:
        """The values of these steps, channels last, with time folded into the batch."""
        B, _, C, H, W = self.link.shape
        data = self.data[steps]
        if self.k == 1:
            data = from_bits(data, B * H * W * C).view(-1, B, H, W, C)
        values = data.flatten(0, 1).permute(0, 3, 1, 2).to(dtype)
        return values if self.k == 1 else values.div_(self.k**2)


class How(NamedTuple):
    """What a layer needs to know besides tensors.

    Args:
        convolution: stride, padding, dilation, groups.
        dtype: that of the convolution, if autocast sets one.
        eps: of the norm.
        k: side of the pool's windows, 1 for none.
        options: of the neurons, for `norm_passes`.
        see: is given the spikes, band by band (B,T,C,rows,W).
    """

    convolution: tuple[Any, ...]
    dtype: torch.dtype | None
    eps: float
    k: int
    options: tuple[Any, ...]
    see: Callable[[Tensor], None]


class LeanLayer(torch.autograd.Function):
    """See `lean.py`; `data` is None for an ordinary input, which `link` then is."""

    @staticmethod
    def forward(
        ctx: Any,
        link: Tensor,
        data: Tensor | None,
        of: int,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        how: How,
    ) -> tuple[Any, ...]:
        """Link and data of the spikes, mean and variance of the norm, and of how many values."""
        B, T = link.shape[:2]
        y = _convolved(_images(link, data, of, how), weight, bias, how).unflatten(0, (T, B))
        H, W, C = y.shape[2:]
        mean, variance, invstd = statistics_of(y.flatten(1, 3), how.eps)
        alpha, beta = scale_and_shift(norm_weight, norm_bias, mean, invstd)
        kept = y.new_empty((T, B, H // how.k, W // how.k, C), dtype=torch.uint8)
        for rows, pooled in _bands(y.shape, how.k):
            band = y[:, :, rows].flatten(1, 3).contiguous()
            spikes = spikes_of((band, alpha, beta, None, None), how.options).view(T, B, -1, W, C)
            how.see(spikes.permute(1, 0, 4, 2, 3))
            if how.k > 1:
                spikes = _each(spikes, lambda x: F.avg_pool2d(x, how.k, divisor_override=1))
            kept[:, :, pooled] = spikes.to(torch.uint8)
        ctx.of, ctx.how = of, how
        ctx.save_for_backward(link, data, weight, bias, alpha, beta, mean, invstd)
        out = y.new_zeros(()).expand(B, T, C, *kept.shape[2:4])
        packed = to_bits(kept.flatten(1)) if how.k == 1 else kept
        ctx.mark_non_differentiable(packed, mean, variance)
        ctx.set_materialize_grads(False)
        return out, packed, mean, variance, T * B * H * W

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Gradients of the link, the weights and biases."""
        refuse_second_derivative()
        link, data, weight, bias, alpha, beta, mean, invstd = ctx.saved_tensors
        B, T = link.shape[:2]
        weight = weight.to(ctx.how.dtype or weight.dtype)  # once for all parts
        read = partial(_images, link, data, ctx.of, ctx.how)
        grad = grad.permute(1, 0, 3, 4, 2)
        some = max(1, STEPS // max(link[:, 0].numel(), grad[0].numel() * ctx.how.k**2))
        steps = _parts(T, some, B)
        y = [_convolved(read(at), weight, bias, ctx.how).unflatten(0, (-1, B)) for at in steps]
        of_norm = _norm_backward(y, grad, alpha, beta, mean, invstd, ctx.how)
        needs = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
        of_images, *rest = _convolution_backward(y, map(read, steps), weight, bias, ctx.how, needs)
        of_link = None if of_images is None else of_images.unflatten(0, (T, B)).transpose(0, 1)
        return of_link, None, None, *rest, *of_norm, None


def _parts(T: int, some: int, B: int) -> list[slice]:
    """The steps in parts of `some`, but none of a single image: PyTorch has another kernel for it,
    which rounds differently, so that spikes would not be those of the forward pass."""
    some = max(some, 2) if B == 1 else some
    starts = list(range(0, T, some))
    if B == 1 and len(starts) > 1 and T - starts[-1] == 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], T], strict=True)]


def _norm_backward(
    y: list[Tensor],
    grad: Tensor,
    alpha: Tensor,
    beta: Tensor,
    mean: Tensor,
    invstd: Tensor,
    how: How,
) -> tuple[Tensor, Tensor]:
    """Gradients of the norm's weight and bias; that of the parts y is written over them."""
    T, (B, H, W, C) = len(grad), y[0].shape[1:]

    def of_current(rows: slice, pooled: slice) -> tuple[Tensor, ...]:
        band, given = torch.cat([part[:, :, rows] for part in y]), grad[:, :, pooled]
        if how.k > 1:
            given = _each(given, partial(spread, k=how.k, size=(band.shape[2], W)))
        given, band = (x.flatten(1, 3).contiguous() for x in (given, band))
        reads = given, band, alpha, beta, mean, None, None, None
        return band, *gradient_of_current(reads, how.options)

    bands = _bands((T, B, H, W, C), how.k)
    only = of_current(*bands[0]) if len(bands) == 1 else None  # else all are computed twice
    sums = [(only or of_current(*band))[2:] for band in bands]
    grad_bias, grad_weight = (
        torch.cat([part.view(B, -1, W, C) for part in parts], 1).flatten(0, 2).sum(0)
        for parts in zip(*sums, strict=True)
    )
    grad_weight, n = grad_weight * invstd, T * B * H * W
    offset, slope = grad_bias / n, invstd * grad_weight / n
    for rows, pooled in bands:
        band, grad_y, *_ = only or of_current(rows, pooled)
        new = gradient_of_input(grad_y, band, alpha, mean, offset, slope, over=True)
        news = new.view(T, B, -1, W, C).split([len(part) for part in y])
        for part, new in zip(y, news, strict=True):
            part[:, :, rows] = new
    return grad_weight, grad_bias


def _convolution_backward(
    y: list[Tensor],
    images: Iterator[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    how: How,
    needs: list[bool],
) -> list[Tensor | None]:
    """Gradients of the images, the weight and the bias, as far as they are needed. The parts of y,
    now gradients, are dropped one after the other."""
    stride, padding, dilation, groups = how.convolution
    fixed = padding, dilation, False, [0, 0], groups, needs
    sizes = None if bias is None else [len(bias)]
    parts, sums = [], [None, None]
    while y:
        grad = y.pop(0).flatten(0, 1).permute(0, 3, 1, 2)
        part, *found = torch.ops.aten.convolution_backward(
            grad, next(images), weight, sizes, stride, *fixed
        )
        parts.append(part)
        for i, new in enumerate(found):
            if new is not None:
                new = new.to(precision_of(new))
                sums[i] = new if sums[i] is None else sums[i] + new
    return [torch.cat(parts) if needs[0] else None, *sums]


def _each(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of images (N,C,H,W), of each in x (T,B,H,W,C)."""
    images = function(x.flatten(0, 1).permute(0, 3, 1, 2))
    return images.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _images(
    link: Tensor, data: Tensor | None, of: int, how: How, steps: slice = slice(None)
) -> Float[Tensor, "N C H W"]:
    """Some steps of a layer's input, with time folded into the batch."""
    if data is None:
        return link[:, steps].transpose(0, 1).flatten(0, 1).to(how.dtype or link.dtype)
    return Spikes(link, data, of).steps(how.dtype or link.dtype, steps)


def _convolved(
    images: Tensor, weight: Tensor, bias: Tensor | None, how: How
) -> Float[Tensor, "N H W C"]:
    """The convolution of images."""
    dtype = how.dtype or weight.dtype
    bias = None if bias is None else bias.to(dtype)
    stride, padding, dilation, groups = how.convolution
    with torch.autocast(images.device.type, enabled=False):  # also where that of backward differs
        made = F.conv2d(images, weight.to(dtype), bias, stride, padding, dilation, groups)
    return made.permute(0, 2, 3, 1).contiguous()


def _bands(shape: Sequence[int], k: int) -> list[tuple[slice, slice]]:
    """Bands of rows of maps (T,B,H,W,C), and the rows that a pool makes of them; rows that it
    leaves out are in the last."""
    T, B, H, W, C = shape
    h, each = H // k, max(1, BAND // (T * B * W * C * k))
    ends = [(a, min(a + each, h)) for a in range(0, h, each)]
    return [(slice(a * k, b * k if b < h else H), slice(a, b)) for a, b in ends]


class Dense(torch.autograd.Function):
    """The values (B,T,C,H,W) of `Spikes`."""

    @staticmethod
    def forward(ctx: Any, link: Tensor, data: Tensor, k: int) -> Tensor:
        """Unpack them."""
        B, T = link.shape[:2]
        values = Spikes(link, data, k).steps(link.dtype)
        return values.unflatten(0, (T, B)).transpose(0, 1).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Pass the gradient to the link."""
        return grads[0], None, None
