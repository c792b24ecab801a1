import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from estl.guidance import ClipTeacher, LearnableEdgeDetector
from estl.guidance.bridge import PROBES, predict
from estl.guidance.edges import Edges
from estl.guidance.grid import resample
from estl.guidance.terms import activation_log_attention, edge_alignment_loss, edge_attention
from estl.guidance.watch import COLLAPSED, correlation, footprint, inner
from estl.supervision import TSE, Sum
from estl.supervision.distillation import EdgeGuidedDistillation
from estl.supervision.probe import Probe
from estl.supervision.terms import WEIGHTS
from estl.supervision.terms import WRITTEN as WRITTEN_WEIGHTS
from estl.training.recipe import build, parse_recipe
from estl.types import Batch, Loss, Output
from tests.forked import start_processes
from tests.small_teacher import FixedTeacher

B, T, D, K, E, GRID = 4, 3, 8, 5, 32, (3, 3)
WRITTEN: dict[str, Any] = {
    "edges": "written",
    "target": "written",
    "align": "softmax",
    "align_edges": True,
    "gate_bias": None,
    "normalize_targets": False,
}
"""The options of the written design."""
TERMS = [name for name in WEIGHTS if name not in ("edge_reg", "target_cls", "logit_distill")]
"""Those that `make` gives learned edges."""
SMALLER: dict[str, Any] = {"mode": "bilinear", "antialias": True}
ALL = {name: weight or 0.5 for name, weight in WRITTEN_WEIGHTS.items()}


def save_teacher(folder: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=E,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def teacher(folder: Path) -> ClipTeacher:
    return ClipTeacher(folder)


class Student(nn.Module):
    """The least that returns an `Output`: no neuron, no batch norm."""

    def __init__(self, tokens: bool = True) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed, self.head = nn.Conv2d(2, D, 4, stride=4), nn.Linear(D, K)
        self.tokens = tokens

    def forward(self, events: Tensor) -> Output:
        maps = self.embed(events.flatten(0, 1)).relu().unflatten(0, events.shape[:2])
        pooled = maps.mean((-2, -1))
        patch_tokens = maps.flatten(3).transpose(2, 3) if self.tokens else None
        return Output(self.head(pooled), maps, self.head, pooled, patch_tokens)


def make_batch(size: int = B, steps: int = T) -> Batch:
    torch.manual_seed(3)
    events, image = torch.rand(size, steps, 2, 12, 12), torch.rand(size, 3, 16, 16)
    return Batch(events, torch.arange(size) % 3, image)


def make(teacher: ClipTeacher, **options: Any) -> EdgeGuidedDistillation:
    """With a fusion, and the terms of the written design as far as the edges have them."""
    torch.manual_seed(4)
    edges = options.get("edges", "learned")
    absent = {
        "learned": {"edge_reg"},
        "written": {"edge_events"},
        "sobel": {"edge_events", "edge_reg"},
        "none": {"edge_align", "edge_events", "edge_reg"},
    }.get(edges, set())
    weights = {name: 0.0 if name in absent else w for name, w in WRITTEN_WEIGHTS.items()}
    given: dict[str, Any] = {"target": "fused", "normalize_targets": False} | options
    given["weights"] = weights | options.get("weights", {})
    return EdgeGuidedDistillation(teacher, student_dim=D, **{"T": T, "classes": K} | given)


def backward(supervision: EdgeGuidedDistillation, student: nn.Module, batch: Batch) -> Loss:
    student.zero_grad()
    supervision.zero_grad()
    loss = supervision(student(batch.events), batch)
    loss.total.backward()
    return loss


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def as_written(supervision: EdgeGuidedDistillation, output: Output, batch: Batch) -> dict:
    """The six terms as the specification writes them, unweighted."""
    seen = supervision.teacher(batch.image)
    edges, edge_features = supervision.edge_detector(batch.image)
    structure_aware = supervision.fusion(seen.patches, edge_features, edges)
    dvs_cls = supervision.projector(output.class_token.mean(dim=1))
    dvs_tokens = output.patch_tokens.mean(dim=1)
    dvs_patches = supervision.projector_patches(dvs_tokens)

    def to_grid(maps: Tensor) -> Tensor:
        return F.interpolate(maps, GRID, mode="bilinear", antialias=True).flatten(2)

    clip_patches = to_grid(seen.patches.transpose(1, 2).unflatten(2, (4, 4))).transpose(1, 2)
    p = to_grid(seen.attention.unsqueeze(1)) * F.adaptive_avg_pool2d(edges, GRID).flatten(2)
    p = p.squeeze(1) / p.sum((1, 2)).unsqueeze(1)
    q = torch.softmax(dvs_tokens.square().mean(2), dim=1)
    similar = F.normalize(dvs_cls, dim=1) @ F.normalize(structure_aware, dim=1).T / 0.07
    down = (edges[:, :, 1:] - edges[:, :, :-1]).abs().sum()
    right = (edges[:, :, :, 1:] - edges[:, :, :, :-1]).abs().sum()
    return {
        "cls": F.cross_entropy(output.logits.mean(1), batch.label),
        "global_distill": (dvs_cls - structure_aware).square().mean(),
        "patch_distill": (dvs_patches - clip_patches).square().mean(),
        "edge_align": (p * (p.log() - q.log())).sum(1).mean(),
        "contrastive": (-similar.diag() + torch.logsumexp(similar, dim=1)).mean(),
        "edge_reg": edges.mean() + (down + right) / edges.numel(),
    }


def test_the_terms_and_their_gradients_are_the_written_ones(teacher: ClipTeacher) -> None:
    supervision, student, batch = make(teacher, **WRITTEN), Student(), make_batch()
    loss = backward(supervision, student, batch)
    got = gradients(student) | gradients(supervision)
    student.zero_grad()
    written = as_written(supervision, student(batch.events), batch)
    total = sum(WRITTEN_WEIGHTS[name] * term for name, term in written.items())
    expected = torch.autograd.grad(total, list(student.parameters()))
    assert list(loss.terms) == list(written)
    for name, term in written.items():
        torch.testing.assert_close(
            loss.terms[name], WRITTEN_WEIGHTS[name] * term, atol=1e-6, rtol=1e-4
        )
        assert loss.terms[name] > 1e-4, name
    torch.testing.assert_close(loss.total, total)
    for (name, _), grad in zip(student.named_parameters(), expected, strict=True):
        torch.testing.assert_close(got[name], grad, atol=1e-6, rtol=1e-4)
    assert all(value.ndim == 0 and not value.requires_grad for value in loss.metrics.values())


def test_a_convolutional_student_is_its_cells_as_tokens(teacher: ClipTeacher) -> None:
    supervision, batch = make(teacher), make_batch()
    tokens = backward(supervision, Student(tokens=True), batch)
    cells = backward(supervision, Student(tokens=False), batch)
    assert tokens.terms.keys() == cells.terms.keys()
    for name in tokens.terms:
        torch.testing.assert_close(tokens.terms[name], cells.terms[name])


@pytest.mark.slow
def test_training_changes_every_part_and_no_weight_of_the_teacher(teacher: ClipTeacher) -> None:
    supervision, student, batch = make(teacher), Student(), make_batch()
    before = {name: x.clone() for name, x in teacher.tower.state_dict().items()}
    start = [p.detach().clone() for p in [*student.parameters(), *supervision.parameters()]]
    optimizer = torch.optim.Adam([*student.parameters(), *supervision.parameters()], lr=1e-3)
    losses = []
    for _ in range(3):
        losses.append(backward(supervision, student, batch).total.item())
        optimizer.step()
    assert losses[-1] < losses[0]
    parameters = [*student.parameters(), *supervision.parameters()]
    assert not any(torch.equal(x, y) for x, y in zip(start, parameters, strict=True))
    assert {name.split(".")[0] for name, _ in supervision.named_parameters()} == {
        "edge_detector",
        "fusion",
        "projector",
        "projector_patches",
    }
    for name, x in teacher.tower.state_dict().items():
        assert torch.equal(x, before[name]), name


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, {"edge_detector", "fusion", "projector", "projector_patches"}),
        (WRITTEN, {"edge_detector", "fusion", "projector", "projector_patches"}),
        (
            {"weights": ALL},
            {"edge_detector", "fusion", "projector", "projector_patches", "target_head", "probe"},
        ),
        ({"query": "edge"}, {"edge_detector", "fusion", "projector", "projector_patches"}),
        ({"detach_target": True}, {"edge_detector", "fusion", "projector", "projector_patches"}),
        (
            {"detach_target": True, "weights": {"contrastive": 0.0, "target_cls": 1.0}},
            {"edge_detector", "fusion", "projector", "projector_patches", "target_head"},
        ),
        ({"edges": "sobel"}, {"fusion", "projector", "projector_patches"}),
        ({"edges": "sobel", "query": "edge"}, {"fusion", "projector", "projector_patches"}),
        ({"edges": "none"}, {"projector", "projector_patches"}),
        ({"weights": {"patch_distill": 0.0}}, {"edge_detector", "fusion", "projector"}),
        (
            {"weights": {"global_distill": 0.0, "contrastive": 0.0}},
            {"edge_detector", "projector_patches"},
        ),
        ({"weights": dict.fromkeys(list(WEIGHTS)[1:], 0.0)}, set()),
    ],
)
def test_only_what_a_term_needs_is_built_and_all_of_it_gets_gradient(
    teacher: ClipTeacher, options: dict[str, Any], parts: set[str]
) -> None:
    supervision = make(teacher, **options)
    loss = backward(supervision, Student(), make_batch())
    names = dict(supervision.named_parameters())
    assert {name.split(".")[0] for name in names} == parts
    assert gradients(supervision).keys() == names.keys()
    assert list(loss.terms) == list(supervision.weights)
    torch.testing.assert_close(sum(loss.terms.values()), loss.total)


