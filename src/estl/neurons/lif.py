"""Leaky integrate-and-fire neurons: a pure scan over time, and the module around it.

The plain scan in this file defines the result; `fused.py` computes the same, faster.
"""

import math
from contextvars import ContextVar
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons.fused import fused_lif, precision_of, worthwhile
from estl.neurons.layout import memory_order, rows, unrows
from estl.neurons.surrogates import Sigmoid, Surrogate, Triangle

Reset = Literal["hard", "soft"]


def _spike(u: Tensor, surrogate: Surrogate, inclusive: bool) -> Tensor:
    """Heaviside step forward, surrogate backward; the step alone if no gradient is needed."""
    if u.requires_grad:
        return cast(Tensor, _Spike.apply(u, surrogate, inclusive))
    return _step(u, inclusive)


def _step(u: Tensor, inclusive: bool) -> Tensor:
    return ((u >= 0) if inclusive else (u > 0)).to(u.dtype)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate, inclusive: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return _step(u, inclusive)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate(u), None, None


def lif(
    x: Float[Tensor, "T *shape"],
    *,
    decay: float = 0.5,
    gain: float = 1.0,
    threshold: float = 1.0,
    reset: Reset = "hard",
    detach_reset: bool = False,
    surrogate: Surrogate = Triangle(),
    inclusive: bool = False,
) -> Float[Tensor, "T *shape"]:
    """Spikes (0 or 1) of leaky integrate-and-fire neurons over time-first input.

        v_t = decay * r_{t-1} + gain * x_t,     r_0 = 0
        s_t = 1 if v_t > threshold else 0       (>= if `inclusive`)
        r_t = v_t * (1 - s_t)                   (hard;  soft: v_t - threshold * s_t)

    In the backward pass ds/dv is `surrogate(v - threshold)`; with `detach_reset` the reset passes
    no gradient to s. No state is kept between calls. For x in bfloat16 or float16 the potential is
    computed in float32, and spikes have the dtype of x.

    Args:
        x: input current (T, ...).
        decay: share of the potential that survives a step, in [0,1] (1 - 1/tau).
        gain: factor on the input (1, or 1/tau for neurons that decay their input).
        threshold: potential at which a neuron fires, > 0.
        reset: "hard" to zero, or "soft" by subtraction.
        detach_reset: whether the reset is detached from the autograd graph.
        surrogate: replaces the derivative of a spike, as a function of v - threshold.
        inclusive: whether v == threshold fires.

    Raises:
        ValueError: if an argument is out of its range, or x has no time steps.

    >>> lif(torch.tensor([[0.8], [0.8], [0.8]])).squeeze(1)   # v: 0.8, 1.2, 0.8
    tensor([0., 1., 0.])
    """
    return lif_from(
        None,
        x,
        decay=decay,
        gain=gain,
        threshold=threshold,
        reset=reset,
        detach_reset=detach_reset,
        surrogate=surrogate,
        inclusive=inclusive,
    )[0]


def lif_from(
    r: Float[Tensor, "*before"] | None,
    x: Float[Tensor, "T *shape"],
    *,
    decay: float,
    gain: float,
    threshold: float,
    reset: Reset,
    detach_reset: bool,
    surrogate: Surrogate,
    inclusive: bool,
) -> tuple[Float[Tensor, "T *after"], Float[Tensor, "*after"]]:
    """`lif` continued from the potential r_0 = `r` (0 if None): the spikes and r_T.

    `r` may have more rows than `x`: it is broadcast.

    >>> spikes, r = lif_from(None, torch.tensor([[0.8], [0.8], [0.8]]), **LIF.tet().options)
    >>> spikes.squeeze(1), r
    (tensor([0., 1., 0.]), tensor([0.8000]))
    """
    _check(decay, gain, threshold, reset)
    if x.shape[0] == 0:
        raise ValueError(f"x of shape {tuple(x.shape)} has no time steps: dimension 0 is T")
    precision = precision_of(x)
    r = torch.zeros_like(x[0], dtype=precision) if r is None else r
    spikes = []
    for x_t in x.to(precision):
        v = decay * r + (x_t if gain == 1 else gain * x_t)
        s = _spike(v - threshold, surrogate, inclusive)
        spikes.append(s)
        s_reset = s.detach() if detach_reset else s
        r = v * (1.0 - s_reset) if reset == "hard" else v - threshold * s_reset
    stacked = torch.stack(spikes) if len(spikes) > 1 else spikes[0].unsqueeze(0)
    return stacked.to(x.dtype), r


