"""Early exit: a student that answers as soon as it is sure, and how sure it has to be.

Sureness after step t is the largest probability of the softmax of the mean logits of steps 1..t. A
sample leaves at the first step at which it reaches a threshold, at the last one if none does.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from estl.evaluation.accuracy import hits, running_mean
from estl.types import Batch

CANDIDATES = 1000
"""Thresholds that are tried at most: of the sureness found, rounded to millionths."""


@dataclass(frozen=True)
class EarlyExit:
    """What a threshold gives.

    Args:
        threshold: of sureness; above 1 nothing leaves early.
        accuracy: of the answers given at the exits.
        all_steps: accuracy after all steps.
        mean_steps: mean number of steps to the exit.
        steps: T.
        samples: their number.
    """

    threshold: float
    accuracy: float
    all_steps: float
    mean_steps: float
    steps: int
    samples: int


def exits(sureness: Float[Tensor, "B T"], threshold: float) -> Int[Tensor, " B"]:
    """The step (from 0) at which each sample leaves.

    >>> exits(torch.tensor([[0.5, 0.9, 0.7], [0.4, 0.6, 0.7]]), 0.8)
    tensor([1, 2])
    """
    sure = sureness >= threshold
    sure[:, -1] = True
    return sure.int().argmax(1)


def at(sureness: Float[Tensor, "B T"], right: Bool[Tensor, "B T"], threshold: float) -> EarlyExit:
    """What `threshold` gives where `right` says after which steps a sample's answer is right."""
    step = exits(sureness.clone(), threshold)
    accuracy = right.gather(1, step[:, None]).double().mean().item()
    mean_steps = (step + 1).double().mean().item()
    last = right[:, -1].double().mean().item()
    return EarlyExit(threshold, accuracy, last, mean_steps, right.shape[1], len(right))


def calibrate(
    sureness: Float[Tensor, "B T"], right: Bool[Tensor, "B T"], tolerance: float = 0.005
) -> EarlyExit:
    """The lowest threshold whose accuracy, and that of every higher one, is at most `tolerance`
    below that of all steps. The lower the threshold, the fewer the steps.

    Raises:
        ValueError: a tolerance that is no share; no samples.

    >>> sureness = torch.tensor([[0.5, 0.9], [0.6, 0.8]])
    >>> right = torch.tensor([[False, True], [True, True]])
    >>> found = calibrate(sureness, right)
    >>> round(found.threshold, 2), found.mean_steps     # 0.5 would let the first leave wrong
    (0.6, 1.5)
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: give a share in [0, 1), such as 0.005")
    if not len(right):
        raise ValueError("there is nothing to calibrate on: no samples")
    values = (sureness.double() * 1e6).floor().div(1e6).unique().tolist()
    stride = -(-len(values) // CANDIDATES)
    best = at(sureness, right, 1.01)
    for threshold in reversed(values[::stride]):
        found = at(sureness, right, threshold)
        if found.accuracy < found.all_steps - tolerance:
            break
        best = found
    return best


@torch.inference_mode()
def sureness(
    student: nn.Module, batches: Iterable[Batch], device: torch.device
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """How sure `student` is after each step of each sample, and whether it is right."""
    student, found = student.to(device).eval(), []
    for batch in batches:
        batch = batch.to(device)
        logits = student(batch.events).logits
        sure = running_mean(logits).softmax(-1).amax(-1)
        found.append((sure.float().cpu(), hits(logits, batch.label).cpu()))
    if not found:
        raise ValueError("batches is empty: there is nothing to calibrate on")
    sures, rights = zip(*found, strict=True)
    return torch.cat(sures), torch.cat(rights)
