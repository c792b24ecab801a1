"""TSE, temporal-self-erasing: each time step learns from the places that the steps before it did
not already recognize.

Liu et al.: "Towards More Discriminative Feature Learning in SNNs with Temporal-Self-Erasing
Supervision", AAAI 2025. There is no loop over time: one call of the head classifies all places at
all steps, a cumulative sum averages these over time, and a second call classifies all erased maps.
"""

from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from estl.neurons.linear import linear
from estl.neurons.norm import hooked
from estl.supervision import steps
from estl.supervision.schedule import Positive, Schedule, Scheduled, unscheduled
from estl.supervision.steps import Criterion, Reduction, StepLoss
from estl.types import Batch, Classify, Labels, Loss, Output, Supervision


def tse_keep(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Labels,
    *,
    tau_f: float,
    kappa: float,
) -> Bool[Tensor, "B T H W"]:
    """The places that each step keeps (Liu et al. 2025, Eq. 7, 9 and 10).

    With z_s(i,j) the logits of the head for one place and y the true class:

        P_t(i,j) = softmax(1/(t-1) sum_{s<t} z_s(i,j))_y                (Eq. 7)
        tau_d    = mean(P_t) + kappa * std(P_t), over the H*W places    (Eq. 9, one per sample)
        erase (i,j) at step t  where  P_t(i,j) >= max(tau_f, tau_d)     (Eq. 10)

    For a mixed sample (mixup, CutMix) with class weights y_k the map is the label-weighted one,
    P_t = sum_k y_k softmax(...)_k; the paper has only one class.

    The standard deviation is the unbiased one. Step 1 has no past and keeps everything. So does
    every step of a map with one place, which has no standard deviation.

    The mask has no gradient. The head's module (or the module whose method it is) is in eval mode
    meanwhile: there is no dropout, and no running statistics of a batch norm are updated.

    Args:
        features: maps before pooling (B,T,D,H,W).
        classify: the whole head, (B*H*W,T-1,D) to (B*H*W,T-1,K): every place is a row of its own,
            and a spiking layer in it runs over the steps.
        labels: class numbers (B,), in 0..K-1, or class weights (B,K), rows summing to 1. They are
            not checked, since the host would wait for a GPU; PyTorch raises for a wrong number.
        tau_f: fixed threshold on the probability, >= 0; above 1 nothing is erased.
        kappa: places this many standard deviations above the mean of P_t are erased, >= 0.

    Raises:
        TypeError: arguments in another order.

    >>> features = torch.zeros(1, 2, 2, 1, 3)
    >>> features[0, 0, 1, 0, 2] = 5.0  # step 1 is sure of class 1 at the last place
    >>> tse_keep(features, torch.nn.Identity(), torch.tensor([1]), tau_f=0.5, kappa=1.0)[0, :, 0]
    tensor([[ True,  True,  True],
            [ True,  True, False]])
    """
    steps.check_order("tse_keep(features, classify, labels)", features, classify, labels)
    return _mask(features, classify, labels, tau_f, kappa)[0]


