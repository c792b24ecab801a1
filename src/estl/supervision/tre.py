"""TRE, temporal representation enhancement: each time step learns from the channels that the steps
before it did not already use.

"Temporal Representation Enhancement (TRE): Learning to Forget Dominant Patterns for Enhanced
Temporal Spiking Features", CVPR 2026, the successor of TSE. It is implemented from a description of
the paper; its equations were not available. What the description leaves open is decided in the
docstrings here.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from estl.supervision import steps
from estl.supervision.schedule import Schedule, Scheduled, unscheduled
from estl.supervision.steps import Criterion, Reduction, StepLoss
from estl.types import Batch, Classify, Labels, Loss, Output, Supervision


@torch.no_grad()
def tre_keep(
    pooled: Float[Tensor, "B T D"],
    classify: Classify,
    labels: Labels,
    *,
    theta0: float,
    lamb: float,
) -> Bool[Tensor, "B T D"]:
    """The channels that each step keeps.

    With f_s the pooled features and z_s,y the logit of the true class, at step t and channel d:

        c_t(d) = sum_{s<t} f_s(d) * dZ_t/df_s(d),   Z_t = 1/(t-1) sum_{s<t} z_s,y
        a_t(d) = max(c_t(d), 0) / max_d' max(c_t(d'), 0)
        erase d at step t  where  a_t(d) >= max(theta0, mean_d a_t + lamb * std_d a_t)

    Decided here:

    * The contribution is gradient times input. For a single linear layer it is that of the
      description, w_yd times the mean of f_s(d) over s < t; it works for any other head too, where
      a spiking layer passes its surrogate gradient. Ablation would call the head D times.
    * It is relative to the largest, so that theta0 means the same for any width and scale of the
      features: 1 is the channel that says most for the class. Evidence against the class counts
      as 0 (the ReLU of Grad-CAM, Selvaraju et al. 2017) and is kept; if there is none for the
      class, everything is kept.
    * The standard deviation is the unbiased one, over the D channels of one sample and step.
    * For a mixed sample with class weights y_k the true class's logit is sum_k y_k z_k.
    * Step 1 has no past and keeps everything; so does every step if there is one channel.

    The mask has no gradient, and the head is called in eval mode, see `tse_keep`.

    Args:
        pooled: features f before the head (B,T,D).
        classify: the whole head, (B*(T-1),T-1,D) to (B*(T-1),T-1,K): all steps t at once, each with
            a copy of the features.
        labels: class numbers (B,), in 0..K-1, or class weights (B,K), rows summing to 1.
        theta0: fixed threshold on a_t, > 0; above 1 nothing is erased.
        lamb: contributions so many standard deviations above their mean are erased, >= 0.

    Raises:
        TypeError: arguments in another order.

    >>> head = torch.nn.Linear(3, 2, bias=False)
    >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0.2, -1.0], [0.0, 0.0, 0.0]]))
    >>> tre_keep(torch.ones(1, 2, 3), head, torch.tensor([0]), theta0=0.5, lamb=1.0)[0]
    tensor([[ True,  True,  True],
            [False,  True,  True]])
    """
    steps.check_order("tre_keep(pooled, classify, labels)", pooled, classify, labels)
    B, T, D = pooled.shape
    keep = torch.ones(B, T, D, dtype=torch.bool, device=pooled.device)
    if T > 1 and D > 1:
        a = _past_contribution(pooled, classify, labels)
        keep[:, 1:] = ~(a >= steps.erasing_threshold(a, theta0, lamb, dim=(-1,)))
    return keep


def tre_loss(
    pooled: Float[Tensor, "B T D"],
    classify: Classify,
    labels: Labels,
    criterion: Criterion | None = None,
    theta0: float = 0.5,
    lamb: float = 1.0,
    *,
    reduction: Reduction = "sum",
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The loss of temporal representation enhancement.

        g_t(d) = f_t(d) M_t(d) * D / sum_d' M_t(d')      (M of `tre_keep`)
        L      = sum_t CE(head(g)_t, y)

    averaged over the batch. The factor is that of dropout, with the share actually kept in place of
    its expectation. If a step loses all channels of a sample, the head sees zeros there. The
    defaults of theta0 and lamb are those of TSE's thresholds, not the paper's.

    Args:
        pooled: features f before the head (B,T,D).
        classify: the whole head, any (rows,steps,D) to (rows,steps,K).
        labels: class numbers y (B,), in 0..K-1, or class weights (B,K), rows summing to 1.
        criterion, reduction, label_smoothing: as in `StepLoss`; a criterion replaces CE.
        theta0: as in `tre_keep`. Above 1 the loss is the sum of the steps' cross-entropies.
        lamb: as in `tre_keep`.

    Raises:
        ValueError: an option outside its range, or a criterion that returns no scalar.
        TypeError: arguments in another order.

    >>> head = torch.nn.Linear(8, 3)
    >>> pooled = torch.rand(2, 4, 8, requires_grad=True)
    >>> tre_loss(pooled, head, torch.tensor([0, 2])).backward()
    >>> pooled.grad.shape
    torch.Size([2, 4, 8])
    """
    steps.check_order("tre_loss(pooled, classify, labels)", pooled, classify, labels)
    _check(theta0, lamb)
    step_loss = StepLoss(reduction, label_smoothing, criterion)
    keep = tre_keep(pooled, classify, labels, theta0=theta0, lamb=lamb)
    return step_loss(classify(_rescale(pooled, keep)), labels)


