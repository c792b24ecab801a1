"""What a training refuses of a student, a supervision or an option, in one line."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn

from estl.students import VGGSNN
from estl.supervision import TSE, MeanCE
from estl.training.contract import check_loss, check_student
from estl.training.learner import Learner
from estl.types import Batch, Loss, Output, Supervision

B, T, K = 4, 3, 10


def small_student(**options: Any) -> nn.Module:
    return VGGSNN(K, frame_size=(8, 8), layers=(8,), **{"pooled": True} | options)


def make_batch() -> Batch:
    return Batch(torch.rand(B, T, 2, 8, 8), torch.arange(B))


def fitted(student: nn.Module, supervision: Supervision) -> None:
    """Two steps of training."""
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    batches: Any = torch.utils.data.DataLoader([make_batch()] * 2, batch_size=None)
    trainer.fit(Learner(student, supervision, classes=tuple("0123456789")), batches)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out.logits, out.features), "returned a tuple: return an estl.Output"),
        (lambda out: out.logits, "returned a Tensor: return an estl.Output"),
        (lambda out: replace(out, logits=out.logits[..., :7]), "7 classes .*the data 10"),
    ],
)
def test_an_output_that_is_none_is_refused(change: Callable[[Output], Any], message: str) -> None:
    student, batch = small_student(), make_batch()
    with pytest.raises(ValueError, match=message):
        check_student(student, change(student(batch.events)), batch, classes=K)


@pytest.mark.parametrize(
    ("field", "change", "found"),
    [
        ("logits", lambda x: x.mean(1), r"\(4, 10\), but has to be \(B,T,K\) with B = 4 and T = 3"),
        ("logits", lambda x: x.transpose(0, 1), r"\(3, 4, 10\)"),
        ("features", lambda x: None, "NoneType"),
        ("features", lambda x: x.flatten(3), r"\(4, 3, 8, 64\)"),
        ("class_token", lambda x: x[:, :1], r"\(4, 1, 8\)"),
    ],
)
def test_shapes_are_those_that_output_says(
    field: str, change: Callable[[Tensor], Any], found: str
) -> None:
    student, batch = small_student(), make_batch()
    output = student(batch.events)
    object.__setattr__(output, field, change(getattr(output, field)))
    with pytest.raises(ValueError, match=f"VGGSNN: Output.{field} is {found}"):
        check_student(student, output, batch)


class OfMaxima(nn.Module):
    """A student whose head reads maxima."""

    def __init__(self, pooled_head: bool) -> None:
        super().__init__()
        self.maps, self.head = nn.Sequential(nn.Conv2d(2, 8, 3)), nn.Linear(8, K)
        self.pooled_head = pooled_head

    def pool(self, maps: Tensor) -> Tensor:
        return maps.amax((-2, -1))

    def forward(self, events: Tensor) -> Output:
        maps = self.maps(events.flatten(0, 1)).unflatten(0, events.shape[:2])
        pooled = self.pool(maps)
        logits = self.head(pooled)
        return Output(logits, maps, self.head, pooled, pooled_head=self.pooled_head)


def test_a_head_that_reads_something_else_has_to_say_so() -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match=r"not classify\(features.mean.*pooled_head=False"):
        check_student(student := OfMaxima(pooled_head=True), student(batch.events), batch)
    check_student(student := OfMaxima(pooled_head=False), student(batch.events), batch)


class Dropping(nn.Linear):
    """A head with a dropout that is no module."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, 0.5, self.training))


def test_asking_a_head_that_draws_changes_no_draw_and_refuses_nothing() -> None:
    student, batch = OfMaxima(pooled_head=True), make_batch()
    student.head = Dropping(8, K)
    nn.init.normal_(student.head.weight)
    output, state = student(batch.events), torch.get_rng_state()
    check_student(student, output, batch)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="not classify"):
        check_student(student.eval(), student(batch.events), batch)


def test_a_head_that_answers_otherwise_in_training_is_taken_at_its_word() -> None:
    student, batch = OfMaxima(pooled_head=True), make_batch()
    for layer in (nn.Dropout(0.5), nn.BatchNorm1d(T)):
        changing = nn.Sequential(layer, student.head)
        check_student(student, replace(student(batch.events), classify=changing), batch)
    assert not layer.num_batches_tracked


def of(total: Any, terms: dict[str, Any], metrics: dict[str, Any] | None = None) -> Loss:
    """A loss that type checks of the tests have not seen."""
    loss = Loss(torch.zeros(()), {})
    for name, value in {"total": total, "terms": terms, "metrics": metrics or {}}.items():
        object.__setattr__(loss, name, value)
    return loss


ONE = torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (ONE, "returned a Tensor: return an estl.Loss"),
        ({"loss": ONE}, "returned a dict"),
        (of(torch.ones(3, requires_grad=True), {}), r"Loss.total has to be one number.*\(3,\)"),
        (of(ONE, {"a": 1.0}), r"Loss.terms\['a'\] has to be one number.*a float"),
        (of(ONE, {"a": ONE}, {"b": 1}), r"Loss.metrics\['b'\].*an? int"),
        (of(ONE.detach(), {"a": ONE}), "no gradient"),
        (of(ONE, {"a": 0.1 * ONE}), "terms sum to 0.1, but total is 1"),
    ],
)
def test_a_loss_that_cannot_be_learned_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"MeanCE.*{message}"):
        check_loss(MeanCE(), loss)


@pytest.mark.slow
def test_a_training_says_so_at_its_first_step() -> None:
    class Half(MeanCE):
        def forward(self, output: Output, batch: Batch) -> Loss:
            loss = super().forward(output, batch)
            return Loss(2 * loss.total, loss.terms)

    with pytest.raises(ValueError, match=r"Half: Loss\.terms sum to"):
        fitted(small_student(), Half())
    with pytest.raises(ValueError, match="OfMaxima"):  # validation comes first
        Learner(OfMaxima(pooled_head=True), MeanCE()).validation_step(make_batch(), 0)
    with pytest.raises(ValueError, match="OfMaxima"):
        fitted(OfMaxima(pooled_head=True), TSE())
    frozen = small_student().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing of the student is trained"):
        fitted(frozen, MeanCE())
    fitted(student := small_student().eval(), TSE())
    assert student.training
    assert student.layers[0][1].running_mean.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "step"}, "schedule is 'step': it must be one of cosine, constant"),
        ({"optimizer": "rmsprop"}, "optimizer is 'rmsprop': it must be one of adamw, adam, sgd"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0: it must be 0 or more"),
        ({"warmup": -1.0}, "warmup is -1.0: it must be 0 or more"),
        ({"lr": 0.0}, "lr is 0.0: it must be above 0"),
        ({"part_lr": {"kappa": -1.0}}, "part_lr of kappa is -1.0: it must be above 0"),
    ],
)
def test_options_outside_their_ranges_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Learner(small_student(), MeanCE(), **options)


def test_a_part_of_the_supervision_is_no_layer_of_the_student() -> None:
    class Weighted(MeanCE):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    rates = {"weight": 0.1, "student.head": 0.2}
    groups = Learner(small_student(), Weighted(), lr=0.03, part_lr=rates).groups()
    found = {group["name"]: group["lr"] for group in groups}
    assert found == {
        "student/weights": 0.03,
        "student/biases": 0.03,
        "student.head/weights": 0.2,
        "student.head/biases": 0.2,
        "weight/biases": 0.1,
    }
