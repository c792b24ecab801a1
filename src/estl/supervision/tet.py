"""TET, temporal efficient training: the loss is taken at every time step, not on the mean alone.

Deng, Li, Zhang, Gu: "Temporal Efficient Training of Spiking Neural Network via Gradient
Re-weighting", ICLR 2022.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from estl.supervision.steps import StepLoss
from estl.types import Batch, Labels, Loss, Output, Supervision


def tet_loss(
    logits: Float[Tensor, "B T K"],
    labels: Labels,
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
        means: the value that the second part pulls every logit towards.
        lamb: share of the second part, in [0,1].
        label_smoothing: share of the target spread evenly over all classes, in [0,1].

    Raises:
        ValueError: `lamb` or `label_smoothing` outside [0,1].

    >>> loss = tet_loss(torch.zeros(2, 4, 10), torch.tensor([3, 7]), means=1.0, lamb=0.0)
    >>> torch.testing.assert_close(loss, torch.tensor(10.0).log())
    """
    _check(lamb)
    ce, mse = _parts(logits, labels, means, lamb, StepLoss("mean", label_smoothing))
    return ce + mse


class TET(Supervision):
    """`tet_loss` as a supervision, with the same arguments.

    The terms are the two weighted parts, "tet_ce" and "tet_mse".

    Raises:
        ValueError: `lamb` or `label_smoothing` outside [0,1].

    >>> TET()
    TET(means=1.0, lamb=0.001, label_smoothing=0.0)
    """

    reads_images = False

    def __init__(
        self, means: float = 1.0, lamb: float = 1e-3, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        _check(lamb)
        self.means, self.lamb = means, lamb
        self.step_loss = StepLoss("mean", label_smoothing)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        ce, mse = _parts(output.logits, batch.target, self.means, self.lamb, self.step_loss)
        return Loss(ce + mse, {"tet_ce": ce, "tet_mse": mse})

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        smoothing = self.step_loss.label_smoothing
        return f"means={self.means}, lamb={self.lamb}, label_smoothing={smoothing}"


def _parts(
    logits: Float[Tensor, "B T K"], labels: Labels, means: float, lamb: float, step_loss: StepLoss
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The two weighted parts of `tet_loss`."""
    mse = F.mse_loss(logits, torch.full_like(logits, means))
    return (1.0 - lamb) * step_loss(logits, labels), lamb * mse


def _check(lamb: float) -> None:
    if not 0.0 <= lamb <= 1.0:
        raise ValueError(f"lamb must be in [0,1], not {lamb}")
