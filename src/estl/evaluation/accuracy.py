"""Accuracy of a student over a loader, after each time step."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from estl.types import Batch


@dataclass(frozen=True)
class Accuracy:
    """Test accuracy after each time step: of the mean logits over steps 1..t."""

    per_step: tuple[float, ...]
    samples: int

    @property
    def final(self) -> float:
        """Accuracy after the last step."""
        return self.per_step[-1]


@torch.inference_mode()
def evaluate(student: nn.Module, batches: Iterable[Batch], device: torch.device) -> Accuracy:
    """Accuracy of `student` on `batches`, after each time step t = 1..T."""
    student = student.to(device).eval()
    correct, samples = torch.zeros(0, dtype=torch.long), 0
    for batch in batches:
        batch = batch.to(device)
        hits = running_mean(student(batch.events).logits).argmax(-1) == batch.label[:, None]
        hits = hits.sum(0).cpu()
        correct = hits if samples == 0 else correct + hits
        samples += len(batch.label)
    return Accuracy(tuple((correct.double() / samples).tolist()), samples)


def running_mean(logits: Tensor) -> Tensor:
    """Mean of `logits` (B,T,K) over steps 1..t, for every t.

    >>> running_mean(torch.tensor([[[1.0], [3.0]]])).flatten()
    tensor([1., 2.])
    """
    steps = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    return logits.float().cumsum(1) / steps[:, None]
