"""TSE, temporal-self-erasing: each time step learns from the places that the steps before it did
not already recognize.

Liu et al.: "Towards More Discriminative Feature Learning in SNNs with Temporal-Self-Erasing
Supervision", AAAI 2025. Time is never looped over here: one call of the head predicts all places at
all steps, a cumulative sum averages them, a second call predicts all erased maps.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from estl.supervision.schedule import Positive, Schedule, Scheduled
from estl.supervision.steps import Criterion, Reduction, check_over_time, eval_mode, over_time
from estl.types import Batch, Classify, Loss, Output, Supervision


@torch.no_grad()
def tse_keep(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
    *,
    tau_f: float,
    kappa: float,
) -> Bool[Tensor, "B T H W"]:
    """The places that each step keeps (Liu et al. 2025, Eq. 7, 9 and 10).

    With z_s(i,j) the logits of the head at one place and y the true class:

        P_t(i,j) = softmax(1/(t-1) sum_{s<t} z_s(i,j))_y                (Eq. 7)
        tau_d    = mean(P_t) + kappa * std(P_t), over the H*W places    (Eq. 9, one per sample)
        erase (i,j) at step t  where  P_t(i,j) >= max(tau_f, tau_d)     (Eq. 10)

    Of a mixed sample with class weights y_k (mixup, cutmix) the map is the label-weighted one,
    P_t = sum_k y_k softmax(...)_k; the paper has one class alone.

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
        labels: class numbers (B,), in 0..K-1, or class weights (B,K), rows summing to 1. They are
            not checked, for a check would make a GPU wait in every step; PyTorch raises for a wrong
            number on the CPU and asserts on the device.
        tau_f: fixed threshold on the probability, >= 0; nothing is erased above 1.
        kappa: how many standard deviations above its mean a map is erased, >= 0.

    >>> features = torch.zeros(1, 2, 2, 1, 3)
    >>> features[0, 0, 1, 0, 2] = 5.0  # step 1 is sure of class 1 at the last place
    >>> tse_keep(features, torch.nn.Identity(), torch.tensor([1]), tau_f=0.5, kappa=1.0)[0, :, 0]
    tensor([[ True,  True,  True],
            [ True,  True, False]])
    """
    if not _has_past(features):
        return _all_places(features)
    p = _past_prediction(features, classify, labels)
    return with_first_step(~(p >= erasing_threshold(p, tau_f, kappa)))


def tse_loss(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
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

    averaged over the batch. Erased places count as zeros in the mean: it is over all H*W. A sample
    that is erased everywhere at a step is left with the head's answer to zeros.

    A `kappa` that is a tensor gets a gradient (no part of the paper). The value of the loss and the
    gradients of features and head are those above, of the hard mask; the gradient of kappa is
    exactly that of the relaxed loss, in which the steps after the first have the mask

        M_t = 1 - sigmoid((P_t - max(tau_f, tau_d)) / temperature)

    and the head is asked as at inference. A straight-through estimator of the loss rather than of
    the mask: the latter would take the relaxed mask's slope at the hard mask's loss, and be the
    gradient of neither. P_t passes no gradient. Where tau_f is above tau_d, kappa decides nothing
    and the gradient is 0.

    Args:
        features: maps F before pooling (B,T,D,H,W).
        classify: the whole head, any (rows,steps,D) to (rows,steps,K).
        labels: class numbers y (B,), in 0..K-1, or class weights (B,K), rows summing to 1.
        criterion: in place of CE: logits (B*T,K) and labels (B*T,) or class weights (B*T,K) to
            their mean, such as `nn.CrossEntropyLoss(label_smoothing=0.1)`.
        tau_f: as in `tse_keep`. Above 1 the loss is the sum of the steps' cross-entropies.
        kappa: as in `tse_keep`; a tensor is not checked, for this would make a GPU wait.
        temperature: of the relaxed mask, in units of probability, > 0; it counts only if `kappa` is
            a tensor. Towards 0 the relaxed mask becomes the hard one.
        reduction: over the time steps: "sum" as in the paper, or "mean" as in TET.
        label_smoothing: share of the target spread evenly over all classes, in [0,1]; 0 beside a
            criterion.

    Raises:
        ValueError: an option outside its range, or a criterion that returns no scalar.

    >>> head = torch.nn.Linear(8, 3)
    >>> features = torch.rand(2, 4, 8, 6, 6, requires_grad=True)
    >>> tse_loss(features, head, torch.tensor([0, 2]), tau_f=0.5, kappa=1.0).backward()
    >>> features.grad.shape
    torch.Size([2, 4, 8, 6, 6])
    """
    check_thresholds(tau_f, 0.0 if isinstance(kappa, Tensor) else kappa)
    check_over_time(reduction, label_smoothing, criterion)
    if not temperature > 0.0:
        raise ValueError(f"temperature must be > 0, not {temperature}")

    def loss(logits: Float[Tensor, "B T K"]) -> Float[Tensor, ""]:
        return over_time(logits, labels, criterion, reduction, label_smoothing)

    return _tse(features, classify, labels, loss, tau_f, kappa, temperature)[0]


