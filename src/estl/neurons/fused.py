"""The scan of `neurons.lif`, fused into one pass forward and one backward.

Autograd through the plain scan saves three tensors per step and passes over memory once for every
operation. Here the backward pass is written out and recomputes the potential, so that only the
input is saved, and both directions are pure functions, each compiled into one loop over the neurons
(`kernels.py`). Operations and their order are those of the plain scan, and contraction to FMA is
off, so that the results are the same to the bit (in float64 but for the last bit of gradients
through a sigmoid, since eager code computes exponentials in two ways).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from estl.neurons.kernels import compiled_before, run
from estl.neurons.layout import memory_order, rows, unrows

LARGE = 2**20
"""Number of input values from which compilation pays off in training on the CPU."""

LONG = 64
"""Maximum number of steps to compile for: each adds code that takes half a second to compile."""

_large: ContextVar[bool | None] = ContextVar("large", default=None)
large_so_far = _large.get


@contextmanager
def one_forward(large: bool | None = False) -> Iterator[None]:
    """The forward pass of one network: after a large layer, fusing small ones pays off too, if the
    same code serves them. This decides, not what the process has compiled, since a resumed run must
    do the same as an uninterrupted one. It can decorate a `forward`, and `Learner` runs every step
    within one.

    Args:
        large: whether there was a large layer already; None outside any network.

    >>> with one_forward():
    ...     large_so_far()
    False
    """
    if torch.compiler.is_compiling():
        yield
        return
    token = _large.set(large)
    try:
        yield
    finally:
        _large.reset(token)


def note_large() -> None:
    """Record that this forward pass had a large layer, for which the code was compiled."""
    if large_so_far() is not None:
        _large.set(True)


def worthwhile(x: Tensor, *, shared: bool = False) -> bool:
    """Whether `LIF` uses the fused scan for `x` (T,...). Both scans give the same spikes.

    In training it does so on CUDA, and on the CPU for at least `LARGE` values; on both for at most
    `LONG` steps. Without a gradient it does so only in a process that has already compiled:
    validation during training benefits, and a prediction does not wait for the compiler. The
    environment variable ESTL_COMPILE overrides this: 0 for never, 1 for always. Within another
    `torch.compile`, the plain scan is used and compiled with everything around it.

    Args:
        x: input of the neurons.
        shared: whether all layers share the code, so that after a large one (`one_forward`) nothing
            is left to compile.

    >>> worthwhile(torch.zeros(4, 8))
    False
    """
    if torch.compiler.is_compiling():
        return False
    choice = os.environ.get("ESTL_COMPILE", "")
    if choice not in ("", "0", "1"):
        raise ValueError(f"ESTL_COMPILE={choice!r}: set it to 0 or 1, or leave it unset")
    if choice:
        return choice == "1"
    training = torch.is_grad_enabled() and x.requires_grad
    after_large = shared and training and bool(large_so_far())
    large = x.is_cuda or (x.is_cpu and (x.numel() >= LARGE or after_large))
    return large and len(x) <= LONG and (training or compiled_before())


def fused_lif(
    x: Tensor,
    *,
    decay: float,
    gain: float,
    threshold: float,
    reset: Literal["hard", "soft"],
    detach_reset: bool,
    surrogate: Callable[[Tensor], Tensor],
    inclusive: bool,
) -> Tensor:
    """`neurons.lif` in one pass over x (T,...), with the same arguments.

    The dimensions after T may have any memory order (such as channels last), which the spikes keep.
    If compilation fails, one warning says why, and the same functions run uncompiled.

    Raises:
        ValueError: if x has no time steps.
        RuntimeError: in a backward pass with `create_graph`, as there is no second derivative.

    >>> from estl.neurons import Triangle
    >>> fused_lif(torch.tensor([[0.8], [0.8], [0.8]]), decay=0.5, gain=1.0, threshold=1.0,
    ...           reset="hard", detach_reset=False, surrogate=Triangle(), inclusive=False).T
    tensor([[0., 1., 0.]])
    """
    if x.shape[0] == 0:
        raise ValueError(f"x of shape {tuple(x.shape)} has no time steps: dimension 0 is T")
    options = (decay, gain, threshold, reset == "hard", detach_reset, surrogate, inclusive)
    spikes: Tensor = _FusedLIF.apply(x, *options)
    return spikes


class _FusedLIF(torch.autograd.Function):
    """The two pure functions below as one node of the autograd graph.

    Its outputs are detached from the rows they were computed as: users may write into spikes, and
    autograd accumulates gradients into the memory of the first; neither is done with views.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *options: Any) -> Tensor:
        ctx.order, ctx.options = memory_order(x), options
        decay, gain, threshold, hard, _, _, inclusive = options
        flat = rows(x.detach(), ctx.order)
        spikes = run(_forward, flat, decay, gain, threshold, hard, inclusive)
        ctx.save_for_backward(x)
        return unrows(spikes, x.shape, ctx.order).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (x,) = ctx.saved_tensors
        (grad,) = grads
        flat = (rows(tensor.detach(), ctx.order) for tensor in (grad, x))
        grad_x = run(_backward, *flat, *ctx.options)
        return unrows(grad_x, grad.shape, ctx.order).detach(), *(None for _ in ctx.options)


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward pass with `create_graph`."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused LIF has no second derivative: set ESTL_COMPILE=0, the plain scan has one"
        )


