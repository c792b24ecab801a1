"""Accuracy of a student over a loader, after each time step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from estl.supervision.steps import running_mean
from estl.types import Batch

__all__ = ["Accuracy", "evaluate", "hits", "running_mean"]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy after each time step t: of the mean logits of steps 1..t.

    Args:
        per_step: share of samples that are right after each step.
        samples: number of samples.
        right: for each sample, in the loader's order, a "1" if it is right after the last step,
            else a "0"; empty if this was not kept.
    """

    per_step: tuple[float, ...]
    samples: int
    right: str = ""

    @property
    def final(self) -> float:
        """Accuracy after the last step."""
        return self.per_step[-1]


def hits(logits: Float[Tensor, "B T K"], label: Int[Tensor, " B"]) -> Bool[Tensor, "B T"]:
    """Whether the mean logits of steps 1..t predict the label, for every t.

    >>> hits(torch.tensor([[[0.0, 1.0], [3.0, 0.0]]]), torch.tensor([1]))
    tensor([[ True, False]])
    """
    return running_mean(logits).argmax(-1) == label[:, None]


@torch.inference_mode()
def evaluate(
    student: nn.Module,
    batches: Iterable[Batch | Sequence[Tensor]],
    device: torch.device | str = "cpu",
) -> Accuracy:
    """Accuracy of `student` in eval mode on `batches`, after each time step.

    A batch may also be (events (B,T,C,H,W), label (B,), ...), as a plain `DataLoader` makes it.

    Raises:
        ValueError: no batches.
    """
    student = student.to(device).eval()
    found = []
    for given in batches:
        batch = given if isinstance(given, Batch) else Batch(given[0], given[1])
        batch = batch.to(device)
        found.append(hits(student(batch.events).logits, batch.label).cpu())
    if not found:
        raise ValueError("batches is empty: there is nothing to evaluate")
    right = torch.cat(found)
    last = "".join("01"[hit] for hit in right[:, -1].int().tolist())
    return Accuracy(tuple(right.double().mean(0).tolist()), len(right), last)
