"""TSE for dense tasks: each time step learns from the places whose own class the steps before it
did not already predict.

Not part of Liu et al. (AAAI 2025), which classifies whole images: the same thresholds and the same
sum over steps, for one label a place, as in semantic segmentation.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from estl.supervision import steps
from estl.supervision.schedule import Schedule, Scheduled
from estl.supervision.steps import Reduction, StepLoss
from estl.types import Loss


@torch.no_grad()
def dense_tse_keep(
    logits: Float[Tensor, "B T K H W"], labels: Int[Tensor, "B H W"], *, tau_f: float, kappa: float
) -> Bool[Tensor, "B T H W"]:
    """The places that each step keeps: `tse_keep` with each place's own class y(i,j).

        P_t(i,j) = softmax(1/(t-1) sum_{s<t} z_s(i,j))_y(i,j)
        tau_d    = mean(P_t) + kappa * std(P_t), over the H*W places, one per sample
        erase (i,j) at step t  where  P_t(i,j) >= max(tau_f, tau_d)

    Step 1 keeps everything, and so does a map of one place. The mask has no gradient.

    Once a map is right nearly everywhere, as where most of it is background, tau_d exceeds 1 and
    nothing is erased: a smaller `kappa` erases further.

    Args:
        logits: predictions of all time steps at all places (B,T,K,H,W).
        labels: class numbers (B,H,W), in 0..K-1.
        tau_f, kappa: as in `tse_keep`.

    >>> logits = torch.zeros(1, 2, 2, 1, 3)
    >>> logits[0, 0, :, 0, :2] = torch.tensor([[5.0, -5.0], [0.0, 0.0]])  # class 0, class 1
    >>> dense_tse_keep(logits, torch.zeros(1, 1, 3, dtype=int), tau_f=0.6, kappa=0.5)[0, :, 0]
    tensor([[ True,  True,  True],
            [False,  True,  True]])
    """
    B, T, _, H, W = logits.shape
    keep = torch.ones(B, T, H, W, dtype=torch.bool, device=logits.device)
    if T > 1 and H * W > 1:
        past = steps.running_mean(logits[:, :-1]).softmax(2)
        own_class = labels.view(B, 1, 1, H, W).expand(-1, T - 1, -1, -1, -1)
        p = past.gather(2, own_class).squeeze(2)
        keep[:, 1:] = ~(p >= steps.erasing_threshold(p, tau_f, kappa))
    return keep


def dense_tse_loss(
    logits: Float[Tensor, "B T K H W"],
    labels: Int[Tensor, "B H W"],
    *,
    tau_f: float = 0.5,
    kappa: float = 1.0,
    reduction: Reduction = "sum",
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Temporal-self-erasing of per-place losses.

        L = sum_t 1/(H*W) sum_{i,j} M_t(i,j) CE(z_t(i,j), y(i,j))      (M of `dense_tse_keep`)

    averaged over the batch. What is erased is the loss, not the features: a head that reads one
    place would answer an erased feature with its bias, and the loss there would teach the bias the
    label of a place that it cannot see. Erased places count as zeros in the mean over places, as in
    Eq. 11 of TSE, so that hard places weigh no more in a step that has few left.

    Args:
        logits: predictions z of all time steps at all places (B,T,K,H,W).
        labels: class numbers y (B,H,W), in 0..K-1.
        tau_f, kappa: as in `tse_keep`.
        reduction, label_smoothing: as in `StepLoss`.

    Raises:
        ValueError: an option outside its range.

    >>> logits = torch.zeros(2, 4, 3, 6, 6)
    >>> loss = dense_tse_loss(logits, torch.zeros(2, 6, 6, dtype=int), tau_f=1.1)
    >>> torch.testing.assert_close(loss, 4 * torch.tensor(3.0).log())
    """
    steps.check_not_negative(tau_f=tau_f, kappa=kappa)
    step_loss = StepLoss(reduction, label_smoothing)
    return step_loss(logits, labels, dense_tse_keep(logits, labels, tau_f=tau_f, kappa=kappa))


class DenseTSE(Scheduled, nn.Module):
    """`dense_tse_loss` as a module, with the same arguments; `tau_f` may be a `Schedule`.

    It takes the logits and labels of places, which `Output` and `Batch` do not hold, and returns a
    `Loss` as a `Supervision` does. It erases in training mode only. The term is "dense_tse", the
    metrics are those of `TSE`.

    Raises:
        ValueError: an option outside its range.

    >>> DenseTSE(kappa=0.0)
    DenseTSE(tau_f=0.5, kappa=0.0, reduction='sum', label_smoothing=0.0)
    """

    def __init__(
        self,
        tau_f: float | Schedule = 0.5,
        kappa: float = 1.0,
        reduction: Reduction = "sum",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        steps.check_not_negative(tau_f=tau_f, kappa=kappa)
        self.tau_f, self.kappa = tau_f, kappa
        self.step_loss = StepLoss(reduction, label_smoothing)

    def forward(self, logits: Float[Tensor, "B T K H W"], labels: Int[Tensor, "B H W"]) -> Loss:
        """The loss of one batch."""
        if not self.training:
            total = self.step_loss(logits, labels)
            return Loss(total, {"dense_tse": total})
        keep = dense_tse_keep(logits, labels, tau_f=self.now(self.tau_f), kappa=self.kappa)
        total = self.step_loss(logits, labels, keep)
        metrics = self.scheduled(total)
        metrics["erased"], metrics["erased_everywhere"] = steps.erased(keep)
        return Loss(total, {"dense_tse": total}, metrics)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return f"tau_f={self.tau_f}, kappa={self.kappa}, {self.step_loss}"
