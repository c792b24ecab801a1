"""How sure a student is of its predictions, how often rightly so, and what early stopping saves.

A prediction after step t is softmax(1/t sum_{s<=t} z_s); its confidence is its largest entry.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from estl.evaluation.accuracy import running_mean


class Stopping(NamedTuple):
    """Results if each sample stops where its confidence first reaches a threshold, or at the end.

    Args:
        accuracy: of the predictions where the samples stop, for each threshold.
        steps: number of steps taken, mean over the samples, for each threshold.
    """

    accuracy: Float[Tensor, " m"]
    steps: Float[Tensor, " m"]


class Reliability(NamedTuple):
    """Samples by their confidence after the last step, in bins of equal width over [0,1].

    Args:
        samples: number of samples in each bin.
        right: number of these that are right.
        confidence: mean confidence of these; 0 in an empty bin.
        error: the expected calibration error, the mean over samples of |confidence - accuracy| of
            their bin (Guo et al., ICML 2017).
    """

    samples: Int[Tensor, " bins"]
    right: Int[Tensor, " bins"]
    confidence: Float[Tensor, " bins"]
    error: float


def predictions(
    logits: Float[Tensor, "n T K"],
) -> tuple[Float[Tensor, "n T"], Int[Tensor, "n T"]]:
    """Confidence and class after each step.

    >>> sure, classes = predictions(torch.tensor([[[0.0, 0.0], [0.0, 6.0]]]))
    >>> classes[0, 1].item(), round(sure[0, 1].item(), 3)
    (1, 0.953)
    """
    return running_mean(logits).softmax(-1).max(-1)


def confusion(
    predicted: Int[Tensor, " n"], label: Int[Tensor, " n"], classes: int
) -> Int[Tensor, "K K"]:
    """How many samples of each class (rows) were predicted as each class (columns).

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    return torch.bincount(label * classes + predicted, minlength=classes**2).view(classes, -1)


def exits(confidence: Float[Tensor, "n T"], thresholds: Float[Tensor, " m"]) -> Int[Tensor, "n m"]:
    """The step (from 0) at which each sample stops: the first that is sure enough, or the last.

    >>> exits(torch.tensor([[0.5, 0.9, 0.7], [0.4, 0.6, 0.7]]), torch.tensor([0.8])).tolist()
    [[1], [2]]
    """
    enough = confidence[:, None] >= thresholds[:, None]  # (n,m,T)
    enough[..., -1] = True
    return enough.int().argmax(-1)


def stopping(
    confidence: Float[Tensor, "n T"],
    right: Bool[Tensor, "n T"],
    thresholds: Float[Tensor, " m"],
) -> Stopping:
    """Accuracy and mean steps for each threshold on the confidence.

    Args:
        confidence: after each step.
        right: whether the prediction after each step is right.
        thresholds: one above 1 is never reached.

    >>> confidence = torch.tensor([[0.6, 0.9], [0.5, 0.8]])
    >>> right = torch.tensor([[True, True], [False, True]])
    >>> found = stopping(confidence, right, torch.tensor([0.5, 0.55]))
    >>> found.accuracy.tolist(), found.steps.tolist()
    ([0.5, 1.0], [1.0, 1.5])
    """
    at = exits(confidence, thresholds)
    return Stopping(right.gather(1, at).double().mean(0), (at + 1).double().mean(0))


def reliability(
    logits: Float[Tensor, "n T K"], label: Int[Tensor, " n"], bins: int = 10
) -> Reliability:
    """Whether the confidence matches the share of samples that are right.

    >>> reliability(torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]]), torch.tensor([0, 1])).error
    0.0
    """
    confidence, predicted = (x[:, -1] for x in predictions(logits))
    place = (confidence * bins).long().clamp(max=bins - 1)
    right = (predicted == label).long()
    count = torch.bincount(place, minlength=bins)
    hits = torch.bincount(place, right.double(), minlength=bins)
    sums = torch.bincount(place, confidence.double(), minlength=bins)
    error = float((sums - hits).abs().sum() / len(label))
    return Reliability(count, hits.long(), sums / count.clamp(min=1), error)
