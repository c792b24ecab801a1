"""The demo's student, batch 1: a frame at a time, and a recording at once; ours, what
`estl export` makes of it in the runtimes that read it, and a peer's step mode.
"""

import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from estl.experiments.bench.race import Work
from estl.neurons import LIF
from estl.students import VGGSNN, fold, step
from estl.students.layers import PerStep
from estl.training.graphs import Run, read_onnx, to_program, write_onnx
from estl.training.nir import from_nir, to_nir

FRAMES = 102  # 17 recordings of the demo
SIDE, STEPS = 32, 6
Runtime = Literal["torch.export", "ONNX Runtime"]


def _student() -> VGGSNN:
    """The demo's, with running statistics, in eval mode."""
    torch.manual_seed(0)
    student = VGGSNN(10, 2, (SIDE, SIDE), layers=(16, "AP", 32, "AP", 64, "AP", 128))
    student(torch.poisson(torch.rand(8, STEPS, 2, SIDE, SIDE)))
    return student.eval()


def _events(B: int, T: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(B, T, 2, SIDE, SIDE, generator=draw).mul(3).floor()


def frames(kind: Literal["ESTL", "folded"]) -> Work:
    """`estl.step` over all frames."""
    student = _student() if kind == "ESTL" else fold(_student())
    seen = _events(1, FRAMES).unbind(1)

    def work() -> Tensor:
        state = None
        for frame in seen:
            logits, state = step(student, frame, state)
        return logits

    return work


def exported_frames(kind: Runtime) -> Work:
    """The stepwise export over all frames.

    Raises:
        ImportError: its runtime is not installed.
    """
    student, seen = _student(), _events(1, FRAMES)
    if kind == "ONNX Runtime":
        run = _onnx(student, stepwise=True)
        return lambda: run(seen).mean(1)
    program = to_program(student, seen, stepwise=True)
    *_, state = program.graph.find_nodes(op="placeholder")
    size, net = state.meta["val"].shape[1], program.module()

    @torch.inference_mode()
    def work() -> Tensor:
        state, total = torch.zeros(1, size), torch.zeros(())
        for frame in seen.unbind(1):
            logits, state = net(frame, state)
            total = total + logits
        return total / FRAMES

    return work


def peer_frames() -> Work:
    """The same network with SpikingJelly's neurons, in single-step mode.

    Raises:
        ImportError: SpikingJelly is not installed.
    """
    from spikingjelly.activation_based import functional, neuron

    student, seen = _student(), _events(1, FRAMES).unbind(1)
    parts: list[nn.Module] = []
    for module in student.layers:
        if isinstance(module, PerStep):
            parts += list(module)
        elif isinstance(module, LIF):
            parts.append(neuron.LIFNode(tau=2.0, decay_input=False, step_mode="s"))
    net = nn.Sequential(*parts).eval()

    @torch.no_grad()
    def work() -> Tensor:
        functional.reset_net(net)
        total = torch.zeros(())
        for frame in seen:
            total = total + student.head(net(frame).flatten(1))
        return total / FRAMES

    return work


def whole() -> Work:
    """The student on recordings one after the other."""
    student = _student()
    return _each(lambda events: student(events).logits)


def exported_whole(kind: Runtime | Literal["NIR"]) -> Work:
    """The export of whole recordings, one recording after the other; NIR in SpikingJelly.

    Raises:
        ImportError: its runtime is not installed.
    """
    student = _student()
    if kind == "torch.export":
        return _each(to_program(student, _events(1, STEPS), stepwise=False).module())
    if kind == "ONNX Runtime":
        return _each(_onnx(student, stepwise=False))
    with tempfile.TemporaryDirectory() as folder:
        to_nir(student, (2, SIDE, SIDE), file := Path(folder, "student.nir"))
        if (run := from_nir(file)) is None:
            raise ImportError(name="spikingjelly")
    return _each(run)


def _onnx(student: nn.Module, *, stepwise: bool) -> Run:
    import onnxscript  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        write_onnx(student, _events(1, STEPS), file := Path(folder, "x.onnx"), stepwise=stepwise)
        return read_onnx(file, stepwise=stepwise, threads=torch.get_num_threads())


def _each(run: Run) -> Work:
    recordings = _events(FRAMES // STEPS, STEPS).split(1)

    @torch.inference_mode()
    def work() -> Tensor:
        return torch.cat([run(one) for one in recordings])

    return work
