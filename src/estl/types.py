"""The three values passed between the parts: a student turns the events of a `Batch` into an
`Output`; a supervision turns `(Output, Batch)` into a `Loss`.

Shapes, here and everywhere:

    B batch    T time steps    C input channels (2 polarities, or 3)    H W height, width
    D student width    N tokens    E teacher width    K classes

Public tensors are batch first. The package annotates shapes with jaxtyping; the tests check them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

UNLABELED = -100
"""The label of a sample without one; `F.cross_entropy` leaves it out."""

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in an image's luma (ITU-R BT.601)."""

Classify = Callable[[Tensor], Tensor]
"""A student's whole head: pooled features (B,T,D) to logits (B,T,K)."""

Labels = Int[Tensor, " B"] | Float[Tensor, "B K"]
"""Class numbers in 0..K-1, or class weights of mixed samples, rows summing to 1."""


def is_static(events: Tensor) -> bool:
    """True if all time steps of `events` (B,T,...) share the same memory (see `direct_code`).

    >>> import torch
    >>> is_static(direct_code(torch.rand(2, 3, 8, 8), steps=4))
    True
    >>> is_static(torch.rand(2, 4, 3, 8, 8))
    False
    """
    return bool(events.shape[1] > 1 and events.stride(1) == 0)  # symbolic for a traced shape


def direct_code(image: Float[Tensor, "B C H W"], steps: int) -> Float[Tensor, "B T C H W"]:
    """Direct coding: the same image at each of `steps` time steps, expanded without a copy.

    >>> import torch
    >>> direct_code(torch.rand(2, 3, 8, 8), steps=4).shape
    torch.Size([2, 4, 3, 8, 8])
    """
    return image.unsqueeze(1).expand(-1, steps, -1, -1, -1)


