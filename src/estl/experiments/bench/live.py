"""A hundred frames one at a time, batch 1: ours, folded, and a peer's step mode."""

from typing import Literal

import torch
from torch import nn

from estl.experiments.bench.race import Work
from estl.neurons import LIF
from estl.students import VGGSNN, fold, step
from estl.students.layers import PerStep

FRAMES = 100


def _student() -> VGGSNN:
    """One of the demo's size with running statistics, in eval mode."""
    torch.manual_seed(0)
    student = VGGSNN(10, 2, (16, 16), layers=(16, "AP", 32, "AP", 64, "AP", 128), pooled=True)
    student(torch.poisson(torch.rand(8, 6, 2, 16, 16)))
    return student.eval()


def _frames() -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    counts = torch.rand(FRAMES, 1, 2, 16, 16, generator=draw).mul(3).floor()
    return counts.unbind()


def frames(kind: Literal["ESTL", "folded"]) -> Work:
    """`estl.step` over all frames."""
    student, seen = _student() if kind == "ESTL" else fold(_student()), _frames()

    def work() -> torch.Tensor:
        state = None
        for frame in seen:
            logits, state = step(student, frame, state)
        return logits

    return work


def peer_frames() -> Work:
    """The same network with SpikingJelly's neurons, in single-step mode.

    Raises:
        ImportError: SpikingJelly is not installed.
    """
    from spikingjelly.activation_based import functional, neuron

    student, seen = _student(), _frames()
    parts: list[nn.Module] = []
    for module in student.layers:
        if isinstance(module, PerStep):
            parts += list(module)
        elif isinstance(module, LIF):
            parts.append(neuron.LIFNode(tau=2.0, decay_input=False, step_mode="s"))
    net = nn.Sequential(*parts).eval()

    @torch.no_grad()
    def work() -> torch.Tensor:
        functional.reset_net(net)
        total = torch.zeros(())
        for frame in seen:
            total = total + student.head(net(frame).mean((-2, -1)))
        return total / FRAMES

    return work
