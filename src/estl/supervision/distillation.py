"""Edge-guided distillation: a student of events learns from a frozen CLIP that sees the images.

All that only training needs is in here: teacher, edge detector, fusion and projectors. The student
knows nothing of it.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from estl.guidance.contrastive import ContrastiveLoss
from estl.guidance.edges import (
    LearnableEdgeDetector,
    SobelEdges,
    activation_log_attention,
    edge_alignment_loss,
    edge_attention,
    edge_smoothness_loss,
    edge_sparsity_loss,
)
from estl.guidance.fusion import EdgeGuidedFusion
from estl.guidance.grid import resample
from estl.guidance.teacher import ClipTeacher, TeacherOutput
from estl.types import Batch, Loss, Output, Supervision

WEIGHTS = {
    "cls": 1.0,
    "global_distill": 0.5,
    "patch_distill": 0.3,
    "edge_align": 0.2,
    "contrastive": 0.3,
    "edge_reg": 0.1,
}
"""The terms, in the order in which they are reported, and their weights."""

COLLAPSED = 1e-4
"""Below this edge_spread (see Metrics) an edge map is one gray: lower the weight of edge_reg. An
untrained detector's spread is about 4e-4."""


class Maps(NamedTuple):
    """What can be drawn of a batch, see `EdgeGuidedDistillation.maps`."""

    edges: Float[Tensor, "B 1 H W"] | None
    teacher: Float[Tensor, "B h w"]
    student: Float[Tensor, "B h w"]


