"""Contrastive loss between the student's features of events and the teacher's of images."""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from estl.guidance.ranks import gather, sizes, together


class ContrastiveLoss(nn.Module):
    """InfoNCE from events to images, over the batches of all ranks.

        s_ij = cos(student_i, teacher_j) / temperature
        loss = - mean_i  mean_{j in P(i)}  log softmax_j(s_i)

    with P(i) = {i}, the image of the same recording (positives="pair"; van den Oord et al. 2018,
    eq. 4), or all j with the same label, including i (positives="class"; Khosla et al. 2020, eq. 2,
    across two modalities). Computed in float32, also under autocast. A batch of one gives 0.

    Under `torch.distributed` i runs over the rank's own batch and j over the batches of all ranks,
    with gradient to the other ranks' features. The mean over ranks, which DDP takes of the
    gradients, is then that of the whole batch in one process; if the ranks' batches differ in size,
    it is the mean that weights each rank by its batch size (as `Learner` does).

    Args:
        temperature: > 0; the smaller, the more the hardest negatives count.
        positives: "pair" or "class".

    Raises:
        ValueError: for options out of range.

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
        """The loss of event features against image features, of the same items in order."""
        with torch.autocast(student.device.type, enabled=False):
            student = F.normalize(student.float(), dim=1)
            teacher = F.normalize(teacher.float(), dim=1)
            each = sizes(len(teacher), student.device)
            first = sum(each[: dist.get_rank()]) if together() else 0
            teacher, all_labels = gather(teacher, each), gather(labels, each)
            log_p = (student @ teacher.T / self.temperature).log_softmax(dim=1)
            if self.positives == "pair":
                return -log_p.diagonal(first).mean()
            positive = (labels.unsqueeze(1) == all_labels).to(log_p.dtype)
            return -((log_p * positive).sum(1) / positive.sum(1)).mean()
