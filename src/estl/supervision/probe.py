"""Class predictions from a frozen teacher's features, by a linear layer on top of them."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Probe(nn.Module):
    """A linear layer on the teacher's feature, whose class predictions are distilled to a student.

    CLIP's tower does not know the classes of the user's set, so that only its features can be
    distilled. With f the layer-normalized feature, z = V f + b the probe's logits and x the
    student's,

        L = CE(z, label) + KL(softmax(z) || softmax(x)),

    the first averaged over the labeled samples, the second over all samples and the S sets of
    logits of each, such as those of its time steps (Hinton et al. 2015, at temperature 1). The
    first trains the probe alone and the second the student alone.

    Args:
        dim: E, width of the feature.
        classes: K.

    >>> import torch
    >>> probe = Probe(8, 3)
    >>> logits = torch.zeros(4, 1, 3, requires_grad=True)
    >>> probe(logits, torch.randn(4, 8), torch.tensor([0, 2])).backward()  # two without a label
    >>> [x.grad is not None for x in (logits, probe.linear.weight)]
    [True, True]
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, classes)

    def forward(
        self,
        logits: Float[Tensor, "B S K"],
        feature: Float[Tensor, "B E"],
        target: Int[Tensor, " n"] | Float[Tensor, "n K"],
    ) -> Float[Tensor, ""]:
        """The loss; `target`, class numbers or weights, belongs to the first samples."""
        own: Tensor = self.linear(F.layer_norm(feature.detach(), feature.shape[-1:])).float()
        learned = F.cross_entropy(own[: len(target)], target)
        student, said = logits.float().log_softmax(-1), own.detach().softmax(-1).unsqueeze(1)
        apart = F.kl_div(student, said.expand_as(student), reduction="sum")
        return learned + apart / student[..., 0].numel()