def test_by_default_there_are_pooled_targets_classes_and_a_detector_for_the_bridge(
    teacher: ClipTeacher,
) -> None:
    supervision = EdgeGuidedDistillation(teacher, student_dim=D, T=T, classes=K)
    parts = {name.split(".")[0] for name, p in supervision.named_parameters() if p.requires_grad}
    assert parts == {"edge_detector", "projector", "projector_patches", "probe"}
    loss = backward(supervision, Student(), make_batch())
    assert list(loss.terms) == [
        "cls", "global_distill", "patch_distill", "edge_events", "logit_distill",
    ]  # fmt: skip
    assert supervision.weights == {name: w for name, w in WEIGHTS.items() if w}
    assert supervision.normalize_targets


def test_without_edges_the_target_is_the_teacher_s_pooled_feature(teacher: ClipTeacher) -> None:
    supervision, student, batch = make(teacher, edges="none"), Student(), make_batch()
    output = student(batch.events)
    loss = supervision(output, batch)
    assert list(loss.terms) == ["cls", "global_distill", "patch_distill", "contrastive"]
    projected = supervision.projector(output.class_token.mean(1))
    expected = 0.5 * (projected - teacher(batch.image).pooled).square().mean()
    torch.testing.assert_close(loss.terms["global_distill"], expected)
    assert set(loss.metrics) == {"target_spread"}


def test_sobel_edges_are_fixed_and_not_regularized(teacher: ClipTeacher) -> None:
    loss = backward(make(teacher, edges="sobel"), Student(), make_batch())
    assert list(loss.terms) == [name for name in TERMS if name != "edge_events"]
    assert loss.metrics["edge_spread"] > 0.05