def _forward(
    x: Tensor, decay: float, gain: float, threshold: float, hard: bool, inclusive: bool
) -> Tensor:
    """Spikes (T,M) of x (T,M)."""
    spikes = scan(steps_of(x), decay, gain, threshold, hard, inclusive)[0]
    return stacked(spikes, x.dtype)


def scan(
    x: Sequence[Tensor],
    decay: float,
    gain: float,
    threshold: float | Tensor,
    hard: bool,
    inclusive: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes of each step, and its potential before the reset.

    >>> scan([torch.tensor([0.8])] * 3, 0.5, 1.0, 1.0, True, False)[0]
    [tensor([0.]), tensor([1.]), tensor([0.])]
    """
    r = torch.zeros_like(x[0])
    spikes, potential = [], []
    for x_t in x:
        v = decay * r + gain * x_t
        fires = _fires(v, threshold, inclusive)
        spikes.append(fires.to(v.dtype))
        potential.append(v)
        r = v.masked_fill(fires, 0.0) if hard else torch.where(fires, v - threshold, v)
    return spikes, potential


def _backward(grad: Tensor, x: Tensor, *options: Any) -> Tensor:
    """Gradient of x (T,M) from the gradient of the spikes; the options are those of `scan_back`."""
    decay, gain, threshold, hard, _, _, inclusive = options
    potential = scan(steps_of(x), decay, gain, threshold, hard, inclusive)[1]
    return stacked(scan_back(steps_of(grad), potential, *options), x.dtype)


def scan_back(
    grad: Sequence[Tensor],
    potential: Sequence[Tensor],
    decay: float,
    gain: float,
    threshold: float | Tensor,
    hard: bool,
    detach_reset: bool,
    surrogate: Callable[[Tensor], Tensor],
    inclusive: bool,
) -> list[Tensor]:
    """Gradient of each step's x from the gradients of the spikes.

        ds = grad_t - dr * v_t            (hard;  soft: dr * threshold;  detached: nothing)
        dv = ds * surrogate(v_t - threshold) + dr * (1 - s_t)                  (soft: + dr)
        dx = gain * dv,    dr of step t-1 = decay * dv

    computed from the last step, whose dr is 0, to the first.

    >>> from estl.neurons import Triangle
    >>> one = torch.tensor([1.0])
    >>> scan_back([one, one], [one, one], 0.5, 1.0, 1.0, True, False, Triangle(), False)
    [tensor([1.]), tensor([1.])]
    """
    grad_x = []
    dr = torch.zeros_like(grad[0])
    for v, ds in zip(reversed(potential), reversed(grad), strict=True):
        u = v - threshold
        if not detach_reset:
            ds = ds - (dr * v if hard else dr * threshold)
        kept = dr.masked_fill(_fires(v, threshold, inclusive), 0.0) if hard else dr
        dv = ds * surrogate(u) + kept
        grad_x.append(gain * dv)
        dr = decay * dv
    return grad_x[::-1]


def _fires(v: Tensor, threshold: float | Tensor, inclusive: bool) -> Tensor:
    return v >= threshold if inclusive else v > threshold


def precision_of(x: Tensor) -> torch.dtype:
    """The dtype in which neurons that read `x` compute their potential: at least float32.

    >>> precision_of(torch.zeros(1, dtype=torch.bfloat16))
    torch.float32
    """
    return torch.promote_types(x.dtype, torch.float32)


def steps_of(x: Tensor) -> list[Tensor]:
    """The steps of x (T,...) in the precision of a potential; converted one by one, since the
    compiler would allocate memory for all of them converted at once.

    >>> steps_of(torch.ones(1, 2, dtype=torch.bfloat16))
    [tensor([1., 1.])]
    """
    return [x_t.to(precision_of(x)) for x_t in x]


def stacked(steps: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The inverse of `steps_of`.

    >>> stacked([torch.ones(2)], torch.bfloat16)
    tensor([[1., 1.]], dtype=torch.bfloat16)
    """
    return torch.stack([step.to(dtype) for step in steps])
