"""Layers recomputed in the backward pass, with their spikes stored as bits in between.

Training stores what every layer computed at every step until the backward pass has used it: two
numbers per neuron and step (the norm's input, and the spikes that the next convolution reads), in
float32 8 bytes, and a third where norm and neuron are not fused. Here only the spikes between
blocks are stored, one bit each, and a block's layers are recomputed when its backward pass comes:
memory is that of the largest block, plus an eighth of a byte per neuron and step for all others.
Within that block the backward pass overwrites what it has read (`neurons/norm.py`). Spikes are 0
or 1, and sums of spikes small integers: nothing is rounded, and the same kernels compute the same
numbers, so that gradients are those of an ordinary pass bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from estl.neurons import LIF
from estl.neurons.fused import large_so_far, one_forward

for_one_backward: ContextVar[bool] = ContextVar("for_one_backward", default=False)
"""Whether what layers compute is for a single backward pass, which may overwrite it."""


def recomputing(student: nn.Module) -> None:
    """Turn on `student.recompute`.

    Raises:
        ValueError: a student without this attribute.
    """
    if not hasattr(student, "recompute"):
        raise ValueError(
            f"learner.recompute: {type(student).__name__} has no attribute recompute: leave it out,"
            " or write its forward with estl.students.recompute.through"
        )
    cast(Any, student).recompute = True


def through(
    student: nn.Module, blocks: Iterable[Callable[..., Any]], x: Tensor, *, levels: int = 1
) -> Tensor:
    """Pass `x` through `blocks` one after the other, each recomputed in its backward pass.

    Args:
        student: its norms must not update their statistics twice.
        blocks: functions of (B,T,...) whose outputs hold integers.
        x: input of the first block, which may hold any numbers.
        levels: the largest integer between blocks: 1 for spikes (kept as bits), at most 255.

    >>> net = nn.Sequential(nn.Linear(4, 4), LIF.tet(), nn.Linear(4, 2), LIF.tet())
    >>> x = torch.rand(2, 3, 4)
    >>> torch.equal(through(net, ending_with_neurons(net), x), net(x))
    True
    """
    for number, block in enumerate(blocks):
        x = again(student, block, x, levels=levels if number > 0 else None)
    return x


def again(
    student: nn.Module, block: Callable[..., Tensor], *inputs: Tensor, levels: int | None = 1
) -> Tensor:
    """`block(*inputs)`, recomputed in its backward pass.

    Args:
        student: see `through`.
        block: function of tensors (B,T,...).
        inputs: what it reads, stored compactly where it needs a gradient.
        levels: the largest integer in the inputs; None for arbitrary numbers, stored as they are.

    >>> x = torch.rand(2, 3, 4).round().requires_grad_()
    >>> again(nn.Identity(), torch.mul, x, x).sum().backward()
    >>> torch.equal(x.grad, 2 * x)
    True
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return _for_one_backward(), _as_before(student, large_so_far())

    kept: list[Any] = []
    now: list[Tensor | None] = []  # what the first pass reads
    for x in inputs:
        if levels is None or not x.requires_grad:
            kept += [x, None]
            now.append(None)
        else:
            kept += [_Link.apply(x), pack(x.detach(), levels)]
            now.append(x.detach())

    def run(*kept: Any) -> Tensor:
        read = [
            x if packed is None else _Unpack.apply(x, packed, now[i] if now else None)
            for i, (x, packed) in enumerate(zip(kept[::2], kept[1::2], strict=True))
        ]
        now.clear()
        return block(*read)

    return cast(Tensor, checkpoint(run, *kept, use_reentrant=False, context_fn=contexts))


@contextmanager
def _for_one_backward() -> Iterator[None]:
    """Mark what layers compute in this context as made for one backward pass."""
    token = for_one_backward.set(True)
    try:
        yield
    finally:
        for_one_backward.reset(token)


@contextmanager
def _as_before(student: nn.Module, large: bool | None) -> Iterator[None]:
    """Make the second pass compute what the first one did."""
    with norms_that_do_not_count(student), one_forward(large), _for_one_backward():
        yield