@dataclass(frozen=True)
class Batch:
    """A batch of samples from a data set.

    Args:
        events: event frames (B,T,C,H,W), counts or normalized counts; a static image set fills it
            with `direct_code`.
        label: class numbers (B,).
        image: RGB images (B,3,H',W') in [0,1], or None if the set has none. They need not have
            the size of the events: the teacher resizes them.
        soft_label: class weights (B,K) of mixed samples, rows summing to 1, or None if only
            `label` is used. With them, `label` is the class of largest weight.
        unpaired: images (U,3,H',W') without a recording, used for guidance only, or None.
        unlabeled: number of samples at the end without a label (`UNLABELED`) or class weights: the
            recordings that a supervision drew for `unpaired` (`Supervision.extend`).
    """

    events: Float[Tensor, "B T C H W"]
    label: Int[Tensor, " B"]
    image: Float[Tensor, "B 3 h w"] | None = None
    soft_label: Float[Tensor, "B K"] | None = None
    unpaired: Float[Tensor, "U 3 h w"] | None = None
    unlabeled: int = 0

    def images_for(self, what: str) -> Float[Tensor, "B 3 h w"]:
        """The images; if there are none, a ValueError that says that `what` needs them."""
        if self.image is None:
            raise ValueError(
                f"{what} needs an image beside each recording: choose paired data, and images=True "
                "where the data has this option"
            )
        return self.image

    @property
    def labeled(self) -> "Batch":
        """The labeled samples: this batch itself, unless some are `unlabeled`."""
        return self.first(len(self.label) - self.unlabeled) if self.unlabeled else self

    def first(self, n: int) -> "Batch":
        """The first `n` samples, which must be labeled ones, without unpaired images."""
        image = None if self.image is None else self.image[:n]
        soft_label = None if self.soft_label is None else self.soft_label[:n]
        return Batch(self.events[:n], self.label[:n], image, soft_label)

    def extend(self, events: Float[Tensor, "U T C H W"]) -> "Batch":
        """This batch plus recordings `events` of its unpaired images, which have no label."""
        if self.unpaired is None or self.image is None:
            raise ValueError("a batch without images, paired and unpaired, cannot be extended")
        if events.shape[1:] != self.events.shape[1:]:
            of, not_of = tuple(self.events.shape[1:]), tuple(events.shape[1:])
            raise ValueError(f"a batch is extended by recordings of frames {of}, not {not_of}")
        soft, n = self.soft_label, len(events)
        return Batch(
            torch.cat([self.events, events.to(self.events.dtype)]),
            F.pad(self.label, (0, n), value=UNLABELED),
            torch.cat([self.image, self.unpaired]),
            None if soft is None else F.pad(soft, (0, 0, 0, n)),
            unlabeled=n,
        )

    @property
    def target(self) -> Labels:
        """The target for `F.cross_entropy`: `soft_label` if there is one, else `label`."""
        return self.label if self.soft_label is None else self.soft_label

    def _map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        events = self.events
        if is_static(events):  # move one step, not T copies of it
            events = direct_code(move(events[:, 0]), events.shape[1])
        else:
            events = move(events)
        image, soft_label, unpaired = (
            None if x is None else move(x) for x in (self.image, self.soft_label, self.unpaired)
        )
        return Batch(events, move(self.label), image, soft_label, unpaired, self.unlabeled)

    def to(self, *args: Any, **kwargs: Any) -> "Batch":
        """The same batch on another device; arguments as for `Tensor.to`."""
        return self._map(lambda x: x.to(*args, **kwargs))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory."""
        return self._map(lambda x: x.pin_memory())


@dataclass(frozen=True)
class Output:
    """What a student returns.

    Args:
        logits: (B,T,K), one prediction per time step.
        features: (B,T,D,H,W), the last maps before pooling; for token models the patch tokens
            laid out on their grid.
        classify: the student's whole head, (B,T,D) pooled features to (B,T,K) logits. It is called
            with any number of rows and steps, and runs its own spiking layer, if any, over T.
        class_token: (B,T,D), one summary of each step (for convolutional students the pooled
            features).
        patch_tokens: (B,T,N,D) of token models, else None; N runs over the grid of `features` row
            by row.
        pooled_head: whether `logits == classify(features.mean((-2, -1)))`. False for a head that
            flattens space or reads a class token: it cannot be applied to one place (TSE).
    """

    logits: Float[Tensor, "B T K"]
    features: Float[Tensor, "B T D H W"]
    classify: Classify
    class_token: Float[Tensor, "B T D"]
    patch_tokens: Float[Tensor, "B T N D"] | None = None
    pooled_head: bool = True

    @property
    def tokens(self) -> Float[Tensor, "B T N D"]:
        """The patch tokens or, without any, the cells of `features`, row by row."""
        if self.patch_tokens is not None:
            return self.patch_tokens
        return self.features.flatten(3).transpose(2, 3)

    def first(self, n: int) -> "Output":
        """The outputs of the first `n` samples."""
        if n == len(self.logits):
            return self
        return replace(
            self,
            logits=self.logits[:n],
            features=self.features[:n],
            class_token=self.class_token[:n],
            patch_tokens=None if self.patch_tokens is None else self.patch_tokens[:n],
        )


@dataclass(frozen=True)
class Loss:
    """What a supervision returns.

    Args:
        total: the scalar to minimize.
        terms: the named, *weighted* parts; they sum to `total`.
        metrics: further scalars to log, not part of the total (an erase ratio, a gate's mean).
    """

    total: Float[Tensor, ""]
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Supervision(nn.Module):
    """Base class of what turns `(Output, Batch)` into a `Loss`; subclasses define `forward`.

    Attributes:
        extends: whether it extends batches and handles their `unlabeled` samples.
        keeps_images: whether it needs images that are the same in every epoch.
        reads_images: whether it uses a batch's images; if not, training loads none. True for a
            subclass that defines `forward`, unless it sets this itself.
    """

    extends: bool = False
    keeps_images: bool = False
    reads_images: bool = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls) and "reads_images" not in vars(cls):
            cls.reads_images = True

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        raise NotImplementedError

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Train what comes before the first step; `batches` yields training data endlessly."""

    def extend(self, batch: Batch) -> Batch:
        """The batch that the student sees in training: with further samples, or unchanged."""
        return batch

    def keep(self, output: Output, batch: Batch) -> Bool[Tensor, "B T H W"] | None:
        """The places of the feature maps that each step would keep in training, as in TSE; None for
        a supervision that erases none.
        """
        return None


__all__ = [
    "LUMA",
    "UNLABELED",
    "Batch",
    "Classify",
    "Labels",
    "Loss",
    "Output",
    "Supervision",
    "direct_code",
    "is_static",
]
