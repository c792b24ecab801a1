"""Synaptic operations and energy of a student, estimated by counting what its layers read.

The assumptions:

* An addition (AC) costs 0.9 pJ, a multiply-accumulate (MAC) 4.6 pJ: 45 nm CMOS, 32-bit
  floating point (Horowitz, ISSCC 2014). Memory traffic, the neurons' own updates, max pooling and
  additions of residuals are not counted.
* Batch norm is folded into the layer before it, constant scales into weights.
* A layer that reads spikes, or sums of spikes (residuals, tokens, event counts), makes one AC per
  spike and synapse; an input of 2 makes two. So does a layer after average pooling or the mean over
  places: with m places its inputs are multiples of 1/m, and each spike reaches each synapse. A
  single value of another kind makes it a layer of MACs.
* A layer that reads real values (images, normalized frames) makes one MAC per input and synapse,
  zeros included. An image shown at all steps passes the first layer once.
* Synapses to the padding of a map are not counted: at rate 1, ACs equal MACs.
* Attention multiplies spikes by spikes, outside any layer: each spike of the left factor adds a row
  of the right one, in the order of products that `softmax_free_attention` takes.
* Any other layer with weights, such as `nn.MultiheadAttention` or a transposed convolution, is
  named, but not counted.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from estl.neurons import LIF
from estl.students.spikformer import SpikingSelfAttention

AC_PJ = 0.9
MAC_PJ = 4.6


@dataclass
class Operations:
    """Synaptic operations of one layer.

    Args:
        scales: numbers m such that m times each input was a natural number; empty if the layer
            reads real values.
        received: sum of the inputs, each times its number of synapses.
        dense: number of (input, synapse) pairs.
    """

    scales: set[int]
    received: float = 0.0
    dense: float = 0.0

    @property
    def acs(self) -> float:
        """Number of additions."""
        return min(self.scales) * self.received if self.scales else 0.0

    @property
    def macs(self) -> float:
        """Number of multiply-accumulates."""
        return 0.0 if self.scales else self.dense

    @property
    def picojoules(self) -> float:
        """Energy of both."""
        return AC_PJ * self.acs + MAC_PJ * self.macs


@dataclass
class Activity:
    """What `watch` gathers, by the names of modules in the student."""

    spikes: dict[str, float] = field(default_factory=dict)
    by_step: dict[str, Tensor] = field(default_factory=dict)
    neurons: dict[str, int] = field(default_factory=dict)
    operations: dict[str, Operations] = field(default_factory=dict)
    uncounted: list[str] = field(default_factory=list)
    real: bool = False
    """Whether any input of the student held real values, which its first layer reads."""

    @property
    def rates(self) -> dict[str, float]:
        """Spikes per neuron and step of each spiking layer."""
        return {name: spikes / self.neurons[name] for name, spikes in self.spikes.items()}

    @property
    def step_rates(self) -> dict[str, list[float]]:
        """Spikes per neuron at each step, of the layers (`LIF`) that see all steps at once."""
        return {
            name: (len(spikes) * spikes / self.neurons[name]).tolist()
            for name, spikes in self.by_step.items()
        }


def spiking_layers(student: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`LIF`, and the neurons of SpikingJelly and snnTorch, with their names in the student."""
    for name, module in student.named_modules():
        foreign = hasattr(module, "v_threshold") or hasattr(module, "reset_mem")
        if foreign or isinstance(module, LIF):
            yield name, module


@contextmanager
def watch(student: nn.Module, activity: Activity, places: int = 1) -> Iterator[None]:
    """Add to `activity` the spikes and operations of all calls of `student` within the context.

    Spiking layers are those of `spiking_layers`. Operations are those of convolutions, linear
    layers and `SpikingSelfAttention`; `uncounted` are other layers with weights that took part.
    `places` is H*W of the maps that the student averages before its head.

    >>> net = nn.Sequential(nn.Linear(2, 5))
    >>> activity = Activity()
    >>> with watch(net, activity):
    ...     _ = net(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> activity.operations["0"].acs
    15.0
    """
    pools = [m for m in student.modules() if isinstance(m, nn.AvgPool2d)]
    scales = {1, places} | {_area(m) for m in pools}
    spiking = dict(spiking_layers(student))
    hooks = [student.register_forward_pre_hook(partial(_look, activity))]
    for name, module in student.named_modules():
        hook: Callable[..., None]
        if name in spiking:
            hook = partial(_count_spikes, activity, name, isinstance(module, LIF))
        elif isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd):
            hook = partial(_count_layer, activity, name, scales)
        elif isinstance(module, SpikingSelfAttention):
            hook = partial(_count_attention, activity, name, module.heads)
            module = module.qkv
        elif _multiplies(module):
            hook = partial(_name_uncounted, activity, name or type(module).__name__)
        else:
            continue
        hooks.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _look(activity: Activity, _: nn.Module, args: Any) -> None:
    activity.real = activity.real or not _natural(args[0])


