"""TSE, temporal-self-erasing: each time step learns from the places that the steps before it did
not already recognise.

Liu et al.: "Towards More Discriminative Feature Learning in SNNs with Temporal-Self-Erasing
Supervision", AAAI 2025. Time is never looped over here: one call of the head predicts all places at
all steps, a cumulative sum averages them, a second call predicts all erased maps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from estl.types import Batch, Classify, Loss, Output, Supervision

Reduction = Literal["sum", "mean"]


@torch.no_grad()
def tse_keep(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Int[Tensor, " B"],
    *,
    tau_f: float,
    kappa: float,
) -> Bool[Tensor, "B T H W"]:
    """The places that each step keeps (Liu et al. 2025, Eq. 7, 9 and 10).

    With z_s(i,j) the logits of the head at one place and y the true class:

        P_t(i,j) = softmax(1/(t-1) sum_{s<t} z_s(i,j))_y                (Eq. 7)
        tau_d    = mean(P_t) + kappa * std(P_t), over the H*W places    (Eq. 9, one per sample)
        erase (i,j) at step t  where  P_t(i,j) >= max(tau_f, tau_d)     (Eq. 10)

    The standard deviation is the unbiased one. Step 1 has no past and keeps everything. So does
    every step of a map of one place: it has no standard deviation, and nothing would be left to
    learn from.

    The mask has no gradient. The head is asked at every place as at inference: a module, or a
    method of one, is in eval mode meanwhile, so that the places neither meet dropout nor enter the
    running statistics of a batch norm.

    Args:
        features: maps before pooling (B,T,D,H,W).
        classify: the whole head, (B*H*W,T-1,D) to (B*H*W,T-1,K): every place is a row of its own,
            a spiking layer in it runs over the steps.
        labels: class numbers (B,), in 0..K-1. They are not checked, for a check would make a GPU
            wait in every step; PyTorch raises on the CPU and asserts on the device.
        tau_f: fixed threshold on the probability, >= 0; nothing is erased above 1.
        kappa: how many standard deviations above its mean a map is erased, >= 0.

    >>> features = torch.zeros(1, 2, 2, 1, 3)
    >>> features[0, 0, 1, 0, 2] = 5.0  # step 1 is sure of class 1 at the last place
    >>> tse_keep(features, torch.nn.Identity(), torch.tensor([1]), tau_f=0.5, kappa=1.0)[0, :, 0]
    tensor([[ True,  True,  True],
            [ True,  True, False]])
    """
    B, T, _, H, W = features.shape
    keep = torch.ones(B, T, H, W, dtype=torch.bool, device=features.device)
    if T > 1 and H * W > 1:
        p = _past_prediction(features, classify, labels)
        keep[:, 1:] = ~(p >= _threshold(p, tau_f, kappa))
    return keep


def tse_loss(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Int[Tensor, " B"],
    *,
    tau_f: float,
    kappa: float,
    reduction: Reduction = "sum",
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The loss of temporal-self-erasing supervision (Liu et al. 2025, Eq. 7 to 12).

        pooled_t = 1/(H*W) sum_{i,j} M_t(i,j) F_t(i,j)     (Eq. 11, M of `tse_keep`)
        L        = sum_t CE(head(pooled)_t, y)             (Eq. 12)

    averaged over the batch. Erased places count as zeros in the mean: it is over all H*W. A sample
    that is erased everywhere at a step is left with the head's answer to zeros.

    Args:
        features: maps F before pooling (B,T,D,H,W).
        classify: the whole head, any (rows,steps,D) to (rows,steps,K).
        labels: class numbers y (B,), in 0..K-1.
        tau_f: as in `tse_keep`. Above 1 the loss is the sum of the steps' cross-entropies.
        kappa: as in `tse_keep`.
        reduction: over the time steps: "sum" as in the paper, or "mean" as in TET.
        label_smoothing: share of the target spread evenly over all classes, in [0,1].

    Raises:
        ValueError: an option outside its range.

    >>> head = torch.nn.Linear(8, 3)
    >>> features = torch.rand(2, 4, 8, 6, 6, requires_grad=True)
    >>> tse_loss(features, head, torch.tensor([0, 2]), tau_f=0.5, kappa=1.0).backward()
    >>> features.grad.shape
    torch.Size([2, 4, 8, 6, 6])
    """
    _check(tau_f, kappa, reduction, label_smoothing)
    keep = tse_keep(features, classify, labels, tau_f=tau_f, kappa=kappa)
    logits = classify(_pool(features, keep))
    return _cross_entropy(logits, labels, reduction, label_smoothing)


