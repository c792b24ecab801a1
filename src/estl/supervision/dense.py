"""TSE for dense tasks: each time step learns from the places whose own class the steps before it
did not already predict.

No part of Liu et al. (AAAI 2025), which classifies whole images: the same thresholds and the same
sum over steps, for one label a place, as in semantic segmentation.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from estl.supervision.schedule import Schedule, Scheduled
from estl.supervision.steps import Reduction, check_over_time
from estl.supervision.tse import check_thresholds, erased, erasing_threshold, with_first_step
from estl.types import Loss


@torch.no_grad()
def dense_tse_keep(
    logits: Float[Tensor, "B T K H W"],
    labels: Int[Tensor, "B H W"],
    *,
    tau_f: float,
    kappa: float,
) -> Bool[Tensor, "B T H W"]:
    """The places that each step keeps: `tse_keep` with each place's own class y(i,j).

        P_t(i,j) = softmax(1/(t-1) sum_{s<t} z_s(i,j))_y(i,j)
        tau_d    = mean(P_t) + kappa * std(P_t), over the H*W places, one per sample
        erase (i,j) at step t  where  P_t(i,j) >= max(tau_f, tau_d)

    Step 1 keeps everything, and so does a map of one place. The mask has no gradient.

    tau_d is above 1, and nothing is erased, once a map is nearly everywhere right, as where most of
    it is background: a smaller `kappa` erases further.

    Args:
        logits: predictions of all time steps at all places (B,T,K,H,W).
        labels: class numbers (B,H,W), in 0..K-1.
        tau_f: fixed threshold on the probability, >= 0; nothing is erased above 1.
        kappa: how many standard deviations above its mean a map is erased, >= 0.

    >>> logits = torch.zeros(1, 2, 2, 1, 3)
    >>> logits[0, 0, :, 0, :2] = torch.tensor([[5.0, -5.0], [0.0, 0.0]])  # class 0, class 1
    >>> dense_tse_keep(logits, torch.zeros(1, 1, 3, dtype=int), tau_f=0.6, kappa=0.5)[0, :, 0]
    tensor([[ True,  True,  True],
            [False,  True,  True]])
    """
    B, T, _, H, W = logits.shape
    if T == 1 or H * W == 1:
        return torch.ones(B, T, H, W, dtype=torch.bool, device=logits.device)
    z = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    counts = torch.arange(1, T, device=logits.device).view(-1, 1, 1, 1)
    past = (z.cumsum(1) / counts).softmax(2)
    p = past.gather(2, labels.view(B, 1, 1, H, W).expand(-1, T - 1, -1, -1, -1)).squeeze(2)
    return with_first_step(~(p >= erasing_threshold(p, tau_f, kappa)))


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

    averaged over the batch. It is the loss that is erased and not the features: a head that reads
    one place would answer an erased feature with its bias, and the loss there would teach the bias
    the label of a place that it cannot see. Erased places count as zeros in the mean over places,
    as in Eq. 11 of TSE, so that a few hard places weigh no more in a step that has few left.

    Args:
        logits: predictions z of all time steps at all places (B,T,K,H,W).
        labels: class numbers y (B,H,W), in 0..K-1.
        tau_f: as in `dense_tse_keep`. Above 1 the loss is the sum of the steps' cross-entropies.
        kappa: as in `dense_tse_keep`.
        reduction: over the time steps: "sum" or "mean".
        label_smoothing: share of the target spread evenly over all classes, in [0,1].

    Raises:
        ValueError: an option outside its range.

    >>> logits = torch.zeros(2, 4, 3, 6, 6)
    >>> dense_tse_loss(logits, torch.zeros(2, 6, 6, dtype=int), tau_f=1.1)  # 4 log 3
    tensor(4.3944)
    """
    check_thresholds(tau_f, kappa)
    check_over_time(reduction, label_smoothing, None)
    keep = dense_tse_keep(logits, labels, tau_f=tau_f, kappa=kappa)
    return _loss(logits, labels, keep, reduction, label_smoothing)


class DenseTSE(Scheduled, nn.Module):
    """`dense_tse_loss` as a module; the arguments are those of `dense_tse_loss`.

    It takes logits and labels of places, which `Output` and `Batch` do not hold, and returns a
    `Loss` as a `Supervision` does: in training mode it erases, in eval mode nothing is erased. The
    term is "dense_tse", the metrics are those of `TSE`. `tau_f` may be a `Schedule`.

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
        check_thresholds(0.0 if isinstance(tau_f, Schedule) else tau_f, kappa)
        check_over_time(reduction, label_smoothing, None)
        self.tau_f, self.kappa = tau_f, kappa
        self.reduction: Reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, logits: Float[Tensor, "B T K H W"], labels: Int[Tensor, "B H W"]) -> Loss:
        """The loss of one batch."""
        B, T, _, H, W = logits.shape
        keep = torch.ones(B, T, H, W, dtype=torch.bool, device=logits.device)
        metrics: dict[str, Tensor] = {}
        if self.training:
            tau_f = self.now(self.tau_f)
            keep = dense_tse_keep(logits, labels, tau_f=tau_f, kappa=self.kappa)
            metrics = erased(keep)
            if isinstance(self.tau_f, Schedule):
                metrics["tau_f"] = logits.new_full((), tau_f)
        total = _loss(logits, labels, keep, self.reduction, self.label_smoothing)
        return Loss(total, {"dense_tse": total}, metrics)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return (
            f"tau_f={self.tau_f}, kappa={self.kappa}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )


def _loss(
    logits: Float[Tensor, "B T K H W"],
    labels: Int[Tensor, "B H W"],
    keep: Bool[Tensor, "B T H W"],
    reduction: Reduction,
    label_smoothing: float,
) -> Float[Tensor, ""]:
    """The kept places' cross-entropies, mean over batch and places, sum or mean over time."""
    T = logits.shape[1]
    ce = F.cross_entropy(
        logits.flatten(0, 1),
        labels.repeat_interleave(T, 0),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    mean = (ce * keep.flatten(0, 1)).mean()
    return mean * T if reduction == "sum" else mean
