"""Edge-guided distillation: an event-based student learns from a frozen CLIP that sees images.

What only training needs, from teacher to projectors, is in here: the student is unaware of it.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from estl.guidance.bridge import predict, train_detector
from estl.guidance.contrastive import ContrastiveLoss
from estl.guidance.edges import Detector, Edges, LearnableEdgeDetector, SobelEdges, make_detector
from estl.guidance.fusion import EdgeGuidedFusion
from estl.guidance.grid import on_frames, resample
from estl.guidance.kept import Kept
from estl.guidance.teacher import ClipTeacher, TeacherOutput
from estl.guidance.terms import (
    Activity,
    activation_log_attention,
    edge_alignment_loss,
    edge_attention,
    edge_events_loss,
    edge_smoothness_loss,
    edge_sparsity_loss,
    feature_loss,
)
from estl.guidance.watch import Maps, inner, spread, watch_attention, watch_edges
from estl.supervision.probe import Probe
from estl.supervision.steps import check_samples
from estl.supervision.terms import EdgeKind, check_options, parts_and_frozen, term_weights
from estl.types import Batch, Loss, Output, Supervision

NAME = "EdgeGuidedDistillation"
WATCHED = 8  # recordings per step on which frozen edges are watched


class EdgeGuidedDistillation(Supervision):
    """Weighted sum of nine terms. With a bar for the mean over T, and linear projectors P and P':

        cls             CE(logits-bar, label)
        global_distill  MSE(P class_token-bar, target)
        patch_distill   MSE(P' tokens-bar, the teacher's patches)
        edge_align      KL(a || q), q where the student's tokens-bar are active
        contrastive     ContrastiveLoss(P class_token-bar, target, label)
        edge_events     Poisson likelihood of the events given the rates (`edge_events_loss`)
        edge_reg        mean edge + total variation of the edges (if learned, of their `inner`)
        target_cls      CE(a linear layer on the target, label)
        logit_distill   KL to the classes that a linear `Probe` predicts from the pooled feature

    With the `EdgeGuidedFusion` of the teacher's patches and the edges, the target is

        "pooled"    the teacher's pooled feature, without any fusion
        "fused"     the pooled feature + what the fusion's attention adds to the patches
        "written"   the mean of the patches + the same

    and a is the teacher's attention times the edges on the student's grid, summing to 1. The target
    passes gradients to fusion and detector (with `detach_target`, none from global_distill); a
    passes none unless `align_edges`. With edges="none" (plain CLIP distillation) the target is the
    pooled feature, and a is the attention alone. The teacher's patches and attention are resampled
    to the student's grid; tokens are the student's patch tokens, or else the cells of its features.
    Learned edges are computed on the grid of the frames, others on the image's own.

    A term of weight 0 is neither computed nor reported; parts that only it needs are not built:
    `edge_detector`, `fusion`, `projector`, `projector_patches`, `target_head`, `probe` may be None.
    In eval mode only cls is computed: validation needs no teacher and no images.

    The bridge: if a batch has `unpaired` images, recordings of them are drawn (`extend`), and
    the student is distilled on these too; cls, contrastive, edge_events and target_cls use only the
    recorded samples. The defaults did best (docs/results.md); the written design is the
    recipe `ncaltech101_clip_written`.

    Metrics: those of `watch_edges` and `watch_attention`; gate_mean; target_spread (1 if the
    targets' directions are evenly spread over the batch, 0 if they are all equal).

    Args:
        teacher: a `ClipTeacher`, or the name or folder of one.
        student_dim: D, width of the student's tokens and class token; `estl fit` fills it in.
        T: time steps of the recordings, for learned edges; likewise.
        classes: K, for target_cls and logit_distill; likewise.
        edges: "learned" from events, "written", "sobel" (fixed) or "none".
        target: "pooled", "fused" or "written"; without edges it is always the pooled feature.
        gate_bias: initial bias of the fusion's gate; None for small random numbers.
        align: how q is formed from the tokens' activity (`activation_log_attention`).
        align_edges: whether edge_align passes a gradient to the edges.
        query: which side gives the queries in the fusion, "clip" or "edge".
        edge_grid: grid to which the fusion first averages the edges; None keeps every pixel.
        heads: number of heads of the fusion's attention.
        weights: changes to `supervision.terms.WEIGHTS`, by the names of the terms.
        temperature: of the contrastive term.
        positives: of the contrastive term, "pair" or "class".
        detach_target: whether global_distill passes no gradient to its target; fusion then learns
            from the contrastive term or target_cls.
        normalize_targets: whether the two MSE terms layer-normalize both sides, as teachers differ.
        each_step: whether logit_distill applies to each step's logits, averaged over the steps, so
            that the student answers early; otherwise it applies to their mean over time.
        warm_up: steps on edge_events alone, before the student's first. If edge_events then has
            weight 0, learned edges stay as these steps leave them (not with edge_reg).
        cache_teacher: whether the teacher's outputs, and frozen edges, are computed once per image
            and cached (`guidance.kept`); `estl fit` refuses it for augmented images.
        bridge: what the bridge draws from: learned "rates", or "sobel" (`even_rates`, a control).

    Raises:
        ValueError: for unknown, negative or contradictory weights or options; in `forward`, for a
            batch without images or a student of another width.

        supervision = EdgeGuidedDistillation("teachers/mnist", student_dim=256, T=5, classes=10)
        supervision(student(batch.events), batch).total.backward()
    """

    extends = True

    def __init__(
        self,
        teacher: ClipTeacher | str | Path = "openai/clip-vit-base-patch16",
        *,
        student_dim: int | None = None,
        T: int | None = None,
        classes: int | None = None,
        edges: EdgeKind = "learned",
        target: Literal["pooled", "fused", "written"] = "pooled",
        gate_bias: float | None = -3.0,
        align: Activity = "energy",
        align_edges: bool = False,
        query: Literal["clip", "edge"] = "clip",
        edge_grid: int | tuple[int, int] | None = None,
        heads: int = 8,
        weights: dict[str, float] | None = None,
        temperature: float = 0.07,
        positives: Literal["pair", "class"] = "pair",
        detach_target: bool = False,
        normalize_targets: bool = True,
        each_step: bool = True,
        warm_up: int = 0,
        cache_teacher: bool = False,
        bridge: Literal["rates", "sobel"] = "rates",
    ) -> None:
        super().__init__()
        if student_dim is None:
            raise ValueError("student_dim is missing: give the width of the student's features")
        check_options(warm_up, target=target, align=align, bridge=bridge)
        self.weights = term_weights(weights or {}, edges, target)
        self.student_dim, self.keeps_images = student_dim, cache_teacher
        self.target, self.align, self.align_edges = target, align, align_edges
        self.detach_target, self.normalize_targets = detach_target, normalize_targets
        self.each_step, self.warm_up, self.bridge = each_step, warm_up, bridge
        self.teacher = teacher if isinstance(teacher, ClipTeacher) else ClipTeacher(teacher)
        E, taught = self.teacher.dim, (align_edges, detach_target)
        self.kept = Kept() if cache_teacher else None
        parts, self.frozen = parts_and_frozen(self.weights, edges, target, warm_up > 0, *taught)
        self.kept_rates = Kept() if cache_teacher and self.frozen else None
        self.kept_looks = Kept() if cache_teacher and self.frozen else None
        self.sobel = SobelEdges()
        self.edge_detector: Detector | None = None
        if edges != "none" and (edges == "sobel" or "edge_detector" in parts or self.frozen):
            self.edge_detector = make_detector(edges, T).requires_grad_(not self.frozen)
        self.fusion: EdgeGuidedFusion | None = None
        if "fusion" in parts and self.edge_detector is not None:
            ask: dict[str, Any] = {"query": query, "edge_grid": edge_grid, "gate_bias": gate_bias}
            self.fusion = EdgeGuidedFusion(E, self.edge_detector.features, heads, **ask)
        self.projector, self.projector_patches = (
            nn.Linear(student_dim, E) if part in parts else None
            for part in ("projector", "projector_patches")
        )
        if classes is None and parts & {"target_head", "probe"}:
            raise ValueError("classes is missing: target_cls and logit_distill need their number")
        self.target_head = nn.Linear(E, classes or 0) if "target_head" in parts else None
        self.probe = Probe(E, classes or 0) if "probe" in parts else None
        self.contrastive = ContrastiveLoss(temperature, positives)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        terms = ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())
        return f"{terms}; target={self.target!r}, detach_target={self.detach_target}"

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        terms, metrics, own = dict[str, Tensor](), dict[str, Tensor](), batch.labeled
        check_samples(NAME, output, batch.label)
        if "cls" in self.weights:
            logits = output.first(len(own.label)).logits
            terms["cls"] = F.cross_entropy(logits.mean(1), own.target)
        if self.training and self.weights.keys() - {"cls"}:
            guided, metrics = self._guide(output, batch)
            terms |= guided
        weighted = {name: w * terms[name] for name, w in self.weights.items() if name in terms}
        return Loss(sum(weighted.values(), output.logits.new_zeros(())), weighted, metrics)

    def _guide(self, output: Output, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every term but cls, and the metrics."""
        terms, metrics, own = dict[str, Tensor](), dict[str, Tensor](), batch.labeled
        tokens, grid = self._tokens(output)
        n, image = len(own.label), batch.images_for(NAME)
        seen = TeacherOutput(*self.kept(self.teacher, image)) if self.kept else self.teacher(image)
        # Without these, nothing needs the edges of images whose recordings were drawn.
        every = self.fusion is not None or not {"edge_align", "edge_reg"}.isdisjoint(self.weights)
        few = own.first(WATCHED) if self.frozen else own
        look = self._look(batch if every else few)
        if look is not None:
            sobel = self.sobel.edges(on_frames(few.images_for(NAME), few.events))
            metrics |= watch_edges(look.edges[: len(sobel)].detach(), sobel, few.events)

        target = seen.pooled
        if self.fusion is not None and look is not None:
            fused = self.fusion.fuse(seen.patches, look.features, look.edges)
            target = fused.feature if self.target == "written" else seen.pooled + fused.added
            metrics["gate_mean"] = fused.gate_mean
        if self.target_head is not None:
            terms["target_cls"] = F.cross_entropy(self.target_head(target[:n]), own.target)
        if self.probe is not None:
            asked = output.logits if self.each_step else output.logits.mean(1, keepdim=True)
            terms["logit_distill"] = self.probe(asked, seen.pooled, own.target)
        if self.projector is not None:
            metrics["target_spread"] = spread(target.detach())
            student = self.projector(output.class_token.mean(1))
            if "global_distill" in self.weights:
                fixed = target.detach() if self.detach_target else target
                terms["global_distill"] = feature_loss(student, fixed, self.normalize_targets)
            if "contrastive" in self.weights:
                terms["contrastive"] = self.contrastive(student[:n], target[:n], own.label)
        if self.projector_patches is not None:
            patches = resample(seen.patches, self.teacher.grid, grid)
            asked = self.projector_patches(tokens)
            terms["patch_distill"] = feature_loss(asked, patches, self.normalize_targets)

        if "edge_align" in self.weights:
            q, p = activation_log_attention(tokens, self.align), self._attention(seen, look, grid)
            metrics |= watch_attention(q.detach().exp(), p.detach())
            terms["edge_align"] = edge_alignment_loss(q, p if self.align_edges else p.detach())

        if look is not None and "edge_events" in self.weights and look.rates is not None:
            terms["edge_events"] = edge_events_loss(look.rates[:n], own.events)
        if look is not None and "edge_reg" in self.weights:
            edges = look.edges if look.rates is None else inner(look.edges)
            terms["edge_reg"] = edge_sparsity_loss(edges) + edge_smoothness_loss(edges)
        return terms, metrics

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Train the detector for `warm_up` steps, before anything is drawn from its rates."""
        if self.warm_up and isinstance(self.edge_detector, LearnableEdgeDetector):
            self.edge_detector.requires_grad_(True)
            train_detector(self.edge_detector, batches, self.warm_up)
            self.edge_detector.requires_grad_(not self.frozen)

    def extend(self, batch: Batch) -> Batch:
        """In training, the batch plus a recording for each of its unpaired images."""
        if batch.unpaired is None or not self.training:
            return batch
        detector = self.sobel if self.bridge == "sobel" else self.edge_detector
        return batch.extend(predict(detector, batch.unpaired, batch, self.kept_rates))

    @torch.no_grad()
    def maps(self, output: Output, batch: Batch) -> Maps:
        """For plots: the edges, Sobel's, and where teacher and student look, each summing to 1.

        Without edges, `edges` is None and the teacher's map is its attention alone.
        """
        assert batch.image is not None
        tokens, grid = self._tokens(output)
        seen, look, fusion = self.teacher(batch.image), self._look(batch), self.fusion
        return Maps(
            edges=None if look is None else look.edges,
            sobel=self.sobel.edges(on_frames(batch.image, batch.events)),
            teacher=self._attention(seen, look, grid).unflatten(1, grid),
            student=activation_log_attention(tokens, self.align).exp().unflatten(1, grid),
            **({} if fusion is None else fusion.gates(seen.patches, look, self.teacher.grid)),
        )

    def _tokens(self, output: Output) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """The student's tokens, averaged over T, and the grid on which they lie."""
        tokens = output.tokens.mean(1)
        widths = tokens.shape[2], output.class_token.shape[2]
        if set(widths) != {self.student_dim}:
            raise ValueError(
                f"student_dim is {self.student_dim}, but the student's tokens are {widths[0]} and "
                f"its class token {widths[1]} wide: set student_dim"
            )
        return tokens, (output.features.shape[-2], output.features.shape[-1])

    def _look(self, batch: Batch) -> Edges | None:
        """What the detector sees."""
        detector, image = self.edge_detector, batch.images_for(NAME)
        if not isinstance(detector, LearnableEdgeDetector):
            return None if detector is None else Edges(*detector(image))
        image, grid = on_frames(image, batch.events), self.fusion.edge_grid if self.fusion else 1
        if self.kept_looks is None or grid is None or not self.training:
            return detector.look(image)
        return Edges(*self.kept_looks.of(detector)(partial(detector.look_on, grid=grid), image))

    def _attention(
        self, seen: TeacherOutput, look: Edges | None, grid: tuple[int, int]
    ) -> Float[Tensor, "B N"]:
        """The teacher's attention, times the edges if there are any, on `grid`, summing to 1."""
        attention = resample(seen.attention.flatten(1).unsqueeze(2), self.teacher.grid, grid)
        return edge_attention(attention.squeeze(2).unflatten(1, grid), look and look.edges)