class Potentials:
    """Within its `with` block, calls of a `LIF` in this thread continue from given potentials.

    Calls take the potentials of `before` in order, or start from 0 without any; `after` holds the
    potentials that they leave.

    >>> neuron = LIF.tet()
    >>> with Potentials(None) as first:
    ...     _ = neuron(torch.full((1, 1, 1), 0.8))
    >>> with Potentials(first.after) as second:
    ...     print(neuron(torch.full((1, 1, 1), 0.8)).item())
    1.0
    """

    def __init__(self, before: tuple[Tensor, ...] | None) -> None:
        self._before = None if before is None else iter(before)
        self._after: list[Tensor] = []

    @property
    def after(self) -> tuple[Tensor, ...]:
        """The potentials that the calls have left, in call order."""
        return tuple(self._after)

    def scan(self, x: Float[Tensor, "T *shape"], **options: Any) -> Float[Tensor, "T *out"]:
        """Spikes of the next call."""
        r = None if self._before is None else next(self._before, None)
        spikes, r = lif_from(r, x, **options)
        self._after.append(r)
        return spikes

    def __enter__(self) -> "Potentials":
        self._token = _carried.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _carried.reset(self._token)


_carried: ContextVar[Potentials | None] = ContextVar("potentials", default=None)


def carried() -> Potentials | None:
    """The potentials from which calls of a `LIF` continue, if any.

    >>> carried() is None
    True
    """
    return None if torch.compiler.is_dynamo_compiling() else _carried.get()


def _check(decay: float, gain: float, threshold: float, reset: str) -> None:
    if not 0 <= decay <= 1:
        raise ValueError(f"decay={decay}: the share of the potential that survives is in [0, 1]")
    if not 0 < gain < math.inf:
        raise ValueError(f"gain={gain}: the factor on the input is positive and finite")
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold={threshold}: the firing threshold is positive and finite")
    if reset not in get_args(Reset):
        raise ValueError(f"reset={reset!r}: choose one of {', '.join(get_args(Reset))}")


class LIF(nn.Module):
    """`lif` on batch-first input (B,T,...), with the same arguments.

    Nothing is copied if memory is time first under the batch-first view. The dimensions after T may
    have any memory order (such as channels last), which the spikes keep. Large layers in training
    use the fused scan, with the same spikes (`fused.worthwhile` has the rule).

    Raises:
        ValueError: if an argument is out of its range.

    >>> LIF.spikformer()(torch.ones(2, 4, 8, 6, 6)).shape
    torch.Size([2, 4, 8, 6, 6])
    """

    def __init__(
        self,
        *,
        decay: float = 0.5,
        gain: float = 1.0,
        threshold: float = 1.0,
        reset: Reset = "hard",
        detach_reset: bool = False,
        surrogate: Surrogate = Triangle(),
        inclusive: bool = False,
    ) -> None:
        super().__init__()
        _check(decay, gain, threshold, reset)
        self.options: dict[str, Any] = {
            "decay": decay,
            "gain": gain,
            "threshold": threshold,
            "reset": reset,
            "detach_reset": detach_reset,
            "surrogate": surrogate,
            "inclusive": inclusive,
        }

    @classmethod
    def tet(cls, **changes: Any) -> "LIF":
        """TET's neuron: decay 0.5, gain 1, v > 1, triangular surrogate, reset in the graph."""
        return cls(**changes)

    @classmethod
    def spikformer(cls, **changes: Any) -> "LIF":
        """Spikformer's neuron: decay 0.5, gain 0.5, v >= 1, sigmoid (alpha 4), reset detached."""
        preset: dict[str, Any] = {"gain": 0.5, "surrogate": Sigmoid(), "inclusive": True}
        return cls(**({"detach_reset": True} | preset | changes))

    def forward(self, x: Float[Tensor, "B T *shape"]) -> Float[Tensor, "rows T *shape"]:
        """Spikes of `x`, with time in dimension 1; more rows than `x` if `Potentials` has more."""
        x = x.transpose(0, 1)
        potentials = carried()
        if potentials is None and worthwhile(x):
            return fused_lif(x, **self.options).transpose(0, 1)
        order = memory_order(x)  # which the spikes keep
        if potentials is None:
            spikes = unrows(lif(rows(x, order), **self.options), x.shape, order)
        else:
            spikes = potentials.scan(x, **self.options)
            spikes = unrows(rows(spikes, order), spikes.shape, order)
        return spikes.transpose(0, 1)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