class TSE(Scheduled, Supervision):
    """`tse_loss` as a supervision; the arguments are those of `tse_loss`, but for two.

    `tau_f` may be a `Schedule` over the training; see `Scheduled` for how its progress gets here.
    `learn_kappa` makes kappa a `Positive` that starts at `kappa` and learns through the relaxed
    mask: its learning rate is `part_lr: {kappa: ...}`, and weight decay spares it. Nothing but the
    loss pulls at it, which is lower where less is erased: on the digits kappa went from 1 to 1.8 in
    five epochs at a rate of 0.02, and the share erased fell from 15 % to 1 %.

    In training mode it erases. In eval mode nothing is erased: the loss is the steps'
    cross-entropies of the plain logits under the same reduction. (Inference is the mean over time,
    as always.) The labels are `Batch.target`.

    The term is "tse". In training, the metrics are "erased", the share of places erased, and
    "erased_everywhere", the share of (sample, step) pairs with no place left; both are over the
    steps 2..T and are 0 for T=1. A scheduled "tau_f" and a learned "kappa" are metrics too.

    Raises:
        ValueError: an option outside its range; in `forward`, an `Output` whose head does not read
            pooled features.

    >>> TSE(tau_f=0.3)
    TSE(tau_f=0.3, kappa=1.0, reduction='sum', label_smoothing=0.0)

    A recipe with a schedule and a learned kappa:

        supervision:
          class_path: estl.supervision.TSE
          init_args:
            tau_f: {start: 0.9, end: 0.5, shape: cosine, warmup: 0.1}
            learn_kappa: true
        learner: {part_lr: {kappa: 0.01}}
    """

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
        check_thresholds(0.0 if isinstance(tau_f, Schedule) else tau_f, kappa)
        check_over_time(reduction, label_smoothing, criterion)
        if not temperature > 0.0:
            raise ValueError(f"temperature must be > 0, not {temperature}")
        if learn_kappa and kappa == 0.0:
            raise ValueError(f"kappa must be > 0 to be learned, not {kappa}")
        self.tau_f, self.temperature = tau_f, temperature
        self.kappa = Positive(kappa) if learn_kappa else kappa
        self.reduction: Reduction = reduction
        self.label_smoothing = label_smoothing
        self.criterion = criterion

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        if not output.pooled_head:
            raise ValueError(
                "TSE asks the head about single places, and this student's head does not read "
                'pooled features: use VGGSNN(pooled=True) or Spikformer(readout="mean")'
            )

        def loss(logits: Float[Tensor, "B T K"]) -> Float[Tensor, ""]:
            return over_time(
                logits, batch.target, self.criterion, self.reduction, self.label_smoothing
            )

        if not self.training:
            total = loss(output.logits)
            return Loss(total, {"tse": total})
        tau_f = self.now(self.tau_f)
        kappa = self.kappa() if isinstance(self.kappa, Positive) else self.kappa
        features, classify = output.features, output.classify
        total, keep = _tse(features, classify, batch.target, loss, tau_f, kappa, self.temperature)
        metrics = erased(keep)
        if isinstance(self.tau_f, Schedule):
            metrics["tau_f"] = total.new_full((), tau_f)
        if isinstance(kappa, Tensor):
            metrics["kappa"] = kappa.detach()
        return Loss(total, {"tse": total}, metrics)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        fixed = "" if isinstance(self.kappa, Positive) else f"kappa={self.kappa}, "
        return (
            f"tau_f={self.tau_f}, {fixed}reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )


def _tse(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
    loss: Callable[[Tensor], Tensor],
    tau_f: float,
    kappa: float | Float[Tensor, ""],
    temperature: float,
) -> tuple[Float[Tensor, ""], Bool[Tensor, "B T H W"]]:
    """`tse_loss` with `loss` of the logits (B,T,K), and the mask."""
    if not _has_past(features):
        keep = _all_places(features)
        return loss(classify(_pool(features, keep))), keep
    p = _past_prediction(features, classify, labels)
    with torch.no_grad():
        keep = with_first_step(~(p >= erasing_threshold(p, tau_f, kappa)))
    total = loss(classify(_pool(features, keep)))
    if isinstance(kappa, Tensor):
        with torch.enable_grad(), eval_mode(classify):
            leaf = kappa.detach().requires_grad_()
            relaxed = relaxed_keep(p, tau_f, leaf, temperature)
            pooled = _pool(features.detach(), with_first_step(relaxed))
            (slope,) = torch.autograd.grad(loss(classify(pooled)), leaf)
        total = total + slope * (kappa - kappa.detach())  # adds 0, and the gradient
    return total, keep


def _has_past(features: Float[Tensor, "B T D H W"]) -> bool:
    """Whether there is an earlier step to ask, and a standard deviation over places."""
    _, T, _, H, W = features.shape
    return T > 1 and H * W > 1


def _all_places(features: Float[Tensor, "B T D H W"]) -> Bool[Tensor, "B T H W"]:
    """The mask that erases nothing."""
    B, T, _, H, W = features.shape
    return torch.ones(B, T, H, W, dtype=torch.bool, device=features.device)


def with_first_step(mask: Shaped[Tensor, "B S H W"]) -> Shaped[Tensor, "B T H W"]:
    """The mask of steps 2..T behind that of step 1, which keeps everything."""
    return torch.cat([torch.ones_like(mask[:, :1]), mask], 1)


@torch.no_grad()
def _past_prediction(
    features: Float[Tensor, "B T D H W"],
    classify: Classify,
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
) -> Float[Tensor, "B T-1 H W"]:
    """Eq. 7: P_t of steps t = 2..T."""
    B, T, _, H, W = features.shape
    places = features[:, :-1].permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B*H*W, T-1, D)
    with eval_mode(classify):
        logits = classify(places)
    # A sum over time and a spread over places are too fine for half precision.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = torch.arange(1, T, device=logits.device).unsqueeze(1)
    past = (logits.cumsum(1) / counts).softmax(-1).view(B, H, W, T - 1, -1)
    if labels.is_floating_point():
        return torch.einsum("bhwtk,bk->bthw", past, labels.to(past.dtype))
    true_class = labels.view(B, 1, 1, 1, 1).expand(-1, H, W, T - 1, -1)
    return past.gather(-1, true_class).squeeze(-1).movedim(-1, 1)