class EdgeGuidedDistillation(Supervision):
    """Weighted sum of six terms. With a bar for the mean over T, P and P' linear projectors:

        cls             CE(logits-bar, label)
        global_distill  MSE(P class_token-bar, target)
        patch_distill   MSE(P' tokens-bar, the teacher's patches)
        edge_align      KL(a || softmax_n mean_d tokens-bar^2)
        contrastive     ContrastiveLoss(P class_token-bar, target, label)
        edge_reg        mean edge + total variation of the edges

    With edges="learned" or "sobel" the target is the `EdgeGuidedFusion` of the teacher's patches
    and the edges, and a is the teacher's attention times the edges on the student's grid, summing
    to 1. Both carry gradient to fusion and detector (with `detach_target`, global_distill does
    not). With edges="none" (plain CLIP distillation) the target is the teacher's pooled feature,
    and there is no edge_align and no edge_reg. Fixed edges have no edge_reg. The teacher's patches
    and attention are resampled to the student's grid. Tokens are the student's patch tokens, or
    else the cells of its features.

    A term of weight 0 is neither computed nor reported, and parts that only it needs are not built.
    The trained parts are `edge_detector`, `fusion`, `projector` and `projector_patches`, None where
    no term needs them. In eval mode only cls is computed: validation needs no teacher, no images.

    Metrics: edge_mean; edge_spread (standard deviation over an image's pixels, see `COLLAPSED`);
    target_spread (of the target's direction over the batch: 1 if evenly spread, 0 if all images
    have the same target); gate_mean; attention_overlap (mass shared by both attention maps).

    Args:
        teacher: a `ClipTeacher`, or the name or folder of one.
        student_dim: D, width of the student's tokens and class token; `estl fit` fills it in.
        edges: "learned", "sobel" (fixed) or "none".
        query: which side asks in the fusion, "clip" or "edge".
        edge_grid: grid to which the fusion averages edges first; None keeps every pixel.
        heads: of the fusion's attention.
        weights: changes to `WEIGHTS` by name.
        temperature: of the contrastive term.
        positives: of the contrastive term, "pair" or "class".
        detach_target: whether global_distill gives no gradient to its target; fusion then learns
            from the contrastive term.
        normalize_targets: whether both sides of the two MSE terms are layer-normalized over E, so
            that the scale of the features, which differs between teachers, does not matter.

    Raises:
        ValueError: for unknown, negative or contradictory weights; in `forward`, for a batch
            without images or a student of another width.

        supervision = EdgeGuidedDistillation("teachers/mnist", student_dim=256)
        loss = supervision(student(batch.events), batch)
        loss.total.backward()
    """

    def __init__(
        self,
        teacher: ClipTeacher | str | Path = "openai/clip-vit-base-patch16",
        *,
        student_dim: int | None = None,
        edges: Literal["learned", "sobel", "none"] = "learned",
        query: Literal["clip", "edge"] = "clip",
        edge_grid: int | tuple[int, int] | None = None,
        heads: int = 8,
        weights: dict[str, float] | None = None,
        temperature: float = 0.07,
        positives: Literal["pair", "class"] = "pair",
        detach_target: bool = False,
        normalize_targets: bool = False,
    ) -> None:
        super().__init__()
        if student_dim is None:
            raise ValueError("student_dim is missing: give the width of the student's features")
        self.weights = _weights(weights or {}, edges)
        self.student_dim = student_dim
        self.detach_target, self.normalize_targets = detach_target, normalize_targets
        self.teacher = teacher if isinstance(teacher, ClipTeacher) else ClipTeacher(teacher)
        E = self.teacher.dim

        parts = trained_parts(self.weights, edges)
        self.edge_detector: LearnableEdgeDetector | SobelEdges | None = None
        if "edge_detector" in parts:
            self.edge_detector = LearnableEdgeDetector()
        elif edges == "sobel":
            self.edge_detector = SobelEdges()
        self.fusion = (
            EdgeGuidedFusion(E, heads=heads, query=query, edge_grid=edge_grid)
            if "fusion" in parts
            else None
        )
        self.projector, self.projector_patches = (
            nn.Linear(student_dim, E) if part in parts else None
            for part in ("projector", "projector_patches")
        )
        self.contrastive = ContrastiveLoss(temperature, positives)
        if detach_target and edges != "none" and "contrastive" not in self.weights:
            raise ValueError(
                "detach_target=True with contrastive weight 0 leaves the fusion untrained: "
                'give contrastive a weight, or use edges="none"'
            )

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        terms = ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())
        return f"{terms}; detach_target={self.detach_target}"

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        if "cls" in self.weights:
            terms["cls"] = F.cross_entropy(output.logits.mean(1), batch.target)
        if self.training and self.weights.keys() - {"cls"}:
            guided, metrics = self._guide(output, batch)
            terms |= guided
        weighted = {name: w * terms[name] for name, w in self.weights.items() if name in terms}
        zero = output.logits.new_zeros(())
        return Loss(sum(weighted.values(), start=zero), weighted, metrics)

    def _guide(self, output: Output, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every term but cls, and the metrics."""
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        tokens, grid = self._tokens(output)
        seen, edges, edge_features = self._look(batch)
        if edges is not None:
            metrics["edge_mean"] = edges.detach().mean()
            metrics["edge_spread"] = edges.detach().flatten(1).std(1, correction=0).mean()

        if self.projector is not None:
            target = seen.pooled
            if self.fusion is not None and edges is not None and edge_features is not None:
                target, metrics["gate_mean"] = self.fusion.fuse(seen.patches, edge_features, edges)
            metrics["target_spread"] = _spread(target.detach())
            student = self.projector(output.class_token.mean(1))
            if "global_distill" in self.weights:
                fixed = target.detach() if self.detach_target else target
                terms["global_distill"] = self._mse(student, fixed)
            if "contrastive" in self.weights:
                terms["contrastive"] = self.contrastive(student, target, batch.label)

        if self.projector_patches is not None:
            patches = resample(seen.patches, self.teacher.grid, grid)
            terms["patch_distill"] = self._mse(self.projector_patches(tokens), patches)

        if "edge_align" in self.weights:
            q, p = activation_log_attention(tokens), self._attention(seen, edges, grid)
            metrics["attention_overlap"] = torch.minimum(p, q.exp()).detach().sum(1).mean()
            terms["edge_align"] = edge_alignment_loss(q, p)

        if "edge_reg" in self.weights and edges is not None:
            terms["edge_reg"] = edge_sparsity_loss(edges) + edge_smoothness_loss(edges)
        return terms, metrics

    @torch.no_grad()
    def maps(self, output: Output, batch: Batch) -> Maps:
        """For pictures: the edges, and where teacher and student look, each map summing to 1.

        Without edges, `edges` is None and the teacher's map is its attention alone.
        """
        tokens, grid = self._tokens(output)
        seen, edges, _ = self._look(batch)
        return Maps(
            edges=edges,
            teacher=self._attention(seen, edges, grid).unflatten(1, grid),
            student=activation_log_attention(tokens).exp().unflatten(1, grid),
        )

    def _tokens(self, output: Output) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """The student's tokens, mean over T, and the grid that they lie on."""
        h, w = output.features.shape[-2:]
        if output.patch_tokens is not None:
            tokens = output.patch_tokens.mean(1)
        else:
            tokens = output.features.mean(1).flatten(2).transpose(1, 2)
        widths = tokens.shape[2], output.class_token.shape[2]
        if widths != (self.student_dim, self.student_dim):
            raise ValueError(
                f"student_dim is {self.student_dim}, but the student's tokens are {widths[0]} and "
                f"its class token {widths[1]} wide: set student_dim"
            )
        return tokens, (h, w)

    def _look(self, batch: Batch) -> tuple[TeacherOutput, Tensor | None, Tensor | None]:
        """The teacher's outputs, edges and edge features."""
        if batch.image is None:
            raise ValueError(
                "EdgeGuidedDistillation needs an image beside each recording: choose paired data, "
                "and images=True where the data has this option"
            )
        seen = self.teacher(batch.image)
        if self.edge_detector is None:
            return seen, None, None
        return seen, *self.edge_detector(batch.image)

    def _attention(
        self, seen: TeacherOutput, edges: Tensor | None, grid: tuple[int, int]
    ) -> Float[Tensor, "B N"]:
        """The teacher's attention, times the edges if there are any, on `grid`, summing to 1."""
        attention = resample(seen.attention.flatten(1).unsqueeze(2), self.teacher.grid, grid)
        attention = attention.squeeze(2).unflatten(1, grid)
        return edge_attention(
            attention, torch.ones_like(attention[:, None]) if edges is None else edges
        )

    def _mse(self, student: Tensor, target: Tensor) -> Tensor:
        if self.normalize_targets:
            student, target = (F.layer_norm(x, x.shape[-1:]) for x in (student, target))
        return F.mse_loss(student, target)


def _spread(x: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """Root of the variance over the batch of the directions x / |x|, in [0,1]."""
    direction = F.normalize(x.float(), dim=1)
    return direction.var(0, correction=0).sum().sqrt()


def trained_parts(terms: Collection[str], edges: str) -> set[str]:
    """The parts that are built and trained for `terms`; DDP refuses parameters no loss reaches.

    >>> sorted(trained_parts(["cls", "global_distill"], edges="sobel"))
    ['fusion', 'projector']
    """
    target = not {"global_distill", "contrastive"}.isdisjoint(terms)
    asked = {
        "projector": target,
        "fusion": target and edges != "none",
        "edge_detector": edges == "learned"
        and (target or not {"edge_align", "edge_reg"}.isdisjoint(terms)),
        "projector_patches": "patch_distill" in terms,
    }
    return {part for part, needed in asked.items() if needed}


def _weights(changes: dict[str, float], edges: str) -> dict[str, float]:
    """`WEIGHTS` with `changes`, without zeros and the terms that `edges` does not have."""
    without = {"learned": set(), "sobel": {"edge_reg"}, "none": {"edge_align", "edge_reg"}}
    if edges not in without:
        raise ValueError(f'edges must be "learned", "sobel" or "none", got {edges!r}')
    absent: set[str] = without[edges]
    for name, weight in changes.items():
        if name not in WEIGHTS:
            raise ValueError(f"weights has no term {name!r}: the terms are {', '.join(WEIGHTS)}")
        if weight < 0 or not math.isfinite(weight):
            raise ValueError(f"the weight of {name} must be 0 or more, got {weight}")
        if weight and name in absent:
            raise ValueError(f"edges={edges!r} has no {name} to weigh: leave its weight out")
    merged = {name: w for name, w in WEIGHTS.items() if name not in absent} | changes
    return {name: merged[name] for name in WEIGHTS if merged.get(name, 0.0)}
