"""The optimizer's groups, the schedule, and what a checkpoint holds."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from estl.evaluation.accuracy import evaluate, running_mean
from estl.neurons import LIF, fused, kernels
from estl.neurons.fused import large_so_far
from estl.students import VGGSNN
from estl.students.layers import Layers, PerStep, conv_norm
from estl.supervision import TET, MeanCE
from estl.training.learner import Learner
from estl.training.rates import cosine
from estl.training.trouble import FiniteCheck
from estl.types import Batch, Loss, Output, Supervision


class WithPart(Supervision):
    """A supervision that trains something of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(4, 4)

    def forward(self, output: Output, batch: Batch) -> Loss:
        total = output.logits.square().mean() + self.projector.weight.square().mean()
        return Loss(total, {"cls": total})


def tiny(supervision: Supervision, **options: object) -> Learner:
    student = VGGSNN(classes=3, in_channels=2, frame_size=(8, 8), layers=(4, "AP"))
    return Learner(student, supervision, **options)


def batches(count: int = 3) -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [
        Batch(torch.rand(4, 2, 2, 8, 8, generator=draw), torch.randint(0, 3, (4,), generator=draw))
        for _ in range(count)
    ]


def loader() -> DataLoader[Batch]:
    return DataLoader(batches(), batch_size=None)


@pytest.mark.slow
def test_a_trainer_tests_and_predicts_from_a_loader_of_tuples() -> None:
    learner, options = tiny(MeanCE()), {"logger": False, "enable_checkpointing": False}
    pairs = [(b.events[i], int(b.label[i])) for b in batches() for i in range(4)]
    trainer = Trainer(max_epochs=1, enable_progress_bar=False, **options)
    trainer.fit(learner, DataLoader(pairs, batch_size=4))
    (found,) = trainer.test(learner, DataLoader(pairs, batch_size=5), verbose=False)
    assert found.keys() == {"test/loss", "test/acc"}
    accuracy = evaluate(learner.student, DataLoader(pairs, batch_size=5))
    assert found["test/acc"] == pytest.approx(accuracy.final)
    predicted = torch.cat(trainer.predict(learner, DataLoader(pairs, batch_size=5)))
    loss = nn.functional.cross_entropy(predicted, torch.tensor([label for _, label in pairs]))
    assert found["test/loss"] == pytest.approx(loss.item())
    assert predicted.shape == (12, 3)


def test_groups_hold_every_trained_parameter_once_and_decay_only_weights() -> None:
    learner = tiny(WithPart(), weight_decay=0.1, part_lr={"projector": 0.5})
    groups = learner.groups()
    held = [p for group in groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in learner.parameters()}
    assert len(held) == len(set(map(id, held)))
    for group in groups:
        decays = {p.ndim > 1 for p in group["params"]}
        assert decays == {group["weight_decay"] > 0}
    rates = {group["name"].split("/")[0]: group["lr"] for group in groups}
    assert rates == {"student": 1e-3, "projector": 0.5}


def test_a_part_that_nothing_belongs_to_is_refused() -> None:
    with pytest.raises(ValueError, match="edge_detektor"):
        tiny(WithPart(), part_lr={"edge_detektor": 1e-3}).groups()


def test_cosine_rises_through_the_warm_up_and_ends_at_zero() -> None:
    factors = [cosine(s, total=20, warmup=5) for s in range(21)]
    assert factors[:6] == sorted(set(factors[:6]))
    assert factors[5:] == sorted(set(factors[5:]), reverse=True)
    assert factors[5] == 1.0
    assert factors[20] == pytest.approx(0.0)
    assert factors[10] == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0.0), ("constant", 1.0)])