def test_a_term_of_weight_zero_leaves_the_others_as_they_are(teacher: ClipTeacher) -> None:
    student, batch = Student(), make_batch()
    whole = backward(make(teacher, weights=ALL), student, batch)
    for name in list(WEIGHTS)[:1] + list(WEIGHTS)[3:7]:  # the others' part would not be built
        loss = backward(make(teacher, weights=ALL | {name: 0.0}), student, batch)
        assert list(loss.terms) == [n for n in WEIGHTS if n != name]
        for other, term in loss.terms.items():
            torch.testing.assert_close(term, whole.terms[other])


def test_it_adds_to_tse_with_its_own_classification_left_out(teacher: ClipTeacher) -> None:
    guidance = make(teacher, weights={"cls": 0.0})
    student, batch = Student(), make_batch()
    output = student(batch.events)
    loss = Sum([TSE(), guidance])(output, batch)
    assert set(loss.terms) > set(TERMS[1:])
    assert "cls" not in loss.terms
    expected = TSE()(output, batch).total + guidance(output, batch).total
    torch.testing.assert_close(loss.total, expected)


def test_a_detached_target_gets_no_gradient_from_global_distill(
    teacher: ClipTeacher,
) -> None:
    student, batch = Student(), make_batch()
    parts = {}
    for name, options in {
        "attached": {},
        "detached": {"detach_target": True},
        "alone": {"weights": {"global_distill": 0.0}},
    }.items():
        supervision = make(teacher, **WRITTEN | options)
        parts[name] = (backward(supervision, student, batch), gradients(supervision))
    torch.testing.assert_close(parts["attached"][0].total, parts["detached"][0].total)
    for name in parts["attached"][1]:
        attached, detached, alone = (parts[kind][1][name] for kind in parts)
        if name.startswith(("fusion", "edge_detector")):
            torch.testing.assert_close(detached, alone, atol=1e-7, rtol=1e-4)
            if name.endswith("weight"):  # the edges' own terms outweigh global_distill there
                least = 1e-2 if name.startswith("fusion") else 1e-3
                assert (attached - alone).norm() > least * alone.norm(), name
        else:
            torch.testing.assert_close(attached, detached, atol=1e-7, rtol=1e-4)


def test_normalized_targets_do_not_depend_on_the_teacher_s_scale(teacher: ClipTeacher) -> None:
    supervision = make(teacher, edges="none", normalize_targets=True)
    output, batch = Student()(make_batch().events), make_batch()
    seen = teacher(batch.image)

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()

    student = standard(supervision.projector(output.class_token.mean(1)))
    expected = 0.5 * (student - standard(seen.pooled)).square().mean()
    terms = supervision(output, batch).terms
    torch.testing.assert_close(terms["global_distill"], expected)
    patches = standard(supervision.projector_patches(output.patch_tokens.mean(1)))
    of_patches = 0.3 * (patches - standard(resample(seen.patches, (4, 4), GRID))).square().mean()
    torch.testing.assert_close(terms["patch_distill"], of_patches)
    supervision.teacher.forward = lambda image: seen._replace(
        pooled=1000 * seen.pooled, patches=1000 * seen.patches
    )
    scaled = supervision(output, batch)
    torch.testing.assert_close(scaled.terms["global_distill"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scaled.terms["patch_distill"], of_patches, atol=1e-4, rtol=1e-4)
    supervision.normalize_targets = False
    assert supervision(output, batch).terms["patch_distill"] > 1e4


def test_validation_is_the_classification_alone_and_needs_neither_teacher_nor_images(
    teacher: ClipTeacher,
) -> None:
    supervision, student, batch = make(teacher), Student(), make_batch()
    output = student(batch.events)
    supervision.teacher.forward = lambda image: pytest.fail("asked the teacher")
    supervision.eval()
    loss = supervision(output, replace(batch, image=None))
    torch.testing.assert_close(loss.total, F.cross_entropy(output.logits.mean(1), batch.label))
    assert list(loss.terms) == ["cls"]
    assert loss.metrics == {}
    silent = make(teacher, weights={"cls": 0.0}).eval()(output, batch)
    assert silent.total == 0
    assert silent.terms == {}
    alone = make(teacher, weights=dict.fromkeys(list(WEIGHTS)[1:], 0.0))  # nor in training then
    torch.testing.assert_close(alone(output, replace(batch, image=None)).total, loss.total)


def test_a_step_asks_the_teacher_once(teacher: ClipTeacher) -> None:
    calls = []
    with teacher.tower.register_forward_hook(lambda *a: calls.append(1)):
        backward(make(teacher), Student(), make_batch())
    assert len(calls) == 1


def test_training_without_images_says_which_data_to_choose(teacher: ClipTeacher) -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match=r"needs an image.*images=True") as error:
        make(teacher)(Student()(batch.events), replace(batch, image=None))
    assert "\n" not in str(error.value)


def test_a_term_that_is_not_finite_is_reported_under_its_name(teacher: ClipTeacher) -> None:
    supervision, student, batch = make(teacher), Student(), make_batch()
    with torch.no_grad():
        supervision.projector_patches.bias[0] = float("nan")
    loss = supervision(student(batch.events), batch)  # the learner stops at it
    assert [name for name, term in loss.terms.items() if not term.isfinite()] == ["patch_distill"]
    assert not loss.total.isfinite()


def test_a_collapsed_edge_map_shows_in_its_spread(teacher: ClipTeacher) -> None:
    supervision, student, batch = make(teacher, **WRITTEN), Student(), make_batch()
    assert supervision(student(batch.events), batch).metrics["edge_spread"] > COLLAPSED
    with torch.no_grad():
        supervision.edge_detector.edge_head[2].bias.fill_(-30.0)
    spread = supervision(student(batch.events), batch).metrics["edge_spread"]
    assert spread < 1e-6 < COLLAPSED