def ending_with_neurons(layers: nn.Sequential) -> list[nn.Sequential]:
    """`layers` split into blocks that each end with a `LIF`, and what follows the last one.

    >>> [len(block) for block in ending_with_neurons(nn.Sequential(
    ...     nn.Linear(4, 4), LIF.tet(), nn.AvgPool1d(2), nn.Linear(2, 4), LIF.tet()))]
    [2, 3]
    """
    ends = [i + 1 for i, layer in enumerate(layers) if isinstance(layer, LIF)]
    starts = [0, *ends]
    blocks = (layers[a:b] for a, b in zip(starts, [*ends, len(layers)], strict=True) if a < b)
    return [cast(nn.Sequential, block) for block in blocks]


@contextmanager
def norms_that_do_not_count(module: nn.Module) -> Iterator[None]:
    """Keep batch norms of `module` from changing their running statistics within the context.

    >>> norm = nn.BatchNorm1d(2)
    >>> with norms_that_do_not_count(norm):
    ...     _ = norm(torch.rand(4, 2))
    >>> norm.num_batches_tracked.item(), norm.running_mean.tolist()
    (0, [0.0, 0.0])
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm, dict(norm._buffers)) for norm in norms]
    for norm, buffers in kept:  # autograd saves as many tensors as in the first pass
        norm._buffers = {name: None if x is None else x.clone() for name, x in buffers.items()}
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers = buffers


@dataclass(frozen=True)
class Packed:
    """A tensor of integers, stored compactly.

    Args:
        data: eight values per byte, or one.
        bits: whether there are eight per byte.
        like: the tensor without its memory: shape, strides, dtype.
    """

    data: Tensor
    bits: bool
    like: Tensor


def pack(x: Tensor, levels: int) -> Packed:
    """Pack the integers 0 to `levels` of a dense tensor into bits (levels 1) or bytes (up to 255).

    >>> x = torch.rand(3, 5).round()
    >>> pack(x, 1).data.shape, torch.equal(unpack(pack(x, 1)), x)
    (torch.Size([2]), True)
    """
    flat = _flat(x).to(torch.uint8)
    like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return Packed(flat if levels > 1 else to_bits(flat), levels == 1, like)


def unpack(packed: Packed) -> Tensor:
    """The original tensor, with its strides and dtype."""
    like, data = packed.like, packed.data
    x = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=data.device)
    _flat(x).copy_(from_bits(data, x.numel()) if packed.bits else data)
    return x


def to_bits(ones: UInt8[Tensor, "*rows n"]) -> UInt8[Tensor, "*rows bytes"]:
    """Zeros and ones, eight per byte: value i of a row in the byte i modulo their number.

    >>> to_bits(torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0, 1]], dtype=torch.uint8))
    tensor([[19,  0]], dtype=torch.uint8)
    """
    n = ones.shape[-1]
    eighths = nn.functional.pad(ones, (0, -n % 8)).unflatten(-1, (8, -1)).unbind(-2)
    data = eighths[0].clone()
    for i in range(1, 8):
        data |= eighths[i] << i
    return data


def from_bits(data: UInt8[Tensor, "*rows bytes"], n: int) -> UInt8[Tensor, "*rows n"]:
    """The inverse of `to_bits`, for rows of n values.

    >>> from_bits(torch.tensor([[19, 0]], dtype=torch.uint8), 9)
    tensor([[1, 0, 1, 0, 0, 0, 0, 0, 1]], dtype=torch.uint8)
    """
    return torch.stack([data >> i & 1 for i in range(8)], -2).flatten(-2)[..., :n]


def _flat(x: Tensor) -> Tensor:
    """A view of dense `x` in the order of its memory."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return x.permute(order).view(-1)


class _Link(torch.autograd.Function):
    """Pass the gradient, but not the values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Unpack(torch.autograd.Function):
    """The given values, or else the unpacked ones; their gradient goes to the link."""

    @staticmethod
    def forward(ctx: Any, link: Tensor, packed: Packed, values: Tensor | None) -> Tensor:
        return unpack(packed) if values is None else values.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None