class TSE(Supervision):
    """`tse_loss` as a supervision; the arguments are those of `tse_loss`.

    In training mode it erases. In eval mode nothing is erased: the loss is the steps'
    cross-entropies of the plain logits under the same reduction. (Inference is the mean over time,
    as always.)

    The term is "tse". In training, the metrics are "erased", the share of places erased, and
    "erased_everywhere", the share of (sample, step) pairs with no place left; both are over the
    steps 2..T and are 0 for T=1.

    Raises:
        ValueError: an option outside its range; in `forward`, an `Output` whose head does not read
            pooled features.

    >>> TSE(tau_f=0.3)
    TSE(tau_f=0.3, kappa=1.0, reduction='sum', label_smoothing=0.0)
    """

    def __init__(
        self,
        tau_f: float = 0.5,
        kappa: float = 1.0,
        reduction: Reduction = "sum",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        _check(tau_f, kappa, reduction, label_smoothing)
        self.tau_f, self.kappa = tau_f, kappa
        self.reduction: Reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        if not output.pooled_head:
            raise ValueError(
                "TSE asks the head about single places, and this student's head does not read "
                'pooled features: use VGGSNN(pooled=True) or Spikformer(readout="mean")'
            )
        logits, metrics = output.logits, {}
        if self.training:
            features, classify = output.features, output.classify
            keep = tse_keep(features, classify, batch.label, tau_f=self.tau_f, kappa=self.kappa)
            logits = classify(_pool(features, keep))
            metrics = _erased(keep)
        loss = _cross_entropy(logits, batch.label, self.reduction, self.label_smoothing)
        return Loss(loss, {"tse": loss}, metrics)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return (
            f"tau_f={self.tau_f}, kappa={self.kappa}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )


def _past_prediction(
    features: Float[Tensor, "B T D H W"], classify: Classify, labels: Int[Tensor, " B"]
) -> Float[Tensor, "B T-1 H W"]:
    """Eq. 7: P_t of steps t = 2..T."""
    B, T, _, H, W = features.shape
    places = features[:, :-1].permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B*H*W, T-1, D)
    with _eval_mode(classify):
        logits = classify(places)
    # A sum over time and a spread over places are too fine for half precision.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = torch.arange(1, T, device=logits.device).unsqueeze(1)
    past = (logits.cumsum(1) / counts).softmax(-1).view(B, H, W, T - 1, -1)
    true_class = labels.view(B, 1, 1, 1, 1).expand(-1, H, W, T - 1, -1)
    return past.gather(-1, true_class).squeeze(-1).movedim(-1, 1)


def _threshold(
    p: Float[Tensor, "*maps H W"], tau_f: float, kappa: float
) -> Float[Tensor, "*maps 1 1"]:
    """Eq. 9 and 10: max(tau_f, tau_d) of each map."""
    std, mean = torch.std_mean(p, dim=(-2, -1), keepdim=True)
    return (mean + kappa * std).clamp(min=tau_f)


def _pool(
    features: Float[Tensor, "B T D H W"], keep: Bool[Tensor, "B T H W"]
) -> Float[Tensor, "B T D"]:
    """Eq. 11: the mean over all places, erased ones as zeros.

    A product of matrices: the erased map is never formed, and the graph saves only the mask. It is
    taken time first, as a student's features lie in memory: einsum would copy them otherwise.
    """
    kept = keep.to(features.dtype)
    pooled = torch.einsum("tbdhw,tbhw->tbd", features.transpose(0, 1), kept.transpose(0, 1))
    return pooled.transpose(0, 1) / (keep.shape[-2] * keep.shape[-1])


def _cross_entropy(
    logits: Float[Tensor, "B T K"],
    labels: Int[Tensor, " B"],
    reduction: Reduction,
    label_smoothing: float,
) -> Float[Tensor, ""]:
    """Eq. 12: the steps' cross-entropies, mean over the batch, sum or mean over time."""
    T = logits.shape[1]
    labels_per_step = labels.unsqueeze(1).expand(-1, T)
    mean = F.cross_entropy(logits.transpose(1, 2), labels_per_step, label_smoothing=label_smoothing)
    return mean * T if reduction == "sum" else mean


def _erased(keep: Bool[Tensor, "B T H W"]) -> dict[str, Tensor]:
    """How much of steps 2..T is erased."""
    erased = ~keep[:, 1:].flatten(2)
    everywhere = erased.all(-1)
    return {
        "erased": erased.sum() / max(erased.numel(), 1),
        "erased_everywhere": everywhere.sum() / max(everywhere.numel(), 1),
    }


@contextmanager
def _eval_mode(classify: Classify) -> Iterator[None]:
    """The module behind `classify`, if there is one, in eval mode."""
    owner = getattr(classify, "__self__", classify)
    modules = [m for m in owner.modules() if m.training] if isinstance(owner, nn.Module) else []
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module in modules:
            module.training = True


def _check(tau_f: float, kappa: float, reduction: str, label_smoothing: float) -> None:
    if not tau_f >= 0.0:
        raise ValueError(f"tau_f must be >= 0, not {tau_f}")
    if not kappa >= 0.0:
        raise ValueError(f"kappa must be >= 0, not {kappa}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0,1], not {label_smoothing}")