def test_the_metrics_are_what_they_say(teacher: ClipTeacher) -> None:
    supervision, student, batch = make(teacher, **WRITTEN), Student(), make_batch()
    output = student(batch.events)
    metrics = supervision(output, batch).metrics
    edges, features = supervision.edge_detector(batch.image)
    fused = supervision.fusion.fuse(teacher(batch.image).patches, features, edges)
    maps = supervision.maps(output, batch)
    torch.testing.assert_close(metrics["edge_mean"], edges.mean().detach())
    spread = torch.stack([image.std(correction=0) for image in edges.detach()]).mean()
    torch.testing.assert_close(metrics["edge_spread"], spread)
    torch.testing.assert_close(metrics["gate_mean"], fused.gate_mean)
    assert maps.gate.shape == maps.added.shape == (B, *teacher.grid)
    torch.testing.assert_close(maps.gate.mean(), fused.gate_mean)
    mean_direction = F.normalize(fused.feature, dim=1).mean(0)
    expected = (1 - mean_direction.square().sum()).sqrt().detach()  # of unit vectors
    torch.testing.assert_close(metrics["target_spread"], expected, atol=1e-4, rtol=1e-3)
    overlap = torch.minimum(maps.teacher, maps.student).sum((1, 2)).mean()
    torch.testing.assert_close(metrics["attention_overlap"], overlap)
    assert 0 < metrics["attention_overlap"] < 1
    entropy = -(maps.student * maps.student.log()).sum((1, 2)).mean()
    torch.testing.assert_close(metrics["attention_sharp"], 1 - entropy / math.log(9))

    same = replace(batch, image=batch.image[:1].expand(B, -1, -1, -1))
    assert supervision(output, same).metrics["target_spread"] < 1e-3


@pytest.mark.parametrize("edges", ["learned", "written", "none"])
def test_maps_are_distributions_on_the_student_s_grid(teacher: ClipTeacher, edges: str) -> None:
    supervision, batch = make(teacher, edges=edges).eval(), make_batch()
    maps = supervision.maps(Student()(batch.events), batch)
    assert maps.teacher.shape == maps.student.shape == (B, *GRID)
    for each in (maps.teacher, maps.student):
        torch.testing.assert_close(each.sum((1, 2)), torch.ones(B))
        assert not each.requires_grad
    if edges != "none":  # learned edges lie on the frames' grid, written ones on the image's
        side = 12 if edges == "learned" else 16
        assert maps.edges.shape == (B, 1, side, side)
        assert maps.sobel.shape == (B, 1, 12, 12)
    else:
        assert maps.edges is None
        attention = teacher(batch.image).attention.flatten(1).unsqueeze(2)
        attention = resample(attention, (4, 4), GRID).squeeze(2)
        expected = attention / attention.sum(1, keepdim=True)
        torch.testing.assert_close(maps.teacher.flatten(1), expected)


def test_one_step_and_a_batch_of_one_are_defined(teacher: ClipTeacher) -> None:
    supervision, student = make(teacher, T=1), Student()
    loss = backward(supervision, student, make_batch(size=1, steps=1))
    assert loss.total.isfinite()
    assert loss.terms["contrastive"] == 0
    assert all(g.isfinite().all() for g in gradients(supervision).values())


def test_bfloat16_autocast_is_near_float32(teacher: ClipTeacher) -> None:
    supervision, student, batch = make(teacher, temperature=1.0), Student(), make_batch()
    plain = supervision(student(batch.events), batch)
    with torch.autocast("cpu", torch.bfloat16):
        low = supervision(student(batch.events), batch)
    low.total.backward()
    for name, term in plain.terms.items():
        torch.testing.assert_close(low.terms[name].float(), term, atol=0.02, rtol=0.05)
    assert all(g.isfinite().all() for g in gradients(supervision).values())


def test_the_state_is_that_of_the_trained_parts(teacher: ClipTeacher) -> None:
    supervision = make(teacher)
    state = supervision.state_dict()
    assert state.keys() == dict(supervision.named_parameters()).keys()
    make(teacher).load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"global": 1.0}}, "no term 'global': the terms are cls, global_distill"),
        ({"T": None}, "T is missing"),
        ({"weights": {"target_cls": 1.0}, "classes": None}, "classes is missing"),
        ({"weights": {"logit_distill": 1.0}, "classes": None}, "classes is missing"),
        ({"edges": "written", "weights": {"edge_events": 1.0}}, "has no edge_events to weigh"),
        ({"weights": {"cls": -1.0}}, "weight of cls must be 0 or more, got -1.0"),
        ({"edges": "none", "weights": {"edge_align": 0.2}}, "edges='none' has no edge_align"),
        ({"edges": "sobel", "weights": {"edge_reg": 0.1}}, "edges='sobel' has no edge_reg"),
        ({"detach_target": True, "weights": {"contrastive": 0.0}}, "leaves the fusion"),
        ({"heads": 5}, "heads must divide clip_dim 32, got 5"),
        ({"target": "pool"}, "target must be one of pooled, fused, written, got 'pool'"),
        ({"align": "softmx"}, "align must be one of energy, softmax, got 'softmx'"),
        ({"bridge": "learned"}, "bridge must be one of rates, sobel, got 'learned'"),
        ({"warm_up": -1}, "warm_up must be 0 or more steps, got -1"),
    ],
)
def test_options_that_are_unknown_or_contradict_each_other_are_refused(
    teacher: ClipTeacher, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match=message):
        make(teacher, **options)


