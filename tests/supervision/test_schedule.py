"""Schedules of thresholds, how the training's progress reaches them, and learned numbers."""

import math
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from estl.students import VGGSNN
from estl.supervision import TRE, TSE, DenseTSE, MeanCE, Schedule, Sum, tse_loss
from estl.supervision.schedule import Positive, unscheduled
from estl.training.learner import Learner
from estl.types import Batch, Loss, Output, Supervision


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_a_line_and_a_half_cosine_go_from_start_to_end(warmup: float) -> None:
    line = Schedule(0.9, 0.3, "linear", warmup)
    wave = Schedule(0.9, 0.3, "cosine", warmup)
    for u, cosine in ((0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1.0, 0.0)):
        x = warmup + u * (1 - warmup)
        assert line(x) == pytest.approx(0.9 - 0.6 * u)
        assert wave(x) == pytest.approx(0.3 + 0.6 * cosine)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_the_warm_up_ends_at_its_share_and_starts_at_start(shape: Any) -> None:
    schedule = Schedule(0.4, None if shape == "constant" else 0.8, shape, warmup=0.3)
    assert schedule(0.0) > 1.0
    assert schedule(math.nextafter(0.3, 0.0)) > 1.0
    assert schedule(0.3) == 0.4


def test_a_constant_is_its_start_at_any_progress() -> None:
    assert {Schedule(0.4)(x / 10) for x in range(11)} == {0.4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -0.1}, r"^start must be >= 0 and finite, not -0.1$"),
        ({"start": math.nan}, r"^start must be .* not nan$"),
        ({"start": math.inf}, r"^start must be .* not inf$"),
        ({"start": 0.5, "end": -1.0, "shape": "linear"}, r"^end must be >= 0 and finite, not -1.0"),
        ({"start": 0.5, "end": 0.3}, r"^end must be None for shape='constant', not 0.3$"),
        ({"start": 0.5, "shape": "cosine"}, r"^end must be a number for shape='cosine', not None$"),
        ({"start": 0.5, "shape": "step"}, r"^shape must be .* not 'step'$"),
        ({"start": 0.5, "warmup": 1.0}, r"^warmup must be in \[0,1\), not 1.0$"),
        ({"start": 0.5, "warmup": -0.1}, r"^warmup must be in \[0,1\), not -0.1$"),
        ({"start": 0.5, "warmup": math.nan}, r"^warmup must be in \[0,1\), not nan$"),
    ],
)
def test_a_schedule_refuses_what_it_cannot_follow(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
def test_a_progress_outside_zero_to_one_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match=r"^progress must be in \[0,1\], not"):
        Schedule(0.5)(progress)


Example = tuple[Output, Batch, nn.Linear]


def test_tse_on_a_schedule_is_tse_with_its_value_at_the_progress_it_was_told(
    pooled_example: Example,
) -> None:
    output, batch, head = pooled_example
    tse = TSE(Schedule(0.5, 0.1, "linear"), kappa=0.0)
    seen = []
    for progress in (None, 0.0, 0.5, 1.0):  # None: never told, the start
        if progress is not None:
            tse.at(progress)
        loss = tse(output, batch)
        tau_f = 0.5 - 0.4 * (progress or 0.0)
        assert loss.metrics["tau_f"].item() == pytest.approx(tau_f)
        expected = tse_loss(output.features, head, batch.label, tau_f=tau_f, kappa=0.0)
        torch.testing.assert_close(loss.total, expected, rtol=0, atol=0)
        seen.append(loss.total.item())
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_a_constant_schedule_is_plain_tse(pooled_example: Example) -> None:
    output, batch, _ = pooled_example
    plain, scheduled = TSE(0.1, 0.5), TSE(Schedule(0.1), 0.5)
    scheduled.at(0.37)
    assert torch.equal(plain(output, batch).total, scheduled(output, batch).total)
    assert "tau_f" not in plain(output, batch).metrics


