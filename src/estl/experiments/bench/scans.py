"""One layer of LIF neurons, forward and backward: the fused scan, the plain one, peers."""

from collections.abc import Callable

import torch
from torch import Tensor

from estl.experiments.bench.race import Work
from estl.neurons import LIF, lif
from estl.neurons.fused import fused_lif

Scan = Callable[[Tensor], Tensor]
"""Spikes of x (T,...)."""


def work(scan: Scan, shape: tuple[int, ...]) -> Work:
    """One forward and backward pass of a scan over random currents."""
    draw = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(shape, generator=draw)).requires_grad_()
    grad = torch.randn(shape, generator=draw)

    def once() -> None:
        x.grad = None
        scan(x).backward(grad)

    return once


def own(fused: bool) -> Scan:
    """ESTL's scan with TET's neuron."""
    options = LIF.tet().options
    return lambda x: (fused_lif if fused else lif)(x, **options)


def spikingjelly(compile: bool = False) -> Scan:
    """SpikingJelly's neuron with the same dynamics and surrogate, in multi-step mode.

    Args:
        compile: whether its scan is compiled whole.
    """
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0),
        step_mode="m",
    )
    run = torch.compile(node) if compile else node

    def scan(x: Tensor) -> Tensor:
        functional.reset_net(node)
        spikes: Tensor = run(x)
        return spikes

    return scan


def snntorch() -> Scan:
    """snnTorch's neuron with the same dynamics and surrogate, step by step as its users do."""
    import snntorch as snn

    def triangle(u: Tensor, grad: Tensor, spikes: Tensor) -> Tensor:
        return grad * (1 - u.abs()).clamp(min=0)

    node = snn.Leaky(
        beta=0.5,
        spike_grad=snn.surrogate.custom_surrogate(triangle),
        reset_mechanism="zero",
        reset_delay=False,
    )

    def scan(x: Tensor) -> Tensor:
        potential, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s, potential = node(x_t, potential)
            spikes.append(s)
        return torch.stack(spikes)

    return scan