def test_a_warm_up_of_epochs_is_as_long_where_steps_end_the_run(
    schedule: str, end: float, tmp_path: Path
) -> None:
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=20, max_steps=6, default_root_dir=tmp_path, **options)
    learner = tiny(MeanCE(), warmup=1.0, schedule=schedule)
    trainer.fit(learner, loader())  # three steps an epoch
    (factor,) = learner.lr_schedulers().lr_lambdas[:1]
    assert [factor(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(6) == pytest.approx(end)


def test_a_loss_that_is_not_finite_is_named_by_the_first_step_that_was() -> None:
    check = FiniteCheck()
    check.stop()
    for cls, distill in ((1.0, 2.0), (1.0, float("inf")), (float("nan"), float("nan"))):
        terms = {"cls": torch.tensor(cls), "distill": torch.tensor(distill)}
        check.see(Loss(terms["cls"] + terms["distill"], terms))
        if distill == 2.0:
            check.stop()
    with pytest.raises(FloatingPointError, match=r"the loss \(distill\) is not finite"):
        check.stop()


@pytest.mark.slow
def test_training_stops_before_a_checkpoint_holds_what_is_not_finite(tmp_path: Path) -> None:
    class Explodes(WithPart):
        steps = 0

        def forward(self, output: Output, batch: Batch) -> Loss:
            loss = super().forward(output, batch)
            self.steps += 1
            factor = float("nan") if self.steps > 4 else 1.0  # in the second epoch, off the beat
            return Loss(factor * loss.total, {"cls": factor * loss.total})

    trainer = Trainer(
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    with pytest.raises(FloatingPointError, match=r"the loss \(cls\) is not finite"):
        trainer.fit(tiny(Explodes()), loader())
    (path,) = tmp_path.glob("checkpoints/*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.slow
def test_collapsed_edges_are_warned_of_once(tmp_path: Path) -> None:
    class Gray(WithPart):
        def forward(self, output: Output, batch: Batch) -> Loss:
            loss = super().forward(output, batch)
            return Loss(loss.total, loss.terms, {"edge_spread": torch.tensor(1e-5)})

    trainer = Trainer(
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    with pytest.warns(UserWarning, match="edge map has collapsed") as caught:
        trainer.fit(tiny(Gray()), loader())
    assert len([w for w in caught if "collapsed" in str(w.message)]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("supervision", [MeanCE(), TET(), WithPart()])
def test_a_checkpoint_holds_the_students_keys_and_resumes(
    supervision: Supervision, tmp_path: object
) -> None:
    options = {
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
    }
    learner = tiny(supervision, recipe={"seed": 1}, classes=("a", "b", "c"))
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    trainer = Trainer(**options)
    trainer.fit(learner, loader())
    path = f"{tmp_path}/last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert saved["state_dict"].keys() == learner.student.state_dict().keys()
    assert saved["supervision"].keys() == supervision.state_dict().keys()
    assert saved["recipe"] == {"seed": 1}
    assert saved["classes"] == ["a", "b", "c"]

    again = tiny(type(supervision)())
    again.load_state_dict(before)
    options["max_epochs"] = 2
    Trainer(**options).fit(again, loader(), ckpt_path=path)
    for name, value in learner.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


class Extending(WithPart):
    """Prepares itself on batches, and gives each another sample that has no label."""

    extends = True

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[Batch] = []
        self.seen: list[tuple[int, int]] = []

    def prepare(self, batches: Iterator[Batch]) -> None:
        self.prepared += islice(batches, 5)

    def extend(self, batch: Batch) -> Batch:
        image = torch.zeros(len(batch.label), 3, 4, 4)
        return replace(batch, image=image, unpaired=image[:1]).extend(batch.events[:1])

    def forward(self, output: Output, batch: Batch) -> Loss:
        self.seen.append((len(output.logits), batch.unlabeled))
        return super().forward(output, batch)


@pytest.mark.slow
def test_a_supervision_prepares_itself_once_and_extends_every_training_batch(
    tmp_path: Path,
) -> None:
    learner = tiny(supervision := Extending(), lr=1e-9)
    options = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = Trainer(max_epochs=1, **options)
    trainer.fit(learner, loader())
    events = [batch.events for batch in batches()]
    expected = [*events, *events[:2]]  # over and over
    assert len(supervision.prepared) == 5
    for batch, wanted in zip(supervision.prepared, expected, strict=True):
        assert torch.equal(batch.events, wanted)
    assert supervision.seen == [(5, 1)] * 3
    quarters = 4 * trainer.callback_metrics["train/acc"] * 3  # of the four that have a label
    assert quarters == pytest.approx(round(float(quarters)), abs=1e-4)
    again = Trainer(max_epochs=2, **options)
    again.fit(learner, loader(), ckpt_path=next(tmp_path.glob("checkpoints/*.ckpt")))
    assert len(supervision.prepared) == 5
    assert len(supervision.seen) == 6


class Drawing(MeanCE):
    """As a supervision that takes no samples without a label; it notes how many it gets."""

    def forward(self, output: Output, batch: Batch) -> Loss:
        self.seen = len(output.logits), len(batch.label), batch.unlabeled
        return super().forward(output, batch)


def test_a_supervision_that_does_not_extend_sees_no_samples_without_a_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, (batch, *_) = tiny(supervision := Drawing()), batches()
    image = torch.zeros(4, 3, 4, 4)
    batch = replace(batch, image=image, unpaired=image[:2]).extend(batch.events[:2])
    monkeypatch.setattr(learner, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(learner, "log", lambda *_, **__: None)
    learner.trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    learner.training_step(batch, 0)
    assert supervision.seen == (4, 4, 0)


class Own(nn.Module):
    """A student of a user's, which notes whether a large layer was before its last one."""

    dim, seen = 4, None

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers(conv_norm(2, 4), LIF.tet(), PerStep(nn.AvgPool2d(2)))
        self.last = Layers(conv_norm(4, 4), LIF.tet())
        self.head = nn.Linear(4, 3)

    def forward(self, events: torch.Tensor) -> Output:
        maps = self.layers(events)
        self.seen = large_so_far()
        features = self.last(maps)
        pooled = features.mean((-2, -1))
        return Output(self.head(pooled), features, classify=self.head, class_token=pooled)


@pytest.mark.parametrize("large", [False, True])
def test_a_students_layers_know_of_one_another(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESTL_COMPILE", raising=False)
    monkeypatch.setattr(kernels, "_no_compiler", {"cpu"})
    batch = Batch(torch.rand(2, 3, 2, 8, 8), torch.tensor([0, 2]))
    monkeypatch.setattr(fused, "LARGE", 2 * 3 * 4 * 64 + (not large))
    learner = Learner(Own(), MeanCE())
    monkeypatch.setattr(learner, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(learner, "log", lambda *_, **__: None)
    learner.trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    learner.training_step(batch, 0)
    assert learner.student.seen is large
    assert large_so_far() is None


def test_evaluate_equals_counting_by_hand() -> None:
    student = VGGSNN(classes=3, in_channels=2, frame_size=(8, 8), layers=(4, "AP"))
    found = evaluate(student, batches(), torch.device("cpu"))
    hits = [0, 0]
    for batch in batches():
        logits = student(batch.events).logits
        for b in range(4):
            for t in range(2):
                guess = int(sum(logits[b, s] for s in range(t + 1)).argmax())
                hits[t] += guess == int(batch.label[b])
    assert found.samples == 12
    assert found.per_step == pytest.approx([h / 12 for h in hits])
    assert found.final == found.per_step[-1]


def test_running_mean_is_the_mean_so_far() -> None:
    logits = torch.randn(2, 5, 3)
    for t in range(5):
        torch.testing.assert_close(running_mean(logits)[:, t], logits[:, : t + 1].mean(1))


def test_a_learning_rate_of_sgd_is_warned_of_under_adam() -> None:
    for optimizer in ("adam", "adamw"):
        with pytest.warns(UserWarning, match=r"lr 0\.1 .*--optimizer sgd"):
            tiny(MeanCE(), optimizer=optimizer, lr=0.1)
    tiny(MeanCE(), optimizer="sgd", lr=0.1)  # a warning would be an error
    tiny(MeanCE(), optimizer="adamw", lr=0.05)
