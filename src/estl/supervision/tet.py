"""TET, temporal efficient training: every time step is asked for the class, not only their mean.

Deng, Li, Zhang, Gu: "Temporal Efficient Training of Spiking Neural Network via Gradient
Re-weighting", ICLR 2022.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from estl.types import Batch, Loss, Output, Supervision


def tet_loss(
    logits: Float[Tensor, "B T K"], labels: Int[Tensor, " B"], *, means: float, lamb: float
) -> Float[Tensor, ""]:
    """TET's total loss (Deng et al. 2022, L_TOTAL in section 4).

        (1 - lamb) * 1/T sum_t CE(z_t, y)  +  lamb * mean over B, T, K of (z - means)^2

    Args:
        logits: the predictions z_t of all time steps (B,T,K).
        labels: class numbers y (B,), in 0..K-1.
        means: the value that the second part pulls every logit to.
        lamb: share of the second part, in [0,1].

    Raises:
        ValueError: `lamb` outside [0,1].

    >>> tet_loss(torch.zeros(2, 4, 10), torch.tensor([3, 7]), means=1.0, lamb=0.0)  # log 10
    tensor(2.3026)
    """
    ce, mse = _parts(logits, labels, means, lamb)
    return ce + mse


class TET(Supervision):
    """`tet_loss` as a supervision; the arguments are those of `tet_loss`.

    The terms are the two weighted parts, "tet_ce" and "tet_mse".

    >>> TET()
    TET(means=1.0, lamb=0.001)
    """

    def __init__(self, means: float = 1.0, lamb: float = 1e-3) -> None:
        super().__init__()
        _check(lamb)
        self.means, self.lamb = means, lamb

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        ce, mse = _parts(output.logits, batch.label, self.means, self.lamb)
        return Loss(ce + mse, {"tet_ce": ce, "tet_mse": mse})

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return f"means={self.means}, lamb={self.lamb}"


def _parts(
    logits: Float[Tensor, "B T K"], labels: Int[Tensor, " B"], means: float, lamb: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The two weighted parts of `tet_loss`."""
    _check(lamb)
    labels_per_step = labels.unsqueeze(1).expand(-1, logits.shape[1])
    ce = F.cross_entropy(logits.transpose(1, 2), labels_per_step)
    mse = F.mse_loss(logits, torch.full_like(logits, means))
    return (1.0 - lamb) * ce, lamb * mse


def _check(lamb: float) -> None:
    if not 0.0 <= lamb <= 1.0:
        raise ValueError(f"lamb must be in [0,1], not {lamb}")