class TRE(Scheduled, Supervision):
    """`tre_loss` as a supervision, with the same arguments.

    The pooled features are the mean of `Output.features` over places. `theta0` may be a `Schedule`.
    Since contributions are relative, TRE erases from the first batch on unless there is a warm-up.
    In eval mode nothing is erased. The labels are `Batch.target`.

    The term is "tre". In training, the metrics are "erased_channels", the share of channels erased
    over the steps 2..T, and "erased_all_channels", the share of (sample, step) pairs with none
    left; also "theta0" if scheduled.

    Raises:
        ValueError: an option outside its range; in `forward`, an `Output` whose head does not read
            pooled features.

    >>> TRE(lamb=2.0)
    TRE(theta0=0.5, lamb=2.0, reduction='sum', label_smoothing=0.0)
    """

    reads_images = False

    def __init__(
        self,
        theta0: float | Schedule = 0.5,
        lamb: float = 1.0,
        reduction: Reduction = "sum",
        label_smoothing: float = 0.0,
        *,
        criterion: Criterion | None = None,
    ) -> None:
        super().__init__()
        _check(theta0, lamb)
        self.theta0, self.lamb = theta0, lamb
        self.step_loss = StepLoss(reduction, label_smoothing, criterion)
        self.criterion = criterion  # if a module, registered as a child: `to` moves its weights

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        steps.check_pooled_head("TRE", output)
        if not self.training:
            total = self.step_loss(output.logits, batch.target)
            return Loss(total, {"tre": total})
        pooled, classify = output.features.mean((-2, -1)), output.classify
        theta0 = self.now(self.theta0)
        keep = tre_keep(pooled, classify, batch.target, theta0=theta0, lamb=self.lamb)
        total = self.step_loss(classify(_rescale(pooled, keep)), batch.target)
        metrics = self.scheduled(total)
        metrics["erased_channels"], metrics["erased_all_channels"] = steps.erased(keep)
        return Loss(total, {"tre": total}, metrics)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return f"theta0={self.theta0}, lamb={self.lamb}, {self.step_loss}"


def _past_contribution(
    pooled: Float[Tensor, "B T D"], classify: Classify, labels: Labels
) -> Float[Tensor, "B S D"]:
    """a_t of steps t = 2..T; S = T-1."""
    B, T, D = pooled.shape
    S = T - 1
    with torch.enable_grad(), steps.eval_mode(classify):
        # Row (b,t) holds all of sample b, and its mean is taken at step t: one gradient serves all
        # t, though in a spiking head z_s depends on all steps up to s.
        past = pooled[:, :-1].detach().repeat_interleave(S, 0).requires_grad_()  # (B*S, S, D)
        z = steps.of_true_class(classify(past), labels.repeat_interleave(S, 0))
        mean = steps.running_mean(z).view(B, S, S).diagonal(dim1=1, dim2=2).sum()
        (slope,) = torch.autograd.grad(mean, past)
    # A sum over time and a deviation over channels need more than half precision.
    c = (past.detach() * slope).to(torch.promote_types(pooled.dtype, torch.float32)).sum(1)
    c = c.view(B, S, D).clamp(min=0.0)
    return c / c.amax(-1, keepdim=True).clamp(min=torch.finfo(c.dtype).tiny)


def _rescale(pooled: Float[Tensor, "B T D"], keep: Bool[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """The kept channels, divided by the share of channels kept."""
    kept = keep.to(pooled.dtype).sum(-1, keepdim=True).clamp(min=1.0)
    return pooled * keep * (keep.shape[-1] / kept)


def _check(theta0: float | Schedule, lamb: float) -> None:
    values = unscheduled(theta0=theta0).values()
    for value in (theta0.start, theta0.end) if isinstance(theta0, Schedule) else values:
        if value is not None and not value > 0.0:
            raise ValueError(f"theta0 must be > 0, not {value}")
    steps.check_not_negative(lamb=lamb)
