"""Training steps of the students beside their floor, other precisions, and a peer's layers."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from estl.experiments.bench.race import Work
from estl.neurons import LIF
from estl.students import VGGSNN, Spikformer, resnet19
from estl.students.recompute import recomputing
from estl.students.vggsnn import Layer
from estl.training.compiled import compiled

BUILD: dict[str, Callable[[], nn.Module]] = {
    "vggsnn": partial(VGGSNN, pooled=True),
    "resnet19": partial(resnet19, in_channels=2),
    "spikformer": Spikformer,
    "recipe": partial(VGGSNN, frame_size=(34, 34), layers=(16, "AP", 32, "AP", 64, "AP", 128)),
}
"""The students of the second design's and of N-MNIST's sizes."""


def events(B: int, T: int, side: int) -> Tensor:
    """Random spikes (B,T,2,side,side), a fifth of them set."""
    draw = torch.Generator().manual_seed(0)
    return (torch.rand(B, T, 2, side, side, generator=draw) < 0.2).float()


def floor(student: nn.Module) -> nn.Module:
    """The same network without LIF and batch norm: what convolutions and matrices cost alone.

    >>> sum(isinstance(m, LIF | nn.BatchNorm2d) for m in floor(resnet19()).modules())
    0
    """
    for module in student.modules():
        for name, child in module.named_children():
            if isinstance(child, LIF | nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return student


def step(
    name: str,
    size: tuple[int, int, int],
    *,
    bare: bool = False,
    bfloat16: bool = False,
    compile: bool = False,
    recompute: bool = False,
) -> Work:
    """Forward and backward of a student on (B,T,side), as in training.

    Args:
        name: of `BUILD`.
        size: B, T and the side of the frames.
        bare: whether it is the `floor`.
        bfloat16: whether under autocast.
        compile: whether through `torch.compile`.
        recompute: whether with `learner.recompute`.
    """
    torch.manual_seed(0)
    student = BUILD[name]()
    if recompute:
        recomputing(student)
    student = floor(student) if bare else student
    run = compiled(student) if compile else student
    x = events(*size)

    def work() -> None:
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = run(x).logits
        logits.float().mean(1).square().sum().backward()

    return work


def peer_step(
    layers: Sequence[Layer], size: tuple[int, int, int], *, bfloat16: bool = False
) -> Work:
    """The same for a pooled VGGSNN that is built from SpikingJelly's layers, in multi-step mode.

    Raises:
        ImportError: SpikingJelly is not installed.
    """
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    parts: list[nn.Module] = []
    width = 2
    for entry in layers:
        if entry == "AP":
            parts.append(layer.AvgPool2d(2))
            continue
        lif = neuron.LIFNode(
            tau=2.0, decay_input=False, surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0)
        )
        assert isinstance(entry, int)
        parts += [layer.Conv2d(width, entry, 3, padding=1), layer.BatchNorm2d(entry), lif]
        width = entry
    torch.manual_seed(0)
    net = nn.Sequential(*parts)
    head = nn.Linear(width, 10)
    functional.set_step_mode(net, "m")
    x = events(*size).transpose(0, 1).contiguous()

    def work() -> None:
        net.zero_grad()
        head.zero_grad()
        functional.reset_net(net)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = head(net(x).mean((-2, -1)))
        logits.float().mean(0).square().sum().backward()

    return work
