"""A training step stays on its device: it mixes no devices, and waits for no value.

Tensors on "meta" have no values, so that reading one raises, as does mixing them with the CPU's.
That is what a step on CUDA must not do; it needs no GPU to be seen.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import estl.students as students
from estl.data.augment import Augment
from estl.experiments.ablate import GUIDED, RUNGS, rungs
from estl.guidance import ClipTeacher
from estl.students.recompute import recomputing
from estl.supervision import TET, TRE, TSE, EdgeGuidedDistillation, MeanCE, Sum
from estl.types import Batch, Loss, Output, Supervision

B, T, K, U = 4, 3, 5, 2

STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "vggsnn": lambda: students.VGGSNN(K, 2, (32, 32), layers=[4, "AP", 8, "AP"], pooled=True),
    "resnet": lambda: students.ResNet([1, 1], [4, 8], K, 2, stem_width=4),
    "spikformer": lambda: students.Spikformer(K, 2, dim=32, depth=1, heads=4),
}
SUPERVISIONS: dict[str, Callable[[], Supervision]] = {
    "plain": MeanCE,
    "tet": TET,
    "tse": TSE,
    "tre": TRE,
    "sum": lambda: Sum([TSE(), TET()], [0.5, 0.5]),
}
RECIPE = {
    "data": {"init_args": {"bridge": {"images": "unused"}}},
    "trainer": {"max_epochs": 1},
    "supervision": {"class_path": GUIDED, "init_args": {"teacher": ""}},
}
GUIDED_RUNGS = [name for name in RUNGS if name not in ("1", "1t")]


@pytest.fixture(autouse=True)
def _what_meta_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two things that PyTorch has on every device but this: a kernel, and autocast."""
    monkeypatch.setattr(torch, "binomial", lambda count, prob: torch.empty_like(prob))
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())


def make(unpaired: int = 0) -> Batch:
    """A batch on the device that has no values."""
    events = torch.rand(B, T, 2, 32, 32, device="meta")
    label = torch.zeros(B, dtype=torch.long, device="meta")
    image = torch.rand(B + unpaired, 3, 32, 32, device="meta")
    return Batch(events, label, image[:B], unpaired=image[B:] if unpaired else None)


def step(student: nn.Module, supervision: Supervision, batch: Batch) -> None:
    batch = supervision.extend(batch)
    loss = supervision(student(batch.events), batch)
    loss.total.backward()
    assert all(x.is_meta for x in (loss.terms | loss.metrics).values())
    assert all(p.grad is None or p.grad.is_meta for p in student.parameters())
    assert any(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("supervision", SUPERVISIONS)
@pytest.mark.parametrize("student", STUDENTS)
def test_a_step_reads_no_value(student: str, supervision: str) -> None:
    step(STUDENTS[student]().to("meta"), SUPERVISIONS[supervision]().to("meta"), make())


@pytest.mark.parametrize("name", GUIDED_RUNGS)
def test_a_guided_step_reads_no_value(name: str, clip_folder: Path) -> None:
    overlay = rungs(RECIPE, [name])[0].overlay
    options = {
        key: value
        for key, value in overlay["supervision"]["init_args"].items()
        if value is not None and key not in ("teacher", "student_dim", "T", "classes")
    }
    guided = EdgeGuidedDistillation(
        ClipTeacher(clip_folder), student_dim=8, T=T, classes=K, **options
    )
    unpaired = U if overlay.get("data", {}).get("init_args", {}).get("bridge") is not None else 0
    step(STUDENTS["vggsnn"]().to("meta"), guided.to("meta").train(), make(unpaired))


@pytest.mark.slow
def test_the_detector_is_prepared_without_reading(clip_folder: Path) -> None:
    guided = EdgeGuidedDistillation(clip_folder, student_dim=8, T=T, classes=K, warm_up=2)
    guided.to("meta").prepare(make() for _ in range(3))


def test_augmenting_and_recomputing_read_no_value() -> None:
    batch = Augment(flip=0.5, shift=0.1, rotation=10.0, scale=0.1)(make(), classes=K)
    student = STUDENTS["vggsnn"]().to("meta")
    recomputing(student)
    step(student, TSE().to("meta"), batch)


class Reads(MeanCE):
    """Asks for a value in its step."""

    def forward(self, output: Output, batch: Batch) -> Loss:
        loss = super().forward(output, batch)
        assert float(loss.total) >= 0
        return loss


class Mixes(MeanCE):
    """Has a tensor that does not move with it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor = torch.ones(K)

    def forward(self, output: Output, batch: Batch) -> Loss:
        assert (output.logits * self.weight).shape == output.logits.shape
        return super().forward(output, batch)


@pytest.mark.parametrize(("wrong", "says"), [(Reads, "item"), (Mixes, "device")])
def test_a_step_that_does_is_seen(wrong: type[Supervision], says: str) -> None:
    student, supervision = STUDENTS["vggsnn"]().to("meta"), wrong().to("meta")
    with pytest.raises(RuntimeError, match=says):
        step(student, supervision, make())
