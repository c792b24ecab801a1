"""A student as a graph, for `torch.export` and ONNX: of a whole recording, or of one frame.

For a whole recording: `events` (B,T,C,H,W) to `logits` (B,T,K), from neurons at rest. For a frame:

    logits (B,K), state (B,S) = graph(frame (B,C,H,W), state)

where the state is what `estl.step` carries, the potentials of all neurons in one row per stream. It
is zero where a stream begins; the answer is the mean of the logits since then.
"""

import io
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons.lif import Potentials
from estl.students.adapters import Adapter
from estl.training.files import aside

# They warn that torchvision and Triton are not installed, which no student needs.
for _name in ("torch.onnx._internal.exporter._registration", "torch._library.triton"):
    logging.getLogger(_name).setLevel(logging.ERROR)

FIXED = (
    "its forward fixes the number of samples: take x.shape[0] in place of len(x) and "
    "int(x.shape[0]), and no loop over samples or if on their number"
)

Run = Callable[[Tensor], Tensor]
"""Events (B,T,C,H,W) to logits (B,T,K)."""


class Logits(nn.Module):
    """The student as a function of tensors only, as a graph requires."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, events: Tensor) -> Tensor:
        """Events (B,T,C,H,W) to logits (B,T,K)."""
        logits: Tensor = self.student(events).logits
        return logits


class Step(nn.Module):
    """Map one frame and the state before it to the frame's logits and the state after it.

    Args:
        student: in eval mode; its neurons are `LIF`.
        frame: an example (B,C,H,W).

    Raises:
        ValueError: a student whose state is not in neurons of ESTL.

    >>> from estl.students import VGGSNN
    >>> net = VGGSNN(classes=5, frame_size=(8, 8), layers=(8, "AP")).eval()
    >>> events = torch.rand(3, 4, 2, 8, 8)
    >>> one = Step(net, events[:, 0])
    >>> state = torch.zeros(3, one.size)
    >>> for frame in events.unbind(1):
    ...     logits, state = one(frame, state)
    >>> torch.allclose(logits, net(events).logits[:, -1])
    True
    """

    def __init__(self, student: nn.Module, frame: Float[Tensor, "B C H W"]) -> None:
        super().__init__()
        self.student = student
        with torch.no_grad(), Potentials(None) as neurons:
            student(frame.unsqueeze(1))
        if isinstance(student, Adapter) or not neurons.after:
            raise ValueError(
                f"{type(student).__name__} cannot be expressed frame by frame: it has no LIF whose "
                "potential could be carried; export the whole recording"
            )
        self.shapes = [tuple(r.shape[1:]) for r in neurons.after]
        self.sizes = [r[0].numel() for r in neurons.after]
        self.size = sum(self.sizes)

    def forward(
        self, frame: Float[Tensor, "B C H W"], state: Float[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B S"]]:
        """The logits of this frame, and the state to go on from."""
        parts = zip(state.split(self.sizes, 1), self.shapes, strict=True)
        with Potentials(tuple(part.unflatten(1, shape) for part, shape in parts)) as neurons:
            logits: Tensor = self.student(frame.unsqueeze(1)).logits[:, 0]
        return logits, torch.cat([r.flatten(1) for r in neurons.after], 1)


def to_program(student: nn.Module, events: Tensor, *, stepwise: bool) -> Any:
    """The `ExportedProgram` of a student in eval mode, with a free batch size.

    Args:
        student: which.
        events: an example (B,T,C,H,W), whose number of steps is that of a whole recording.
        stepwise: whether the graph is of one frame.

    Raises:
        ValueError: a student that cannot be expressed as a graph.
    """
    plain = deepcopy(student)
    for weight in plain.parameters():  # files hold plain rows, not channels last
        weight.data = weight.data.contiguous()
    two = events[[0, 0]]  # an example of a single sample would fix the batch
    net: nn.Module = Logits(plain)
    example: dict[str, Tensor] = {"events": two}
    if stepwise:
        net = one = Step(plain, two[:, 0])
        example = {"frame": two[:, 0].contiguous(), "state": two.new_zeros(2, one.size)}
    batch = torch.export.Dim("batch")
    free = {name: {0: batch} for name in example}
    try:
        with torch.no_grad():
            return torch.export.export(net, tuple(example.values()), dynamic_shapes=free)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        if "Constraints violated" in reason:  # of the batch, which alone is free
            reason = FIXED
        name = type(student).__name__
        refusal = f"{name} cannot be expressed as a graph: {reason}; safetensors needs no graph"
        raise ValueError(refusal) from None


def write_program(student: nn.Module, events: Tensor, file: Path, *, stepwise: bool) -> None:
    """Write a student for `torch.export.load`; see `to_program`.

    Operators of other packages, such as SpikingJelly's neurons, are decomposed: otherwise a process
    that has not imported the package could not load the file.

    Raises:
        ValueError: a student that cannot be expressed as a graph, or an operator that cannot be
            decomposed.
    """
    program = to_program(student, events, stepwise=stepwise)
    if _foreign(program):
        program = program.run_decompositions({})
    if foreign := _foreign(program):
        raise ValueError(
            f"{type(student).__name__} computes with {', '.join(foreign)}, which is not PyTorch's "
            "own, so that the file could not be read: use safetensors"
        )
    made = io.BytesIO()  # on a full disk, torch's writer would end the process
    torch.export.save(program, made)
    with aside(file) as out:
        out.write(made.getbuffer())


def _foreign(program: Any) -> list[str]:
    """Operators of a program that are not PyTorch's own."""
    called = {node.target for node in program.graph.nodes if hasattr(node.target, "namespace")}
    return sorted(str(op) for op in called if op.namespace not in ("aten", "prim", "prims"))


