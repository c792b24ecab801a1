"""TSE for dense tasks: each time step learns from the places whose own class the steps before it
did not already predict.

Not part of Liu et al. (AAAI 2025), which classifies whole images: the same thresholds and the same
sum over steps, for one label per place, as in semantic segmentation.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from estl.supervision import steps
from estl.supervision.schedule import Schedule, Scheduled, unscheduled
from estl.supervision.steps import Reduction, StepLoss
from estl.types import UNLABELED, Loss


@torch.no_grad()
def dense_tse_keep(
    logits: Float[Tensor, "B T K H W"],
    labels: Int[Tensor, "B H W"],
    *,
    tau_f: float,
    kappa: float,
    ignore_index: int = UNLABELED,
) -> Bool[Tensor, "B T H W"]:
    """The places that each step keeps: `tse_keep` with each place's own class y(i,j).

        P_t(i,j) = softmax(1/(t-1) sum_{s<t} z_s(i,j))_y(i,j)
        tau_d    = mean(P_t) + kappa * std(P_t), over the places that have a class, one per sample
        erase (i,j) at step t  where  P_t(i,j) >= max(tau_f, tau_d)

    Step 1 keeps everything, and so does every step if only one place has a class. Void places,
    which have none, count as kept. The mask has no gradient.

    Once a map is right nearly everywhere, as when most of it is background, tau_d exceeds 1 and
    nothing is erased: a smaller `kappa` keeps erasing.

    Args:
        logits: predictions of all time steps at all places (B,T,K,H,W).
        labels: class numbers (B,H,W), in 0..K-1, or `ignore_index`.
        tau_f, kappa: as in `tse_keep`.
        ignore_index: the label of void places, such as 255.

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
        valid = (labels != ignore_index).unsqueeze(1)
        own_class = labels.unsqueeze(1).where(valid, 0).expand(-1, T - 1, -1, -1)
        p = past.gather(2, own_class.unsqueeze(2)).squeeze(2)
        keep[:, 1:] = ~((p >= _threshold(p, valid, tau_f, kappa)) & valid)
    return keep


def _threshold(
    p: Float[Tensor, "B S H W"], valid: Bool[Tensor, "B 1 H W"], tau_f: float, kappa: float
) -> Float[Tensor, "B S 1 1"]:
    """`steps.erasing_threshold` over valid places; NaN, which none reaches, if at most one."""
    places = valid.sum((-2, -1), keepdim=True)
    mean = (p * valid).sum((-2, -1), keepdim=True) / places
    variance = ((p - mean).square() * valid).sum((-2, -1), keepdim=True) / (places - 1)
    return (mean + kappa * variance.sqrt()).clamp(min=tau_f)


def dense_tse_loss(
    logits: Float[Tensor, "B T K H W"],
    labels: Int[Tensor, "B H W"],
    *,
    tau_f: float = 0.5,
    kappa: float = 1.0,
    reduction: Reduction = "sum",
    label_smoothing: float = 0.0,
    ignore_index: int = UNLABELED,
) -> Float[Tensor, ""]:
    """Temporal-self-erasing of per-place losses.

        L = sum_t 1/(H*W) sum_{i,j} M_t(i,j) CE(z_t(i,j), y(i,j))      (M of `dense_tse_keep`)

    averaged over the batch. Places labeled `ignore_index` are left out: the mean is over the other
    places of the batch, as in `F.cross_entropy`, and 0 if there are none.

    What is erased is the loss, not the features: a head that reads one place would map an erased
    feature to its bias, and the loss there would train the bias on the label of a place that the
    head cannot see. Erased places count as zeros in the mean over places, as in Eq. 11 of TSE, so
    that hard places do not weigh more in a step that has few places left.

    Args:
        logits: predictions z of all time steps at all places (B,T,K,H,W).
        labels: class numbers y (B,H,W), in 0..K-1, or `ignore_index`.
        tau_f, kappa: as in `tse_keep`.
        ignore_index: the label of void places, such as 255.
        reduction, label_smoothing: as in `StepLoss`.

    Raises:
        ValueError: an option outside its range.

    >>> logits = torch.zeros(2, 4, 3, 6, 6)
    >>> loss = dense_tse_loss(logits, torch.zeros(2, 6, 6, dtype=int), tau_f=1.1)
    >>> torch.testing.assert_close(loss, 4 * torch.tensor(3.0).log())
    """
    steps.check_not_negative(**unscheduled(tau_f=tau_f), kappa=kappa)
    step_loss = StepLoss(reduction, label_smoothing, ignore_index=ignore_index)
    thresholds = {"tau_f": tau_f, "kappa": kappa}
    keep = dense_tse_keep(logits, labels, **thresholds, ignore_index=ignore_index)
    return step_loss(logits, labels, keep)


class DenseTSE(Scheduled, nn.Module):
    """`dense_tse_loss` as a module, with the same arguments; `tau_f` may be a `Schedule`.

    It takes the logits and labels of places, which `Output` and `Batch` do not hold, and returns a
    `Loss`, like a `Supervision`. It erases in training mode only. The term is "dense_tse"; the
    metrics are those of `TSE`, over the places that have a class.

    Raises:
        ValueError: an option outside its range.

    >>> DenseTSE(kappa=0.0)
    DenseTSE(tau_f=0.5, kappa=0.0, reduction='sum', label_smoothing=0.0, ignore_index=-100)
    """

    def __init__(
        self,
        tau_f: float | Schedule = 0.5,
        kappa: float = 1.0,
        reduction: Reduction = "sum",
        label_smoothing: float = 0.0,
        ignore_index: int = UNLABELED,
    ) -> None:
        super().__init__()
        steps.check_not_negative(**unscheduled(tau_f=tau_f), kappa=kappa)
        self.tau_f, self.kappa = tau_f, kappa
        self.ignore_index = ignore_index
        self.step_loss = StepLoss(reduction, label_smoothing, ignore_index=ignore_index)

    def forward(self, logits: Float[Tensor, "B T K H W"], labels: Int[Tensor, "B H W"]) -> Loss:
        """The loss of one batch."""
        B, T, _, H, W = logits.shape
        if not self.training:
            everything = torch.ones(B, T, H, W, dtype=torch.bool, device=logits.device)
            total = self.step_loss(logits, labels, everything)
            return Loss(total, {"dense_tse": total})
        thresholds = {"tau_f": self.now(self.tau_f), "kappa": self.kappa}
        keep = dense_tse_keep(logits, labels, **thresholds, ignore_index=self.ignore_index)
        total = self.step_loss(logits, labels, keep)
        metrics = self.scheduled(total)
        metrics["erased"], metrics["erased_everywhere"] = steps.erased(
            keep, labels != self.ignore_index
        )
        return Loss(total, {"dense_tse": total}, metrics)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        options = f"tau_f={self.tau_f}, kappa={self.kappa}, {self.step_loss}"
        return f"{options}, ignore_index={self.ignore_index}"
