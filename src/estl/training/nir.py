"""Convolutional students in NIR, which neuromorphic hardware and other simulators read.

A neuron of NIR follows tau dv/dt = v_leak - v + r i and is reset to v_reset where v reaches the
threshold. In steps of `DT`, v = (1 - DT/tau) v + r DT/tau i: our decay and gain give tau and r. It
fires at the threshold, our TET neuron above it; a potential is exactly there only in rare cases.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from estl.neurons import LIF
from estl.students import VGGSNN, ResNet, fold
from estl.students.resnet import ResidualBlock
from estl.training.files import aside

DT = 1e-4
"""Seconds a step, which other frameworks take for granted."""

Shape = tuple[int, ...]


class _Graph:
    """Nodes and edges of a graph as it is built, and the shape of what each node gives."""

    def __init__(self, nir: Any, shape: Shape, dtype: torch.dtype) -> None:
        self.nir, self.dtype = nir, dtype
        self.nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.shapes: dict[str, Shape] = {"input": shape}

    def add(self, sources: list[str], node: Any, shape: Shape) -> list[str]:
        """Add `node` after `sources`, whose outputs are summed; return it as the next source."""
        name = f"{type(node).__name__.lower()}_{len(self.nodes)}"
        self.nodes[name], self.shapes[name] = node, shape
        self.edges += [(source, name) for source in sources]
        return [name]

    def follow(self, module: nn.Module, sources: list[str]) -> list[str]:
        """Add a module after `sources`."""
        if isinstance(module, nn.Identity):
            return sources
        if isinstance(module, nn.Sequential):
            for part in module:
                sources = self.follow(part, sources)
            return sources
        if isinstance(module, ResidualBlock):
            both = self.follow(module.residual, sources) + self.follow(module.shortcut, sources)
            return self.follow(module.neuron, both)
        shape = self.shapes[sources[0]]
        if isinstance(module, LIF):
            return self.add(sources, self._neuron(module, shape), shape)
        if not isinstance(module, nn.Conv2d | nn.AvgPool2d | nn.Linear | nn.Flatten):
            raise ValueError(f"NIR has no {type(module).__name__}: export to onnx instead")
        with torch.no_grad():
            after = tuple(module(torch.zeros(1, *shape, dtype=self.dtype)).shape[1:])
        return self.add(sources, self._layer(module, shape), after)

    def _neuron(self, neuron: LIF, shape: Shape) -> Any:
        options = neuron.options
        if options["reset"] != "hard" or options["decay"] == 1:
            raise ValueError("NIR has no neuron with soft reset or without a leak: export to onnx")
        # In double precision: readers divide tau by their step, and 2 is to come out as 2.
        full, leak = np.ones(shape), 1 - options["decay"]
        return self.nir.LIF(
            tau=full * (DT / leak),
            r=full * (options["gain"] / leak),
            v_leak=0 * full,
            v_threshold=full * options["threshold"],
            v_reset=0 * full,
        )

    def _layer(self, module: Any, shape: Shape) -> Any:
        nir = self.nir
        if isinstance(module, nn.Flatten):
            return nir.Flatten({"input": np.array(shape)}, 0, -1)
        if isinstance(module, nn.AvgPool2d):
            size = np.broadcast_to(np.array(module.kernel_size), 2).copy()
            return nir.AvgPool2d(kernel_size=size, stride=size, padding=np.zeros(2, int))
        weight = module.weight.detach().numpy()
        bias = np.zeros(len(weight), weight.dtype)
        bias = bias if module.bias is None else module.bias.detach().numpy()
        if isinstance(module, nn.Linear):
            return nir.Affine(weight, bias)
        stride, padding, dilation = module.stride, module.padding, module.dilation
        return nir.Conv2d(shape[1:], weight, stride, padding, dilation, module.groups, bias)


def to_nir(student: nn.Module, shape: Shape, file: Path) -> None:
    """Write a convolutional student for frames of `shape` (C,H,W), its batch norms folded.

    Raises:
        ValueError: a student or a layer that NIR does not have.
    """
    import nir

    if not isinstance(student, VGGSNN | ResNet):
        name = type(student).__name__
        raise ValueError(f"{name} cannot be expressed in NIR, VGGSNN and ResNet can: use onnx")
    folded = fold(student)
    graph = _Graph(nir, shape, next(folded.parameters()).dtype)
    if isinstance(folded, VGGSNN):
        last, mean = graph.follow(folded.layers, ["input"]), folded.pooled
    else:
        assert isinstance(folded, ResNet)
        last, mean = graph.follow(nn.Sequential(folded.stem, folded.stages), ["input"]), True
    _, *size = graph.shapes[last[0]]
    if mean and size != [1, 1]:
        last = graph.follow(nn.AvgPool2d((size[0], size[1])), last)
    last = graph.follow(nn.Sequential(nn.Flatten(), folded.head), last)
    (classes,) = graph.shapes[last[0]]
    graph.add(last, nir.Output({"output": np.array([classes])}), (classes,))
    name = next(reversed(graph.nodes))
    nodes = {("output" if key == name else key): node for key, node in graph.nodes.items()}
    edges = [(a, "output" if b == name else b) for a, b in graph.edges]
    made = io.BytesIO()
    nir.write(made, nir.NIRGraph(nodes, edges))
    with aside(file) as out:
        out.write(made.getbuffer())


def from_nir(file: Path) -> Callable[[Tensor], Tensor] | None:
    """The network of a file, run by SpikingJelly; None if that is not installed."""
    try:
        from spikingjelly.activation_based.nir_exchange import import_from_nir
    except ImportError:
        return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = import_from_nir(file, dt=DT).eval()

    def run(events: Tensor) -> Tensor:
        state, logits = None, []
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for frame in events.unbind(1):
                y, state = net(frame, state)
                logits.append(y)
        return torch.stack(logits, 1)

    return run