def erasing_threshold(
    p: Float[Tensor, "*maps H W"], tau_f: float, kappa: float | Float[Tensor, ""]
) -> Float[Tensor, "*maps 1 1"]:
    """Eq. 9 and 10: max(tau_f, tau_d) of each map."""
    std, mean = torch.std_mean(p, dim=(-2, -1), keepdim=True)
    return (mean + kappa * std).clamp(min=tau_f)


def relaxed_keep(
    p: Float[Tensor, "*maps H W"],
    tau_f: float,
    kappa: float | Float[Tensor, ""],
    temperature: float,
) -> Float[Tensor, "*maps H W"]:
    """1 - sigmoid((p - max(tau_f, tau_d)) / temperature), the mask that has a slope in kappa."""
    return torch.sigmoid((erasing_threshold(p, tau_f, kappa) - p) / temperature)


def _pool(
    features: Float[Tensor, "B T D H W"], keep: Shaped[Tensor, "B T H W"]
) -> Float[Tensor, "B T D"]:
    """Eq. 11: the mean over all places, erased ones as zeros.

    A product of matrices: the erased map is never formed, and the graph saves only the mask. It is
    taken time first, as a student's features lie in memory: einsum would copy them otherwise.
    """
    kept = keep.to(features.dtype)
    pooled = torch.einsum("tbdhw,tbhw->tbd", features.transpose(0, 1), kept.transpose(0, 1))
    return pooled.transpose(0, 1) / (keep.shape[-2] * keep.shape[-1])


def erased(keep: Bool[Tensor, "B T H W"]) -> dict[str, Tensor]:
    """How much of steps 2..T is erased."""
    erased = ~keep[:, 1:].flatten(2)
    everywhere = erased.all(-1)
    return {
        "erased": erased.sum() / max(erased.numel(), 1),
        "erased_everywhere": everywhere.sum() / max(everywhere.numel(), 1),
    }


def check_thresholds(tau_f: float, kappa: float) -> None:
    """Raise ValueError for thresholds outside their range."""
    if not tau_f >= 0.0:
        raise ValueError(f"tau_f must be >= 0, not {tau_f}")
    if not kappa >= 0.0:
        raise ValueError(f"kappa must be >= 0, not {kappa}")