def test_a_student_of_another_width_is_refused(
    teacher: ClipTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch()
    supervision = EdgeGuidedDistillation(teacher, student_dim=D + 1, T=T, classes=K)
    with pytest.raises(ValueError, match="student_dim is 9, but the student's tokens are 8"):
        supervision(Student()(batch.events), batch)
    with pytest.raises(ValueError, match="student_dim is missing"):
        EdgeGuidedDistillation(teacher, T=T, classes=K)
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    other = replace(Student()(batch.events), class_token=torch.zeros(B, T, D + 1))
    with pytest.raises(ValueError, match=r"student_dim is 8, .* its class token 9 wide"):
        make(teacher)(other, batch)


def test_another_number_of_labels_than_samples_is_refused() -> None:
    output, batch = Student()(make_batch().events), make_batch()
    with pytest.raises(ValueError, match=r"^EdgeGuidedDistillation got 3 labels for 4 samples"):
        make(FixedTeacher(), edges="none")(output, batch.first(3))


def test_the_grid_of_frames_that_are_not_square_is_theirs() -> None:
    supervision = make(FixedTeacher())
    batch = replace(make_batch(), events=torch.rand(B, T, 2, 8, 20))
    output = Student()(batch.events)  # 2 x 5 cells
    patches = resample(supervision.teacher(batch.image).patches, (4, 4), (2, 5))
    expected = (supervision.projector_patches(output.patch_tokens.mean(1)) - patches).square()
    loss = supervision(output, batch)
    torch.testing.assert_close(loss.terms["patch_distill"], 0.3 * expected.mean())
    assert supervision.maps(output, batch).teacher.shape == (B, 2, 5)


def test_mixed_labels_reach_every_term_of_classes() -> None:
    supervision, plain = make(FixedTeacher(), weights=ALL), make_batch()
    batch = replace(plain, soft_label=torch.rand(B, K).softmax(1))
    output = Student()(batch.events)
    seen = supervision.teacher(batch.image)
    look = supervision.edge_detector.look(F.interpolate(batch.image, (12, 12), **SMALLER))
    target = seen.pooled + supervision.fusion.fuse(seen.patches, look.features, look.edges).added

    def missed(logits: Tensor) -> Tensor:
        return -(batch.soft_label * logits.log_softmax(1)).sum(1).mean()

    z = supervision.probe.linear(F.layer_norm(seen.pooled, (E,)))  # of no fused target
    apart = z.log_softmax(1).unsqueeze(1) - output.logits.log_softmax(2)
    terms = supervision(output, batch).terms
    for name, expected in {
        "cls": missed(output.logits.mean(1)),
        "target_cls": missed(supervision.target_head(target)),
        "logit_distill": missed(z) + (z.softmax(1).unsqueeze(1) * apart).sum(2).mean(),
    }.items():
        torch.testing.assert_close(terms[name], ALL[name] * expected, msg=name)


def test_the_pooled_target_is_the_teacher_s_feature_where_the_gate_is_closed(
    teacher: ClipTeacher,
) -> None:
    batch = make_batch()
    output = Student()(batch.events)
    seen = teacher(batch.image)
    closed = make(teacher, gate_bias=-1e4)
    student = closed.projector(output.class_token.mean(1))
    expected = 0.5 * (student - seen.pooled).square().mean()
    torch.testing.assert_close(closed(output, batch).terms["global_distill"], expected)
    opened = make(teacher, gate_bias=0.0)
    edges, features = opened.edge_detector(F.interpolate(batch.image, (12, 12), **SMALLER))
    added = opened.fusion(seen.patches, features, edges) - seen.patches.mean(1)
    expected = 0.5 * (student - seen.pooled - added).square().mean()
    got = opened(output, batch).terms["global_distill"]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_alignment_trains_the_student_and_only_if_asked_the_edges(teacher: ClipTeacher) -> None:
    only = dict.fromkeys(WEIGHTS, 0.0) | {"edge_align": 1.0, "edge_events": 1e-9}
    found = {}
    for asked in (False, True):
        student = Student()
        supervision = make(teacher, weights=only, align_edges=asked)
        backward(supervision, student, make_batch())
        assert student.embed.weight.grad.abs().max() > 1e-4
        found[asked] = supervision.edge_detector.encoder[0].weight.grad.abs().max()
    assert found[False] < 1e-8 < 1e-7 < found[True]


def extended(supervision: EdgeGuidedDistillation, size: int = 3) -> Batch:
    torch.manual_seed(5)
    return supervision.extend(replace(make_batch(), unpaired=torch.rand(size, 3, 16, 16)))


def test_a_bridge_adds_recordings_without_labels_drawn_from_the_rates(
    teacher: ClipTeacher,
) -> None:
    supervision, plain = make(teacher), make_batch()
    batch = extended(supervision)
    assert batch.unlabeled == 3
    assert batch.label.tolist() == [*plain.label.tolist(), -100, -100, -100]
    assert torch.equal(batch.events[:B], plain.events)
    assert torch.equal(batch.labeled.label, plain.label)
    drawn = batch.events[B:]
    assert drawn.shape == (3, T, 2, 12, 12)
    assert torch.equal(drawn, drawn.round())
    assert not drawn.requires_grad
    rates = supervision.edge_detector.look(
        F.interpolate(batch.image[B:], (12, 12), **SMALLER)
    ).rates
    total = rates.sum()  # of Poisson counts: mean and variance
    assert abs(drawn.sum() - total) < 4 * total.sqrt()
    assert supervision.eval().extend(replace(plain, unpaired=plain.image)).unlabeled == 0


@pytest.mark.parametrize("only", ["edge_align", "edge_reg", "global_distill"])
def test_edges_of_drawn_recordings_are_seen_where_a_term_asks_for_them(only: str) -> None:
    weights = dict.fromkeys(WEIGHTS, 0.0) | {only: 1.0, "edge_events": 1.0}
    target: Any = "fused" if only == "global_distill" else "pooled"
    supervision = make(FixedTeacher(), target=target, weights=weights)
    supervision.edge_detector.rate_head.weight.data *= 100  # untrained edges are almost one gray
    black = torch.zeros(3, 3, 16, 16)  # whose edges are other ones than those of noise
    batch = supervision.extend(replace(make_batch(), unpaired=black))
    output = Student()(batch.events)
    loss = supervision(output, batch)
    seen = supervision.teacher(batch.image)
    look = supervision.edge_detector.look(F.interpolate(batch.image, (12, 12), **SMALLER))
    if only == "edge_align":
        looks = resample(seen.attention.flatten(1).unsqueeze(2), (4, 4), GRID)
        p = edge_attention(looks.view(-1, *GRID), look.edges)
        q = activation_log_attention(output.patch_tokens.mean(1))
        expected = edge_alignment_loss(q, p)
    elif only == "edge_reg":  # of learned edges without their rim
        e = inner(look.edges)
        down, right = e[:, :, 1:] - e[:, :, :-1], e[..., 1:] - e[..., :-1]
        expected = e.mean() + (down.abs().sum() + right.abs().sum()) / e.numel()
    else:
        fused = seen.pooled + supervision.fusion.fuse(seen.patches, look.features, look.edges).added
        expected = (supervision.projector(output.class_token.mean(1)) - fused).square().mean()
    torch.testing.assert_close(loss.terms[only], expected)
    counts = correlation(look.edges[:B].detach(), footprint(batch.events[:B]))  # of those recorded
    torch.testing.assert_close(loss.metrics["edge_counts"], counts)


def test_terms_of_labels_and_recordings_see_the_recorded_samples_alone(
    teacher: ClipTeacher,
) -> None:
    supervision, student, plain = make(teacher, weights=ALL), Student(), make_batch()
    batch = extended(supervision)
    output = student(batch.events)
    short = supervision(student(plain.events), plain).terms
    long = supervision(output, batch).terms
    for name in ("cls", "contrastive", "edge_events", "target_cls"):
        torch.testing.assert_close(long[name], short[name])
    seen, patches = teacher(batch.image), supervision.projector_patches
    expected = resample(seen.patches, (4, 4), GRID)
    expected = (patches(output.patch_tokens.mean(1)) - expected).square().mean()
    torch.testing.assert_close(long["patch_distill"], ALL["patch_distill"] * expected)


@pytest.mark.parametrize("each_step", [False, True])
def test_the_probe_learns_from_labels_and_the_student_from_the_probe(
    teacher: ClipTeacher, each_step: bool
) -> None:
    only = dict.fromkeys(WEIGHTS, 0.0) | {"logit_distill": 2.0}
    supervision = make(teacher, edges="none", weights=only, each_step=each_step)
    student = Student()
    batch = extended(make(teacher))
    output = student(batch.events)
    term = supervision(output, batch).terms["logit_distill"]
    f = teacher(batch.image).pooled
    f = (f - f.mean(1, keepdim=True)) / (f.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    z = f @ supervision.probe.linear.weight.T + supervision.probe.linear.bias
    asked = output.logits.unbind(1) if each_step else [output.logits.mean(1)]
    n, total = len(batch.label) - batch.unlabeled, torch.zeros(())
    for row in range(n):  # the labeled ones
        total = total - z[row].log_softmax(0)[batch.label[row]] / n
    for x in asked:
        for row in range(len(x)):
            p, q = z[row].softmax(0), x[row].softmax(0)
            apart = sum(p[k] * (p[k].log() - q[k].log()) for k in range(K))
            total = total + apart / (len(x) * len(asked))
    torch.testing.assert_close(term, 2 * total)

    supervision.zero_grad()
    term.backward()
    learned = -z[:n].log_softmax(1)[range(n), batch.label[:n]].mean()
    (expected,) = torch.autograd.grad(2 * learned, supervision.probe.linear.weight)
    torch.testing.assert_close(supervision.probe.linear.weight.grad, expected)


def test_the_probe_computes_in_float32_and_gives_no_gradient_to_the_teacher() -> None:
    probe, target = Probe(E, K), torch.tensor([1, 0])
    feature = torch.randn(3, E, requires_grad=True)
    logits = torch.randn(3, T, K).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = probe(logits, feature, target)
        z = probe.linear(F.layer_norm(feature, (E,))).float()
    apart = z.log_softmax(1).unsqueeze(1) - logits.float().log_softmax(2)
    expected = (z.softmax(1).unsqueeze(1) * apart).sum(2).mean()
    expected = expected - z.log_softmax(1)[[0, 1], target].mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert feature.grad is None


def test_a_sum_gives_unlabeled_samples_to_the_guidance_alone(teacher: ClipTeacher) -> None:
    guidance = make(teacher, weights={"cls": 0.0})
    both, student, plain = Sum([TSE(), guidance]), Student(), make_batch()
    torch.manual_seed(5)
    batch = both.extend(replace(plain, unpaired=torch.rand(3, 3, 16, 16)))
    assert both.extends
    assert batch.unlabeled == 3
    output = student(batch.events)
    expected = TSE()(student(plain.events), plain).total + guidance(output, batch).total
    torch.testing.assert_close(both(output, batch).total, expected)


def test_a_bridge_of_fixed_edges_needs_no_detector_and_one_of_rates_does(
    teacher: ClipTeacher,
) -> None:
    drawn = extended(make(teacher, edges="none", bridge="sobel")).events[B:]
    assert drawn.sum() > 0
    assert torch.equal(drawn, drawn.round())
    weights = {"edge_events": 0.0, "edge_align": 0.0}
    untrained: dict[str, Any] = {"target": "pooled", "weights": weights}
    for options in ({"edges": "none"}, untrained):
        with pytest.raises(ValueError, match='set edges="learned", and a weight of edge_events or'):
            extended(make(teacher, **options))


@pytest.mark.slow
def test_warming_up_trains_the_detector_alone_for_so_many_steps(teacher: ClipTeacher) -> None:
    supervision, batch = make(teacher, warm_up=30), make_batch()
    before = {name: p.clone() for name, p in supervision.named_parameters()}
    drawn = []
    others = torch.full((3, T, 2, 12, 12), 1e3)  # of no recording: nothing is learned from them
    longer = replace(batch, unpaired=torch.rand(3, 3, 16, 16)).extend(others)

    def batches() -> Iterator[Batch]:
        while True:
            drawn.append(1)
            yield longer

    first = supervision(Student()(batch.events), batch).terms["edge_events"]
    supervision.prepare(batches())
    assert len(drawn) == 30
    assert supervision(Student()(batch.events), batch).terms["edge_events"] < first - 0.02
    for name, p in supervision.named_parameters():
        assert torch.equal(p, before[name]) != name.startswith("edge_detector"), name


@pytest.mark.slow
def test_edges_without_a_term_stay_as_the_warm_up_leaves_them(teacher: ClipTeacher) -> None:
    options = {"target": "pooled", "weights": {"edge_events": 0, "edge_align": 0, "contrastive": 0}}
    supervision, batch = make(teacher, warm_up=10, **options), make_batch(10)
    detector = supervision.edge_detector
    assert detector is not None
    assert make(teacher, **options).edge_detector is None
    start = [p.clone() for p in detector.parameters()]
    supervision.prepare(repeat(batch))
    warm = [p.clone() for p in detector.parameters()]
    assert all((a != b).any() for a, b in zip(start, warm, strict=True))
    student = Student()
    longer = supervision.extend(replace(batch, unpaired=torch.rand(3, 3, 16, 16)))
    loss = backward(supervision, student, longer)
    assert "edge_events" not in loss.terms
    assert all(p.grad is None and not p.requires_grad for p in detector.parameters())
    assert all(torch.equal(a, b) for a, b in zip(warm, detector.parameters(), strict=True))
    trained = make(teacher, target="pooled", weights={"edge_align": 0, "contrastive": 0})
    trained.edge_detector = detector
    seen = trained(student(batch.first(8).events), batch.first(8)).metrics
    for name in ("edge_mean", "edge_sobel", "edge_counts"):  # of the first eight recordings
        torch.testing.assert_close(loss.metrics[name], seen[name])


def test_edges_that_stay_are_used_by_fusion_and_alignment(teacher: ClipTeacher) -> None:
    options: dict[str, Any] = {"weights": {"edge_events": 0.0, "edge_align": 0.2}}
    supervision, student, batch = make(teacher, warm_up=1, **options), Student(), make_batch()
    assert supervision.frozen
    assert supervision.edge_detector is not None
    assert supervision.fusion is not None
    loss = backward(supervision, student, batch)
    assert all(p.grad is None for p in supervision.edge_detector.parameters())
    assert any(p.grad is not None and p.grad.any() for p in supervision.fusion.parameters())
    moving = make(teacher, **options)  # without a warm-up the fusion trains them
    moving.load_state_dict(supervision.state_dict())
    same = backward(moving, student, batch)
    assert moving.edge_detector is not None
    assert any(p.grad is not None and p.grad.any() for p in moving.edge_detector.parameters())
    for name, term in same.terms.items():
        torch.testing.assert_close(loss.terms[name], term, msg=name)
    for change in ({"align_edges": True}, {"weights": {"edge_events": 0.0, "edge_reg": 0.1}}):
        assert not make(teacher, warm_up=10, **(options | change)).frozen
    options = {"target": "pooled", "weights": {"edge_events": 0.0, "edge_align": 0.0}}
    assert make(teacher, warm_up=10, align_edges=True, **options).frozen  # nothing aligns them


def test_a_teacher_that_looks_once_teaches_the_same(
    teacher: ClipTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [make_batch(), replace(make_batch(), image=torch.rand(B, 3, 16, 16))]
    shown: list[int] = []
    see = ClipTeacher.forward

    def forward(self: ClipTeacher, image: Tensor) -> Any:
        shown.append(len(image))
        return see(self, image)

    monkeypatch.setattr(ClipTeacher, "forward", forward)
    every, once = make(teacher), make(teacher, cache_teacher=True)
    assert once.keeps_images
    assert once.kept_looks is None  # of edges that are trained
    assert not every.keeps_images
    assert once.state_dict().keys() == every.state_dict().keys()
    once.load_state_dict(every.state_dict())
    student = Student()
    for batch in [*batches, *batches]:
        shown.clear()
        a, b = (backward(s, student, batch) for s in (every, once))
        for name, term in a.terms.items():
            torch.testing.assert_close(b.terms[name], term, msg=name)
    assert shown == [B]


@pytest.mark.slow
def test_rates_of_edges_that_stay_are_predicted_once_and_anew_after_a_warm_up(
    teacher: ClipTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"target": "pooled", "warm_up": 5, "cache_teacher": True}
    weights = {"edge_events": 0.0, "edge_align": 0.0, "contrastive": 0.0}
    supervision = make(teacher, weights=weights, **options)
    assert make(teacher, weights=weights | {"edge_events": 1.0}, **options).kept_rates is None
    batch = make_batch(10)
    unpaired = torch.rand(3, 3, 16, 16)
    longer = replace(batch, unpaired=unpaired)
    detector = supervision.edge_detector
    assert isinstance(detector, LearnableEdgeDetector)
    shown: list[int] = []
    look = detector.look

    def watched(rgb: Tensor) -> Edges:
        shown.append(len(rgb))
        return look(rgb)

    monkeypatch.setattr(detector, "look", watched)
    found: list[Tensor] = []
    for again in (False, False, True):
        if again:
            supervision.prepare(repeat(batch))
        shown.clear()
        torch.manual_seed(0)
        events = supervision.extend(longer).events
        assert shown == ([] if found and not again else [PROBES + 3])
        torch.manual_seed(0)
        assert torch.equal(events, longer.extend(predict(detector, unpaired, batch)).events)
        found.append(events)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    ("options", "looks"),
    [
        ({"edge_grid": 3}, 1),
        ({"edge_grid": (2, 4)}, 1),
        ({"edge_grid": None}, 3),
        ({"target": "pooled"}, 1),
    ],
)
def test_edges_that_stay_are_seen_once_and_teach_the_same(
    teacher: ClipTeacher, options: dict[str, Any], looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"warm_up": 5, "weights": {"edge_events": 0.0}, "gate_bias": 3.0} | options
    every, once = (make(teacher, cache_teacher=kept, **options) for kept in (False, True))
    for p in every.edge_detector.parameters():
        p.data *= 4  # untrained edges are almost one gray
    once.load_state_dict(every.state_dict())
    detector, shown = once.edge_detector, list[int]()
    assert isinstance(detector, LearnableEdgeDetector)
    look = detector.look

    def watched(rgb: Tensor) -> Edges:
        shown.append(len(rgb))
        return look(rgb)

    monkeypatch.setattr(detector, "look", watched)
    student, batch = Student(), make_batch()
    for _ in range(3):
        a, b = (backward(s, student, batch) for s in (every, once))
        for name, term in a.terms.items():
            torch.testing.assert_close(b.terms[name], term, msg=name)
        found, expected = (gradients(s) for s in (once, every))
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name)
    assert shown == [B] * looks


def test_kept_rates_are_forgotten_when_others_are_loaded(teacher: ClipTeacher) -> None:
    options: dict[str, Any] = {"target": "pooled", "warm_up": 5, "cache_teacher": True}
    options["weights"] = {"edge_events": 0.0, "edge_align": 0.0, "contrastive": 0.0}
    supervision, other = make(teacher, **options), make(teacher, **options)
    assert isinstance(other.edge_detector, LearnableEdgeDetector)
    other.edge_detector.start_at(torch.full((T, 2), 9.0))
    longer = replace(make_batch(), unpaired=torch.rand(3, 3, 16, 16))
    output = Student()(longer.events)
    assert supervision.extend(longer).events[B:].mean() < 3
    assert supervision(output, longer).metrics["edge_mean"] < 0.9
    supervision.load_state_dict(other.state_dict())
    for part in (supervision, copy.deepcopy(supervision)):
        assert part.extend(longer).events[B:].mean() > 6
        assert part(output, longer).metrics["edge_mean"] > 0.99


def test_frames_that_are_pictures_have_no_events_to_learn_edges_from(teacher: ClipTeacher) -> None:
    batch = replace(make_batch(), events=torch.rand(B, T, 3, 12, 12))
    output = Student()(batch.events[:, :, :2])
    with pytest.raises(ValueError, match=r"edge_events: rates .* without them choose edges"):
        make(teacher)(output, batch)
    loss = make(teacher, weights={"edge_events": 0.0})(output, batch)
    assert loss.total.isfinite()


class Trained(nn.Module):
    """Student and supervision in one, as a trainer holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.student = Student()
        self.supervision = make(FixedTeacher(), positives="class", weights=ALL, warm_up=3)

    def forward(self, *fields: Tensor) -> Loss:
        batch = Batch(*fields)
        return self.supervision(self.student(batch.events), batch)


def rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=300),
    )
    found = trained_on(slice(2 * rank, 2 * rank + 2))
    if rank == 0:
        torch.save(found, f"{folder}/got.pt")
    dist.barrier()  # neither rank may close the store while the other still talks
    dist.destroy_process_group()


def trained_on(half: slice) -> dict[str, Any]:
    """Loss and gradients of a share of the batch.

    DDP ends here: one that outlives its group of gloo destroys it with Python's lock in hand,
    for which the group's threads may wait (torch 2.13).
    """
    batch = make_batch()
    fields = batch.events[half], batch.label[half], batch.image[half]
    module = Trained()
    module.supervision.prepare(repeat(Batch(*fields)))
    trained = DistributedDataParallel(module)
    loss = trained(*fields)
    loss.total.backward()
    mean = loss.total.detach() / 2
    dist.all_reduce(mean)
    return {"loss": mean, "grads": gradients(module)}


@pytest.mark.slow
def test_two_ranks_with_half_the_batch_each_are_one_rank_with_the_whole(tmp_path: Path) -> None:
    start_processes(rank_of_two, (str(tmp_path),), 2)
    got = torch.load(tmp_path / "got.pt")
    trained, batch = Trained(), make_batch()
    trained.supervision.prepare(repeat(batch))
    loss = trained(batch.events, batch.label, batch.image)
    loss.total.backward()
    torch.testing.assert_close(got["loss"], loss.total.detach())
    expected = gradients(trained)
    assert got["grads"].keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got["grads"][name], expected[name], atol=1e-6, rtol=1e-4)


def test_a_recipes_sum_gives_its_parts_the_facts_of_the_data(folder: Path) -> None:
    def recipe(**more: int) -> dict[str, Any]:
        arguments = {"teacher": str(folder), "weights": {"cls": 0.0}, **more}
        guided = {"class_path": "estl.supervision.EdgeGuidedDistillation", "init_args": arguments}
        summed = {"supervisions": [{"class_path": "estl.supervision.TSE"}, guided]}
        student = {"layers": [8, "AP", 12]}
        return {
            "data": {"class_path": "estl.data.Digits", "init_args": {"T": 3, "size": 16}},
            "student": {"class_path": "estl.students.VGGSNN", "init_args": student},
            "supervision": {"class_path": "estl.supervision.Sum", "init_args": summed},
        }

    built = build(*parse_recipe(recipe())).recipe["supervision"]["init_args"]["supervisions"][1]
    filled = {"student_dim": 12, "T": 3, "classes": 10}
    assert {key: built["init_args"][key] for key in filled} == filled
    with pytest.raises(
        ValueError, match=r"supervisions\.1\.init_args\.T is 4, but T of Digits and"
    ):
        build(*parse_recipe(recipe(T=4)))