READ = """
import sys, torch

file, folder = sys.argv[1:]
events = torch.load(folder + "/events")
run = torch.export.load(file).module()
with torch.no_grad():
    if {stepwise}:
        *_, state = run.graph.find_nodes(op="placeholder")
        found, state = [], torch.zeros(len(events), state.meta["val"].shape[1])
        for frame in events.unbind(1):
            logits, state = run(frame.contiguous(), state)
            found.append(logits)
        logits = torch.stack(found, 1)
    else:
        logits = run(events)
assert "estl" not in sys.modules
torch.save(logits.clone(), folder + "/logits")
"""


def read_program(file: Path, *, stepwise: bool) -> Run:
    """A program, run by a process of its own that does not import ESTL."""

    def run(events: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(events, f"{folder}/events")
            code = READ.format(stepwise=stepwise)
            words = [sys.executable, "-W", "ignore", "-c", code, str(file.resolve()), folder]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise ValueError(f"{file.name} cannot be read back: {last}: use safetensors")
            return cast(Tensor, torch.load(f"{folder}/logits"))

    return run


def write_onnx(student: nn.Module, events: Tensor, file: Path, *, stepwise: bool) -> None:
    """Write a student as an ONNX model; see `to_program`."""
    program = to_program(student, events, stepwise=stepwise)
    names = ["logits", "state_after"] if stepwise else ["logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter calls of itself is deprecated
        found = torch.onnx.export(program, dynamo=True, verbose=False, output_names=names)
    assert found is not None
    made = found.model_proto.SerializeToString()
    with aside(file) as out:
        out.write(made)


def read_onnx(file: Path, *, stepwise: bool, threads: int = 0) -> Run:
    """An ONNX model in ONNX Runtime, on the CPU.

    Args:
        file: which.
        stepwise: whether it is of one frame.
        threads: threads per operation; 0 for one per core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def whole(events: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"events": events.numpy()})[0])

    def frames(events: Tensor) -> Tensor:
        _, size = session.get_inputs()[1].shape
        state, found = events.new_zeros(len(events), size).numpy(), []
        for frame in events.unbind(1):
            given = {"frame": frame.contiguous().numpy(), "state": state}
            logits, state = session.run(None, given)
            found.append(torch.from_numpy(logits))
        return torch.stack(found, 1)

    return frames if stepwise else whole
