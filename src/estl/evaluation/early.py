"""Early exit: a student that answers as soon as it is sure, and how sure it has to be.

A sample exits at the first step at which its confidence (`evaluation.confidence`) reaches a
threshold, or at the last step if it never does.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from estl.evaluation.confidence import exits, predictions, stopping
from estl.types import Batch

CANDIDATES = 1000
"""Maximum number of thresholds tried, out of the confidences found, rounded to millionths."""


@dataclass(frozen=True)
class EarlyExit:
    """The results of a threshold.

    Args:
        threshold: on the confidence; above 1 nothing exits early.
        accuracy: of the answers given at the exits.
        all_steps: accuracy after all steps.
        mean_steps: mean number of steps to the exit.
        steps: T.
        samples: number of samples.
    """

    threshold: float
    accuracy: float
    all_steps: float
    mean_steps: float
    steps: int
    samples: int


def check_threshold(until_sure: float | None) -> None:
    """Raise ValueError for a threshold that is not a probability."""
    if until_sure is not None and not 0 < until_sure <= 1:
        raise ValueError(f"until_sure={until_sure}: give a probability, such as 0.95")


def check_tolerance(tolerance: float) -> None:
    """Raise ValueError for a tolerance not in (0,1): no number of samples shows a loss of 0."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: give a share above 0 and below 1, such as 0.005")


def at(confidence: Float[Tensor, "n T"], right: Bool[Tensor, "n T"], threshold: float) -> EarlyExit:
    """The results of `threshold`; `right` says after which steps a sample's answer is right."""
    found = stopping(confidence, right, torch.tensor([threshold], dtype=torch.double))
    last = right[:, -1].double().mean().item()
    shares = found.accuracy.item(), last, found.steps.item()
    return EarlyExit(threshold, *shares, steps=right.shape[1], samples=len(right))


def calibrate(
    confidence: Float[Tensor, "n T"], right: Bool[Tensor, "n T"], tolerance: float = 0.005
) -> EarlyExit:
    """The lowest threshold at which early answers are expected to lose at most `tolerance`.

    A sample is lost at a threshold if its answer there, or at a higher one, is wrong but its answer
    after all steps is right. With m of n samples lost, a new one from the same distribution is lost
    with a probability, over the draw of all of them, of at most

        (m + 1) / (n + 1)

    (conformal risk control; Angelopoulos et al., ICLR 2024, eq. 4), which may not exceed the
    tolerance. So with fewer than 1 / tolerance - 1 samples nothing exits early. A threshold that
    merely keeps the accuracy on the same samples is too low for others: docs/results.md.

    Raises:
        ValueError: a tolerance that is not in (0,1); no samples.

    >>> confidence = torch.tensor([[0.5, 0.9], [0.6, 0.8]])
    >>> right = torch.tensor([[False, True], [True, True]])
    >>> found = calibrate(confidence, right, tolerance=0.34)
    >>> round(found.threshold, 2), found.mean_steps     # 0.5 would let the first leave wrong
    (0.6, 1.5)
    """
    check_tolerance(tolerance)
    if not len(right):
        raise ValueError("there is nothing to calibrate on: no samples")
    values = (confidence.double() * 1e6).floor().div(1e6).unique().tolist()
    stride = -(-len(values) // CANDIDATES)
    lowest, lost = 1.01, torch.zeros(len(right), dtype=torch.bool)
    for threshold in reversed(values[::stride]):
        first = exits(confidence, torch.tensor([threshold], dtype=torch.double))
        lost |= right[:, -1] & ~right.gather(1, first).squeeze(1)
        if int(lost.sum()) + 1 > tolerance * (len(lost) + 1):
            break
        lowest = threshold
    return at(confidence, right, lowest)


@torch.inference_mode()
def confidences(
    student: nn.Module, batches: Iterable[Batch], device: torch.device
) -> tuple[Float[Tensor, "n T"], Bool[Tensor, "n T"]]:
    """How sure `student` is after each step of each sample, and whether it is right.

    Raises:
        ValueError: no batches.
    """
    student, found = student.to(device).eval(), []
    for batch in batches:
        batch = batch.to(device)
        confidence, predicted = predictions(student(batch.events).logits)
        found.append((confidence.cpu(), (predicted == batch.label[:, None]).cpu()))
    if not found:
        raise ValueError("batches is empty: there is nothing to calibrate on")
    sures, rights = zip(*found, strict=True)
    return torch.cat(sures), torch.cat(rights)
