"""What the supervisions over time share: the loss at every step, and how the past of a step decides
what it is not trained on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from estl.types import UNLABELED, Classify, Labels, Output

Reduction = Literal["sum", "mean"]

Criterion = nn.Module | Callable[[Tensor, Tensor], Tensor]
"""Maps logits (rows,K) and labels (rows,), or class weights (rows,K), to a mean over the rows."""


@dataclass(frozen=True)
class StepLoss:
    """A criterion at every time step: its mean over the batch, then the sum or mean over time.

    Args:
        reduction: over the time steps: "sum" as in TSE, or "mean" as in TET.
        label_smoothing: share of the target spread evenly over all classes, in [0,1]; 0 with a
            criterion.
        criterion: replaces the cross-entropy, such as `nn.CrossEntropyLoss(weight=...)`; called
            once, with every step of every sample as a row.
        ignore_index: the label of places and samples left out of the mean, as in `F.cross_entropy`.

    Raises:
        ValueError: an option outside its range; when called, a criterion that returns no scalar.

    >>> loss = StepLoss("sum")(torch.zeros(2, 4, 10), torch.tensor([3, 7]))
    >>> torch.testing.assert_close(loss, 4 * torch.tensor(10.0).log())
    """

    reduction: Reduction = "sum"
    label_smoothing: float = 0.0
    criterion: Criterion | None = None
    ignore_index: int = UNLABELED

    def __post_init__(self) -> None:
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', not {self.reduction!r}")
        check_smoothing(self.label_smoothing)
        if self.criterion is not None and self.label_smoothing:
            raise ValueError(
                f"label_smoothing must be 0 beside a criterion, not {self.label_smoothing}: give "
                "it to the criterion"
            )

    def __call__(
        self,
        logits: Float[Tensor, "B T K *places"],
        labels: Int[Tensor, "B *places"] | Float[Tensor, "B K"],
        keep: Bool[Tensor, "B T *places"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of all steps; cross-entropies of places that are not in `keep` count as 0.

        `labels` are class numbers, or class weights summing to 1. If all labels are
        `ignore_index`, the loss is 0 with `keep`, else NaN.
        """
        check_batch("a loss of every step", logits, labels)
        T = logits.shape[1]
        rows, targets = logits.flatten(0, 1), labels.repeat_interleave(T, 0)
        smoothing, ignored = self.label_smoothing, self.ignore_index
        ce = partial(F.cross_entropy, rows, targets, None, None, ignored, label_smoothing=smoothing)
        if self.criterion is not None:
            mean = self.criterion(rows, targets)
        elif keep is None:
            mean = ce()
        else:
            kept = ce(reduction="none") * keep.flatten(0, 1)
            mean = kept.sum() / (targets != ignored).sum().clamp(min=1)
        if mean.ndim:
            raise ValueError(
                f"criterion must return a scalar, the mean over its rows, not {tuple(mean.shape)}"
            )
        return mean * T if self.reduction == "sum" else mean

    def __str__(self) -> str:
        return f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"


class WeightedCE(nn.Module):
    """Cross-entropy with a weight for each class: a `criterion` that a recipe can name.

        sum_i w(y_i) CE(z_i, y_i) / sum_i w(y_i)

    as `nn.CrossEntropyLoss(weight)`, whose tensor no recipe can hold; for class weights y_ik of
    mixed samples, sum_ik w_k y_ik (-log softmax(z_i)_k) / n, as there.

    Args:
        weight: one for each of the classes 0, 1, ..., each >= 0 and not all 0.

    Raises:
        ValueError: a weight outside its range; in `forward`, logits of another number of classes.

    >>> rare = WeightedCE([1.0, 3.0])
    >>> rare(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])).item()  # of each class alike
    0.6931...
    """

    weight: Tensor

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        if not (weight and all(0.0 <= w < float("inf") for w in weight) and any(weight)):
            raise ValueError(f"weight must be numbers >= 0, one a class, not all 0: not {weight}")
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, logits: Float[Tensor, "rows K"], labels: Labels) -> Float[Tensor, ""]:
        """The weighted mean over the rows."""
        if logits.shape[1] != len(self.weight):
            raise ValueError(
                f"WeightedCE has {len(self.weight)} weights for {logits.shape[1]} classes: give "
                "one each"
            )
        return F.cross_entropy(logits, labels, self.weight.to(logits.dtype))

    def extra_repr(self) -> str:
        """The weights, as `print` shows them."""
        return f"{self.weight.tolist()}"


def check_smoothing(label_smoothing: float) -> None:
    """Raise ValueError for a share outside [0,1]."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0,1], not {label_smoothing}")


def check_not_negative(**thresholds: object) -> None:
    """Raise ValueError for what is not a number, or is below 0; a tensor is not checked, since that
    would make the host wait for a GPU.
    """
    for name, value in thresholds.items():
        if isinstance(value, Tensor):
            continue
        if not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, not {value!r}")
        if not value >= 0.0:
            raise ValueError(f"{name} must be >= 0, not {value}")


def check_order(call: str, *args: object) -> None:
    """Raise TypeError unless `args` are a tensor, a head and a tensor, as in `call`."""
    features, classify, labels = args
    if not (isinstance(features, Tensor) and callable(classify) and isinstance(labels, Tensor)):
        given = ", ".join(type(arg).__name__ for arg in args)
        raise TypeError(f"the order is {call}, a tensor, the head and a tensor; got ({given})")
    check_batch(call, features, labels)


def check_batch(call: str, x: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless `x` (B,T,...) has a row for each of the labels (B,) or (B,K)."""
    if len(x) != len(labels):
        raise ValueError(
            f"{call}: shape {tuple(x.shape)} is of {len(x)} samples and {len(labels)} have a "
            "label: samples come first (B,T,...), of time first transpose(0, 1)"
        )


