"""Streaming: a student sees one frame at a time, and the caller holds its state.

    state = None
    for frame in frames:                            # each (B,C,H,W)
        logits, state = step(student, frame, state)

After each frame the logits equal, bit for bit, those of the recording run at once: the mean over
the steps so far, by which `evaluation` counts accuracy. A state is a value: it can be kept, copied,
sent elsewhere and continued from twice. Its size does not depend on how many frames there were.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from estl.neurons.lif import Potentials
from estl.students.adapters import Adapter
from estl.students.layers import PerStep, PerToken


@dataclass(frozen=True)
class State:
    """What a student has seen of B streams.

    Args:
        potentials: of its neurons after the reset, one tensor per spiking layer.
        total: sum of the logits, in double precision like a sum over time on the CPU.
        steps: number of frames of each stream.
    """

    potentials: tuple[Tensor, ...]
    total: Float[Tensor, "B K"]
    steps: Int[Tensor, " B"]

    def restart(self, rows: Bool[Tensor, " B"]) -> "State":
        """The state in which the streams in `rows` have seen nothing, and the others continue.

        >>> from estl.students import VGGSNN
        >>> net = VGGSNN(classes=5, frame_size=(8, 8), layers=(8, "AP")).eval()
        >>> _, state = step(net, torch.rand(2, 2, 8, 8))
        >>> state.restart(torch.tensor([False, True])).steps
        tensor([1, 0])
        """

        def cleared(x: Tensor) -> Tensor:
            return x.masked_fill(rows.view(-1, *[1] * (x.ndim - 1)), 0)

        fresh = tuple(map(cleared, self.potentials))
        return State(fresh, cleared(self.total), cleared(self.steps))


@torch.inference_mode()
def step(
    student: nn.Module, frame: Float[Tensor, "B C H W"], state: State | None = None
) -> tuple[Float[Tensor, "B K"], State]:
    """The mean logits after one more frame, and the state to continue from.

    The result has the same bits as that of the whole sequence for rows of a batch of the same size,
    on the same device with the same number of threads: libraries choose kernels by these. It runs
    in PyTorch's inference mode; clone the result if you need gradients of what follows.

    Args:
        student: in eval mode; its neurons are `LIF`.
        frame: one frame of each of B streams.
        state: the state after the previous frames; None at the start.

    Raises:
        ValueError: a student in training mode, or of another framework; a state of a different
            number of streams.

    >>> from estl.evaluation.accuracy import running_mean
    >>> from estl.students import VGGSNN
    >>> net = VGGSNN(classes=5, frame_size=(8, 8), layers=(8, "AP")).eval()
    >>> events, state = torch.rand(3, 4, 2, 8, 8), None
    >>> for frame in events.unbind(1):
    ...     logits, state = step(net, frame, state)
    >>> with torch.no_grad():
    ...     torch.equal(logits, running_mean(net(events).logits)[:, -1])
    True
    """
    if student.training:
        raise ValueError("the student is in training mode: call eval() first")
    if isinstance(student, Adapter):
        raise ValueError(
            "a network of another framework may keep state in its modules: step unwrap() itself"
        )
    if state is not None and len(state.steps) != len(frame):
        raise ValueError(
            f"frame holds {len(frame)} streams, but the state {len(state.steps)}: start anew"
        )
    with Potentials(None if state is None else state.potentials) as neurons:
        logits: Tensor = student(frame.unsqueeze(1)).logits[:, 0]
    exact = torch.promote_types(logits.dtype, torch.double)
    total, steps = logits.to(exact), torch.ones(len(frame), dtype=torch.long, device=frame.device)
    if state is not None:
        total, steps = state.total + total, state.steps + steps
    mean = total.to(torch.promote_types(logits.dtype, torch.float32)) / steps[:, None]
    return mean, State(neurons.after, total, steps)


def fold(student: nn.Module) -> nn.Module:
    """A copy of a student in eval mode, with batch norms folded into the layers before them.

    The same function, with different rounding: currents agree to some units in the last place, and
    a neuron whose potential comes that close to its threshold may spike at another step. So the
    difference of logits has no bound, only that of accuracy; if exact bits matter, do not fold.

    Raises:
        ValueError: a student in training mode.

    >>> from estl.students import VGGSNN
    >>> fold(VGGSNN(frame_size=(8, 8), layers=(8, "AP")).eval()).layers[0]
    PerStep(
      (0): Conv2d(2, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    )
    """
    if student.training:
        raise ValueError("the student is in training mode: call eval() first")
    student = deepcopy(student)
    for module in student.modules():
        if not isinstance(module, PerStep | PerToken) or len(module) < 2:
            continue
        layer, norm = module[0], module[1]
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module[0] = fuse_conv_bn_eval(layer, norm)
            del module[1]
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            module[0] = fuse_linear_bn_eval(layer, norm)
            del module[1]
    return student
