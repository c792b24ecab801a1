"""Several supervisions at once."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from estl.supervision.steps import check_samples
from estl.types import Batch, Loss, Output, Supervision


class Sum(Supervision):
    """The weighted sum of supervisions: total = sum_i w_i total_i, terms likewise, metrics merged.

    A part of weight 0 is neither computed nor trained nor reported.

    A hybrid of TSE and TET, w TSE + (1 - w) TET, is a sum with the weights w and 1 - w; at w = 1 it
    is TSE, at w = 0 it is TET. TSE's loss is a sum over T and TET's a mean: TSE(reduction="mean")
    puts both on one scale.

    Args:
        supervisions: what is summed, at least one.
        weights: one factor each, or None for all 1.

    Raises:
        ValueError: no supervision; `weights` of another length, negative or all 0; in `forward`,
            not as many labels as samples, or two supervisions that report a term or a metric of the
            same name.

    >>> from estl.supervision import MeanCE, TET
    >>> Sum([MeanCE(), TET()], weights=[1.0, 0.5]).weights
    [1.0, 0.5]
    """

    def __init__(
        self, supervisions: Sequence[Supervision], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not supervisions:
            raise ValueError("Sum needs at least one supervision, got none")
        self.supervisions = nn.ModuleList(supervisions)
        self.weights = [1.0] * len(supervisions) if weights is None else list(weights)
        if len(self.weights) != len(supervisions):
            raise ValueError(
                f"Sum got {len(self.weights)} weights for {len(supervisions)} supervisions: "
                "give one each"
            )
        if not all(0.0 <= weight < math.inf for weight in self.weights):
            raise ValueError(
                f"Sum got the weights {self.weights}: each must be 0 or more, and finite"
            )
        if not any(self.weights):
            raise ValueError(f"Sum got the weights {self.weights}: one must not be 0")
        self.extends = any(part.extends for part in self._parts())
        self.keeps_images = any(part.keeps_images for part in self._parts())
        self.reads_images = any(part.reads_images for part in self._parts())
        for weight, supervision in zip(self.weights, supervisions, strict=True):
            if weight == 0:  # DDP refuses trained parameters that no loss reaches
                supervision.requires_grad_(False)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        check_samples("Sum", output, batch.label)
        totals: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for weight, supervision in zip(self.weights, self.supervisions, strict=True):
            if weight == 0:
                continue
            assert isinstance(supervision, Supervision)
            seen = batch if supervision.extends else batch.labeled
            loss = supervision(output.first(len(seen.label)), seen)
            totals.append(weight * loss.total)
            _merge(terms, {name: weight * term for name, term in loss.terms.items()})
            _merge(metrics, loss.metrics)
        return Loss(torch.stack(totals).sum(), terms, metrics)

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Prepare each part."""
        for part in self._parts():
            part.prepare(batches)

    def extend(self, batch: Batch) -> Batch:
        """The batch, extended by the part that does so; other parts see only its own samples."""
        for part in self._parts():
            batch = part.extend(batch)
        return batch

    def keep(self, output: Output, batch: Batch) -> Bool[Tensor, "B T H W"] | None:
        """The places that each step would keep in training, by the part that erases."""
        for weight, supervision in zip(self.weights, self.supervisions, strict=True):
            assert isinstance(supervision, Supervision)
            if weight and (keep := supervision.keep(output, batch)) is not None:
                return keep
        return None

    def _parts(self) -> list[Supervision]:
        """The parts with a nonzero weight."""
        parts = zip(self.weights, self.supervisions, strict=True)
        return [part for weight, part in parts if weight]  # type: ignore[misc]

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return f"weights={self.weights}"


def _merge(into: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name in more:
        if name in into:
            raise ValueError(f"two supervisions of a Sum report '{name}': keep one of them")
    into.update(more)