def check_samples(name: str, output: Output, labels: Tensor) -> None:
    """Raise ValueError unless `output` has as many samples as there are labels."""
    if len(output.logits) != len(labels):
        raise ValueError(
            f"{name} got {len(labels)} labels for {len(output.logits)} samples: give one each"
        )


def check_pooled_head(name: str, output: Output) -> None:
    """Raise ValueError if the head of `output` does not read pooled features."""
    if not output.pooled_head:
        raise ValueError(
            f"{name} needs a head on pooled features, which this student does not have: use "
            'VGGSNN(pooled=True) or Spikformer(readout="mean")'
        )


@contextmanager
def eval_mode(classify: Classify) -> Iterator[None]:
    """Put the module behind `classify`, if there is one, in eval mode."""
    owner = getattr(classify, "__self__", classify)
    modules = [m for m in owner.modules() if m.training] if isinstance(owner, nn.Module) else []
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module in modules:
            module.training = True


def running_mean(x: Float[Tensor, "B T *rest"]) -> Float[Tensor, "B T *rest"]:
    """Mean over the steps 1..t, for every t; in at least float32, which a sum over time needs.

    >>> running_mean(torch.tensor([[1.0, 3.0]]))
    tensor([[1., 2.]])
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    steps = torch.arange(1, x.shape[1] + 1, device=x.device)
    return x.cumsum(1) / steps.view(-1, *[1] * (x.ndim - 2))


def kept_mean(
    features: Float[Tensor, "B T D H W"], keep: Bool[Tensor, "B T H W"]
) -> Float[Tensor, "B T D"]:
    """The mean over the H*W places of what is kept, 1/(H*W) sum_{i,j} M_t(i,j) F_t(i,j).

    The erased map exists for one step at a time, and the gradient is written once, in the memory
    order of the features; the graph saves only the mask, which has no gradient.

    >>> kept_mean(torch.ones(1, 1, 1, 1, 4), torch.tensor([[[[True, True, False, True]]]]))
    tensor([[[0.7500]]])
    """
    return cast(Tensor, _KeptMean.apply(features, keep))


class _KeptMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.strides = torch.empty_like(features, device="meta").stride()  # dense, even for a view
        kept = keep.unsqueeze(2).to(features.dtype)  # once: a product with booleans converts them
        erased = torch.empty_like(features[:, 0])
        each = zip(features.unbind(1), kept.unbind(1), strict=True)
        means = [torch.mul(f, kept_t, out=erased).mean((-2, -1)) for f, kept_t in each]
        return torch.stack(means, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        places = keep.shape[-2:]
        each, kept = (grad / places.numel())[..., None, None], keep.unsqueeze(2).to(grad.dtype)
        if torch.is_grad_enabled():  # double backward
            return each * kept, None
        shape = (*grad.shape, *places)
        out = torch.empty_strided(shape, ctx.strides, dtype=grad.dtype, device=grad.device)
        return torch.mul(each, kept, out=out), None


def of_true_class(x: Float[Tensor, "B *rest K"], labels: Labels) -> Float[Tensor, "B *rest"]:
    """The entry x_y of each sample's class y; of a mixed sample, sum_k y_k x_k."""
    if labels.is_floating_point():  # no matrix product, which autocast would round
        return (x * labels.to(x.dtype).view(len(x), *[1] * (x.ndim - 2), -1)).sum(-1)
    index = labels.view(-1, *[1] * (x.ndim - 1)).expand(*x.shape[:-1], 1)
    return x.gather(-1, index).squeeze(-1)


def erasing_threshold(
    x: Float[Tensor, "*all"], fixed: float, factor: float | Tensor, dim: tuple[int, ...] = (-2, -1)
) -> Float[Tensor, "*kept"]:
    """max(fixed, mean + factor * std) over the dimensions `dim`, which are kept; unbiased std."""
    std, mean = torch.std_mean(x, dim=dim, keepdim=True)
    return (mean + factor * std).clamp(min=fixed)


def erased(
    keep: Bool[Tensor, "B T *rest"], valid: Bool[Tensor, "B *rest"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Over steps 2..T, the share erased, and the share of (sample, step) pairs with nothing left.

    Both are 0 if T is 1. Only `valid` entries are counted, and samples that have any.

    >>> keep = torch.tensor([[[True, True], [False, True]], [[True, True], [False, False]]])
    >>> erased(keep)
    (tensor(0.7500), tensor(0.5000))
    """
    gone = ~keep[:, 1:].flatten(2)
    some = torch.ones_like(gone) if valid is None else valid.flatten(1)[:, None].expand_as(gone)
    everything = (gone | ~some).all(-1) & some.any(-1)
    pairs = some.any(-1).sum().clamp(min=1)
    return (gone & some).sum() / some.sum().clamp(min=1), everything.sum() / pairs