def tse_loss(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Labels,
    criterion: Criterion | None = None,
    tau_f: float = 0.5,
    kappa: float | Float[Tensor, ""] = 1.0,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "sum",
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The loss of temporal-self-erasing supervision (Liu et al. 2025, Eq. 7 to 12).

        pooled_t = 1/(H*W) sum_{i,j} M_t(i,j) F_t(i,j)     (Eq. 11, M of `tse_keep`)
        L        = sum_t CE(head(pooled)_t, y)             (Eq. 12)

    averaged over the batch. Erased places count as zeros in the mean, which is over all H*W. If a
    step loses all places of a sample, the head sees zeros there.

    A `kappa` that is a tensor gets a gradient (not part of the paper). The value of the loss and
    the gradients of features and head are those above, of the hard mask; the gradient of kappa is
    exactly that of the relaxed loss, in which the steps after the first have the mask

        M_t = 1 - sigmoid((P_t - max(tau_f, tau_d)) / temperature)

    and the head is in eval mode. This is a straight-through estimator of the loss. One of the mask
    would combine the relaxed mask's slope with the hard mask's loss, which is the gradient of
    neither. P_t passes no gradient. Where tau_f exceeds tau_d, kappa has no effect and no gradient.

    Args:
        features: maps F before pooling (B,T,D,H,W).
        classify: the whole head, any (rows,steps,D) to (rows,steps,K).
        labels: class numbers y (B,), in 0..K-1, or class weights (B,K), rows summing to 1.
        criterion, reduction, label_smoothing: as in `StepLoss`; a criterion replaces CE.
        tau_f: as in `tse_keep`. Above 1 the loss is the sum of the steps' cross-entropies.
        kappa: as in `tse_keep`; a tensor is not checked, since the host would wait for a GPU.
        temperature: of the relaxed mask, in units of probability, > 0; used only if `kappa` is a
            tensor. As it approaches 0, the relaxed mask becomes the hard one.

    Raises:
        ValueError: an option outside its range, or a criterion that returns no scalar.
        TypeError: arguments in another order.

    >>> head = torch.nn.Linear(8, 3)
    >>> features = torch.rand(2, 4, 8, 6, 6, requires_grad=True)
    >>> tse_loss(features, head, torch.tensor([0, 2]), tau_f=0.5, kappa=1.0).backward()
    >>> features.grad.shape
    torch.Size([2, 4, 8, 6, 6])
    """
    steps.check_order("tse_loss(features, classify, labels)", features, classify, labels)
    _check(tau_f, kappa, temperature)
    step_loss = StepLoss(reduction, label_smoothing, criterion)
    return _tse(features, classify, labels, step_loss, tau_f, kappa, temperature)[0]


class TSE(Scheduled, Supervision):
    """`tse_loss` as a supervision, with the same arguments and two more choices.

    `tau_f` may be a `Schedule` over the training. `learn_kappa` makes kappa a `Positive` that
    starts at `kappa` and learns through the relaxed mask: its learning rate is
    `part_lr: {kappa: ...}`, and it has no weight decay. Only the loss drives it, and the loss is
    lower if less is erased, so that kappa may rise until nothing is erased (docs/log.md).

    It erases in training mode only. In eval mode the loss is that of the plain logits, with the
    same criterion and reduction. The labels are `Batch.target`.

    The term is "tse". In training, the metrics are "erased", the share of places erased over the
    steps 2..T, and "erased_everywhere", the share of (sample, step) pairs with no place left; also
    "tau_f" if scheduled and "kappa" if learned.

    Raises:
        ValueError: an option outside its range; in `forward`, an `Output` whose head does not read
            pooled features.

    >>> TSE(tau_f=0.3)
    TSE(tau_f=0.3, kappa=1.0, reduction='sum', label_smoothing=0.0)
    """

    reads_images = False

    def __init__(
        self,
        tau_f: float | Schedule = 0.5,
        kappa: float = 1.0,
        reduction: Reduction = "sum",
        label_smoothing: float = 0.0,
        *,
        criterion: Criterion | None = None,
        learn_kappa: bool = False,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        _check(tau_f, kappa, temperature)
        if learn_kappa and kappa == 0.0:
            raise ValueError(f"kappa must be > 0 to be learned, not {kappa}")
        self.tau_f, self.temperature = tau_f, temperature
        self.kappa = Positive(kappa) if learn_kappa else kappa
        self.step_loss = StepLoss(reduction, label_smoothing, criterion)
        self.criterion = criterion  # if a module, registered as a child: `to` moves its weights

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        steps.check_pooled_head("TSE", output)
        if not self.training:
            total = self.step_loss(output.logits, batch.target)
            return Loss(total, {"tse": total})
        args = output.features, output.classify, batch.target, self.step_loss
        tau_f, kappa = self._thresholds()
        total, keep = _tse(*args, tau_f, kappa, self.temperature)
        metrics = self.scheduled(total)
        metrics["erased"], metrics["erased_everywhere"] = steps.erased(keep)
        if isinstance(kappa, Tensor):
            metrics["kappa"] = kappa.detach()
        return Loss(total, {"tse": total}, metrics)

    def keep(self, output: Output, batch: Batch) -> Bool[Tensor, "B T H W"]:
        """The places that each step would keep in training; see `tse_keep`."""
        steps.check_pooled_head("TSE", output)
        tau_f, kappa = self._thresholds()
        return _mask(output.features, output.classify, batch.target, tau_f, kappa)[0]

    def past(
        self, output: Output, batch: Batch
    ) -> tuple[Float[Tensor, "B S H W"], Float[Tensor, "B S 1 1"]] | None:
        """P_t and max(tau_f, tau_d) of steps t = 2..T, S of them; None if `tse_keep` has no past
        or only one place.
        """
        tau_f, kappa = self._thresholds()
        p = _mask(output.features, output.classify, batch.target, tau_f, kappa)[1]
        return None if p is None else (p, steps.erasing_threshold(p, tau_f, kappa))

    def _thresholds(self) -> tuple[float, float | Tensor]:
        """tau_f at the current progress, and kappa."""
        kappa = self.kappa() if isinstance(self.kappa, Positive) else self.kappa
        return self.now(self.tau_f), kappa

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        kappa = "" if isinstance(self.kappa, Positive) else f"kappa={self.kappa}, "
        return f"tau_f={self.tau_f}, {kappa}{self.step_loss}"


def _tse(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Labels,
    step_loss: StepLoss,
    tau_f: float,
    kappa: float | Float[Tensor, ""],
    temperature: float,
) -> tuple[Float[Tensor, ""], Bool[Tensor, "B T H W"]]:
    """The loss, and the mask."""
    keep, p = _mask(features, classify, labels, tau_f, kappa)
    total = step_loss(classify(_pool(features, keep)), labels)
    if isinstance(kappa, Tensor) and p is not None:
        with torch.enable_grad(), steps.eval_mode(classify):
            leaf = kappa.detach().requires_grad_()
            relaxed = relaxed_keep(p, tau_f, leaf, temperature)
            relaxed = torch.cat([torch.ones_like(relaxed[:, :1]), relaxed], 1)
            loss = step_loss(classify(_pool(features.detach(), relaxed)), labels)
            (slope,) = torch.autograd.grad(loss, leaf)
        total = total + slope * (kappa - kappa.detach())  # adds 0, and the gradient
    return total, keep


@torch.no_grad()
def _mask(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Labels,
    tau_f: float,
    kappa: float | Float[Tensor, ""],
) -> tuple[Bool[Tensor, "B T H W"], Float[Tensor, "B T-1 H W"] | None]:
    """The mask, and P_t of steps t = 2..T, or None if there is no past or only one place."""
    steps.check_batch("TSE", features, labels)
    B, T, _, H, W = features.shape
    keep = torch.ones(B, T, H, W, dtype=torch.bool, device=features.device)
    if T == 1 or H * W == 1:
        return keep, None
    p = _past_prediction(features, classify, labels)
    keep[:, 1:] = ~(p >= steps.erasing_threshold(p, tau_f, kappa))
    return keep, p


@torch.no_grad()
def _past_prediction(
    features: Float[Tensor, "B T D H W"], classify: Classify, labels: Labels
) -> Float[Tensor, "B T-1 H W"]:
    """Eq. 7: P_t of steps t = 2..T."""
    B, _, _, H, W = features.shape
    # Time first, as a student's features lie in memory and its head reads them: no copy.
    steps_first = features.transpose(0, 1)[:-1].movedim(2, -1).flatten(1, 3)
    with steps.eval_mode(classify):
        if type(classify) is nn.Linear and not hooked(classify):  # any order suits it, in one call
            z = linear(steps_first, classify.weight, classify.bias).transpose(0, 1)
        else:
            z = classify(steps_first.transpose(0, 1))  # (B*H*W, T-1, D)
    z = z.to(torch.promote_types(z.dtype, torch.float32)).unflatten(0, (B, H, W))
    sums = enumerate(accumulate(z.unbind(3), torch.add), 1)
    # One step after the other: only the true class of each is kept, and nothing is written twice.
    return torch.stack([steps.of_true_class((s / t).softmax(-1), labels) for t, s in sums], 1)


def relaxed_keep(
    p: Float[Tensor, "*maps H W"],
    tau_f: float,
    kappa: float | Float[Tensor, ""],
    temperature: float,
) -> Float[Tensor, "*maps H W"]:
    """1 - sigmoid((p - max(tau_f, tau_d)) / temperature), the mask with a gradient in kappa."""
    return torch.sigmoid((steps.erasing_threshold(p, tau_f, kappa) - p) / temperature)


def _pool(
    features: Float[Tensor, "B T D H W"], keep: Shaped[Tensor, "B T H W"]
) -> Float[Tensor, "B T D"]:
    """Eq. 11: the mean over all places, erased ones as zeros; the graph saves only the mask."""
    if keep.dtype == torch.bool:
        return steps.kept_mean(features, keep)
    # Time first, as a student's features lie in memory: einsum would copy them otherwise.
    pooled = torch.einsum("tbdhw,tbhw->tbd", features.transpose(0, 1), keep.transpose(0, 1))
    return pooled.transpose(0, 1) / (keep.shape[-2] * keep.shape[-1])


def _check(tau_f: float | Schedule, kappa: float | Tensor, temperature: float) -> None:
    steps.check_not_negative(**unscheduled(tau_f=tau_f), kappa=kappa)
    if not temperature > 0.0:
        raise ValueError(f"temperature must be > 0, not {temperature}")
