"""Contrastive loss between the student's features of events and the teacher's of images."""

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class ContrastiveLoss(nn.Module):
    """InfoNCE from events to images, over the batches of all ranks.

        s_ij = cos(student_i, teacher_j) / temperature
        loss = - mean_i  mean_{j in P(i)}  log softmax_j(s_i)

    with P(i) = {i}, the image of the same recording (positives="pair"; van den Oord et al. 2018,
    eq. 4), or all j of the same label, including i (positives="class"; Khosla et al. 2020, eq. 2,
    across two modalities). Computed in float32, also under autocast. A batch of one gives 0.

    Under `torch.distributed` i runs over the rank's own batch and j over the batches of all ranks,
    with gradient to the other ranks' features. The mean over ranks, which DDP takes of the
    gradients, is then that of the whole batch in one process.

    Args:
        temperature: > 0; the smaller, the more the hardest negatives count.
        positives: "pair" or "class".

    Raises:
        ValueError: for options out of range; in `forward`, for ranks with batches of unequal size.

    >>> loss = ContrastiveLoss()
    >>> x, label = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> bool(loss(x, x, label) < loss(x, x.flip(0), label))
    True
    """

    def __init__(
        self, temperature: float = 0.07, positives: Literal["pair", "class"] = "pair"
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if positives not in ("pair", "class"):
            raise ValueError(f'positives must be "pair" or "class", got {positives!r}')
        self.temperature = temperature
        self.positives = positives

    def forward(
        self,
        student: Float[Tensor, "B E"],
        teacher: Float[Tensor, "B E"],
        labels: Int[Tensor, " B"],
    ) -> Float[Tensor, ""]:
        """The loss of event features against image features of the same items, in their order."""
        with torch.autocast(student.device.type, enabled=False):
            student = F.normalize(student.float(), dim=1)
            teacher = F.normalize(teacher.float(), dim=1)
            own, rank = len(teacher), 0
            all_labels = labels
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                rank = dist.get_rank()
                _require_equal_batches(own, student.device)
                teacher = _Gather.apply(teacher)
                all_labels = _gather(labels)
            log_p = (student @ teacher.T / self.temperature).log_softmax(dim=1)
            if self.positives == "pair":
                return -log_p.diagonal(rank * own).mean()
            positive = (labels.unsqueeze(1) == all_labels).to(log_p.dtype)
            return -((log_p * positive).sum(1) / positive.sum(1)).mean()


def _gather(x: Tensor) -> Tensor:
    """The batches of all ranks, one after the other."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """`_gather` whose gradient is the sum over ranks of the gradients for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.own = len(x)
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.own
        return grad[start : start + ctx.own]


def _require_equal_batches(size: int, device: torch.device) -> None:
    """Only then is the mean of the ranks' means that of all; and collectives need it."""
    sizes = _gather(torch.tensor([size], device=device)).tolist()
    if len(set(sizes)) > 1:
        raise ValueError(
            f"ContrastiveLoss needs batches of one size on all ranks, got {sizes}: use a sampler "
            "that pads, or drop_last"
        )