def _count_spikes(
    activity: Activity, name: str, steps: bool, _: nn.Module, __: Any, y: Any
) -> None:
    spikes = y[0] if isinstance(y, tuple) else y
    if steps:
        here = spikes.transpose(0, 1).flatten(1).double().sum(1).cpu()
        activity.by_step[name] = activity.by_step.get(name, torch.zeros_like(here)) + here
    activity.spikes[name] = activity.spikes.get(name, 0.0) + spikes.double().sum().item()
    activity.neurons[name] = activity.neurons.get(name, 0) + spikes.numel()


def _count_layer(
    activity: Activity, name: str, scales: set[int], module: nn.Module, args: Any, _: Tensor
) -> None:
    x = args[0]
    layer = activity.operations.setdefault(name, Operations(set(scales)))
    layer.scales &= {m for m in layer.scales if _natural(m * x)}
    if activity.real and name == next(iter(activity.operations)):
        layer.scales.clear()  # m = 4 would make natural numbers of counts divided by 4
    fan_out = _fan_out(module, x)
    inputs = x.flatten(0, x.ndim - fan_out.ndim - 1)
    layer.received += (inputs.sum(0, dtype=torch.double) * fan_out).sum().item()
    layer.dense += len(inputs) * fan_out.sum().item()


def _count_attention(
    activity: Activity, name: str, heads: int, _: nn.Module, __: Any, qkv: Tensor
) -> None:
    layer = activity.operations.setdefault(name, Operations({1}))
    N, width = qkv.shape[-2:]
    d = width // (3 * heads)
    q, k, v = (part.double().sum().item() for part in qkv.chunk(3, -1))
    rows = qkv.numel() // 3  # elements of each factor, over all heads
    # q (k^T v): k's spikes add rows of v, q's add rows of the product, each of d values.
    # (q k^T) v: q's spikes add columns of k, v's add columns of the product, each of N values.
    layer.received += (k + q) * d if d < N else (q + v) * N
    layer.dense += 2 * rows * min(d, N)


def _name_uncounted(activity: Activity, name: str, _: nn.Module, __: Any, ___: Any) -> None:
    if name not in activity.uncounted:
        activity.uncounted.append(name)


def _multiplies(module: nn.Module) -> bool:
    """Whether a module without child modules multiplies by a weight matrix.

    `nn.MultiheadAttention` has a child, whose weights it reads without calling it.
    """
    whole = isinstance(module, nn.MultiheadAttention) or not list(module.children())
    # Norms scale, and a lookup multiplies nothing.
    if not whole or isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.Embedding):
        return False
    return any(p.ndim >= 2 for p in module.parameters())


def _natural(x: Tensor) -> bool:
    """Whether all values are 0, 1, 2, ..., up to the rounding of a mean."""
    return bool((x >= 0).all() and ((x - x.round()).abs() < 1e-3).all())


def _fan_out(module: nn.Module, x: Tensor) -> Tensor:
    """Number of synapses of each input of one sample and channel: () or the size of the map.

    For a convolution this is the gradient of the sum of outputs with unit weights.
    """
    if isinstance(module, nn.Linear):
        return torch.tensor(float(module.out_features), dtype=torch.double, device=x.device)
    assert isinstance(module, _ConvNd)
    n = len(module.kernel_size)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
    with torch.enable_grad():
        one = torch.zeros(1, 1, *x.shape[-n:], dtype=torch.double, device=x.device).requires_grad_()
        weight = one.new_ones(1, 1, *module.kernel_size)
        y = convolve(one, weight, None, module.stride, module.padding, module.dilation)
        (fan_out,) = torch.autograd.grad(y.sum(), one)
    return fan_out[0, 0] * (module.out_channels // module.groups)


def _area(pool: nn.AvgPool2d) -> int:
    size = pool.kernel_size
    return size * size if isinstance(size, int) else math.prod(size)
