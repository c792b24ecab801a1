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
    logits: Float[Tensor, "B T K"],
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
    *,
    means: float,
    lamb: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """TET's total loss (Deng et al. 2022, L_TOTAL in section 4).

        (1 - lamb) * 1/T sum_t CE(z_t, y)  +  lamb * mean over B, T, K of (z - means)^2

    Args:
        logits: the predictions z_t of all time steps (B,T,K).
        labels: class numbers y (B,), in 0..K-1, or class weights (B,K) of mixed samples, rows
            summing to 1.
        means: the value that the second part pulls every logit to.
        lamb: share of the second part, in [0,1].
        label_smoothing: share of the target spread evenly over all classes, in [0,1].

    Raises:
        ValueError: `lamb` or `label_smoothing` outside [0,1].

    >>> tet_loss(torch.zeros(2, 4, 10), torch.tensor([3, 7]), means=1.0, lamb=0.0)  # log 10
    tensor(2.3026)
    """
    ce, mse = _parts(logits, labels, means, lamb, label_smoothing)
    return ce + mse


class TET(Supervision):
    """`tet_loss` as a supervision; the arguments are those of `tet_loss`.

    The terms are the two weighted parts, "tet_ce" and "tet_mse".

    >>> TET()
    TET(means=1.0, lamb=0.001, label_smoothing=0.0)
    """

    def __init__(
        self, means: float = 1.0, lamb: float = 1e-3, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        _check(lamb, label_smoothing)
        self.means, self.lamb, self.label_smoothing = means, lamb, label_smoothing

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        ce, mse = _parts(output.logits, batch.target, self.means, self.lamb, self.label_smoothing)
        return Loss(ce + mse, {"tet_ce": ce, "tet_mse": mse})

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return f"means={self.means}, lamb={self.lamb}, label_smoothing={self.label_smoothing}"


def _parts(
    logits: Float[Tensor, "B T K"],
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
    means: float,
    lamb: float,
    label_smoothing: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The two weighted parts of `tet_loss`."""
    _check(lamb, label_smoothing)
    labels_per_step = labels.unsqueeze(-1).expand(*labels.shape, logits.shape[1])
    ce = F.cross_entropy(logits.transpose(1, 2), labels_per_step, label_smoothing=label_smoothing)
    mse = F.mse_loss(logits, torch.full_like(logits, means))
    return (1.0 - lamb) * ce, lamb * mse


def _check(lamb: float, label_smoothing: float) -> None:
    if not 0.0 <= lamb <= 1.0:
        raise ValueError(f"lamb must be in [0,1], not {lamb}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0,1], not {label_smoothing}")