@pytest.mark.parametrize("value", [{"start": 0.9, "end": 0.5, "shape": "cosine"}, "0.5", None])
def test_a_threshold_that_is_neither_a_number_nor_a_schedule_is_refused(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks
    for kind, name in ((TSE, "tau_f"), (TRE, "theta0"), (DenseTSE, "tau_f")):
        with pytest.raises(ValueError, match=rf"^{name} must be a number or a Schedule") as refusal:
            kind(**{name: value})
        assert str(refusal.value).endswith(f", not {value!r}")
    assert list(unscheduled(tau_f=torch.tensor(0.5), theta0=Schedule(0.5))) == ["tau_f"]
    for fixed in (value, Schedule(0.5)):  # there is no schedule for the others
        for kind, name in ((TSE, "kappa"), (TRE, "lamb"), (DenseTSE, "kappa")):
            with pytest.raises(ValueError, match=rf"^{name} must be a number, not"):
                kind(**{name: fixed})


@pytest.mark.parametrize("kind", [TSE, TRE])
def test_in_the_warm_up_nothing_is_erased(
    kind: type[TSE] | type[TRE], pooled_example: Example
) -> None:
    output, batch, _ = pooled_example
    supervision = kind(Schedule(0.1, warmup=0.2), 0.0)
    supervision.at(0.19)
    plain = sum(F.cross_entropy(output.logits[:, t], batch.label) for t in range(4))
    torch.testing.assert_close(supervision(output, batch).total, plain)
    supervision.at(0.2)
    assert (supervision(output, batch).total - plain).abs() > 1e-4


class Diary(Supervision):
    """Writes down the progress that its neighbor has been told."""

    def __init__(self, neighbor: TSE) -> None:
        super().__init__()
        self.told: list[float] = []
        self.progress = lambda: neighbor.progress

    def forward(self, output: Output, batch: Batch) -> Loss:
        self.told.append(self.progress())
        return MeanCE()(output, batch)


def batches() -> DataLoader[Batch]:
    draw = torch.Generator().manual_seed(1)
    rows = [
        Batch(torch.rand(4, 2, 2, 8, 8, generator=draw), torch.randint(0, 3, (4,), generator=draw))
        for _ in range(4)
    ]
    return DataLoader(rows, batch_size=None)


def train(
    path: object, epochs: int, max_epochs: int, accumulate: int = 1, resume: str | None = None
) -> tuple[Learner, Trainer, list[float]]:
    tse = TSE(Schedule(0.9, 0.1, "linear", warmup=0.5), learn_kappa=True)
    diary = Diary(tse)
    student = VGGSNN(classes=3, frame_size=(8, 8), layers=(4, "AP"), pooled=True)
    learner = Learner(
        student, Sum([tse, diary]), weight_decay=0.5, part_lr={"kappa": 0.25}, recipe={"seed": 1}
    )
    trainer = Trainer(
        max_epochs=max_epochs,
        accumulate_grad_batches=accumulate,
        default_root_dir=path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        accelerator="cpu",
    )
    if epochs < max_epochs:  # break off early
        stop = learner.on_train_epoch_end

        def on_train_epoch_end() -> None:
            stop()
            trainer.should_stop = trainer.current_epoch + 1 >= epochs

        learner.on_train_epoch_end = on_train_epoch_end
    trainer.fit(learner, batches(), batches(), ckpt_path=resume)
    return learner, trainer, diary.told


@pytest.mark.slow
def test_the_learner_tells_each_part_the_share_of_steps_done(tmp_path: object) -> None:
    _, _, told = train(tmp_path, 2, 2)
    assert told == [n / 8 for n in range(8)]
    _, _, told = train(tmp_path, 2, 2, accumulate=2)  # four steps of two batches
    assert told == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


@pytest.mark.slow
def test_a_resumed_run_is_told_where_it_was(tmp_path: object) -> None:
    _, trainer, told = train(tmp_path, 1, 2)
    assert told == [n / 8 for n in range(4)]
    path = f"{tmp_path}/last.ckpt"
    trainer.save_checkpoint(path)
    _, _, told = train(tmp_path, 2, 2, resume=path)
    assert told == [n / 8 for n in range(4, 8)]


@pytest.mark.slow
def test_kappa_has_a_learning_rate_of_its_own_no_weight_decay_and_learns(tmp_path: object) -> None:
    learner, _, _ = train(tmp_path, 2, 2)
    (group,) = [g for g in learner.groups() if g["name"].startswith("kappa/")]
    assert group["lr"] == 0.25
    assert group["weight_decay"] == 0.0
    assert [p is learner.supervision.supervisions[0].kappa.raw for p in group["params"]] == [True]
    assert "supervisions.0.kappa.raw" in learner.supervision.state_dict()


def test_a_positive_number_starts_where_it_should_and_has_the_slope_of_softplus() -> None:
    for start in (1e-4, 0.3, 1.0, 40.0, 200.0):
        number = Positive(start)
        assert number().item() == pytest.approx(start, rel=1e-5)
    number = Positive(0.7).double()
    assert torch.autograd.gradcheck(F.softplus, (number.raw,))
    number().backward()
    assert number.raw.grad is not None
    assert number.raw.grad.item() == pytest.approx(1 - math.exp(-0.7))
