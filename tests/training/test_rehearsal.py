"""A rehearsal trains what the run would train, says what it is, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from estl.commands import main
from estl.data.sets.digits import Digits
from estl.training.recipe import parse_recipe
from estl.training.rehearsal import Rehearsal, rehearse

RECIPE: dict[str, Any] = {
    "data": {
        "class_path": "estl.data.Digits",
        "init_args": {"T": 3, "size": 16, "per_class": 4, "batch_size": 12},
    },
    "student": {"class_path": "estl.students.VGGSNN", "init_args": {"layers": [8, "AP", 16]}},
    "trainer": {"max_epochs": 7},
}


def rehearsed(**changes: Any) -> Rehearsal:
    return rehearse(*parse_recipe(RECIPE | changes))


@pytest.mark.slow
def test_it_tells_the_shapes_the_sizes_and_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = rehearsed(learner={"lr": 0.01})
    assert not list(tmp_path.iterdir())
    assert (found.steps, found.epochs) == (4, 7)  # 40 samples in batches of 12
    assert found.seconds == pytest.approx(28 * found.step_seconds)
    assert 0 < found.step_seconds < 60
    text = "\n".join(found.lines())
    convolutions = (2 * 9 * 8 + 8) + 2 * 8 + (8 * 9 * 16 + 16) + 2 * 16  # and their batch norms
    head = 16 * 8 * 8 * 10 + 10
    for line in (
        "data: Digits",
        "train 40, val 145, test 359",
        "batch: 12 x T 3 x 2 x 16 x 16",
        f"student: VGGSNN, {convolutions + head:,} parameters; features 12x3x16x8x8, logits 12x",
        "supervision: MeanCE: True",
        f"learning rates (parameters): student 0.01 ({convolutions + head:,})",
        "4 steps an epoch, 7 epochs",
    ):
        assert line in text, line


@pytest.mark.slow
def test_a_run_that_ends_after_a_number_of_steps_has_the_epochs_of_these() -> None:
    trainer = {"max_epochs": 7, "max_steps": 5, "accumulate_grad_batches": 2}
    assert rehearsed(trainer=trainer).epochs == 3  # 10 batches, 4 an epoch


@pytest.mark.slow
def test_the_weights_are_trained_for_two_steps() -> None:
    first, again = rehearsed(), rehearsed()
    for a, b in zip(
        first.parts.student.parameters(), again.parts.student.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    torch.manual_seed(0)
    fresh = rehearsed(learner={"lr": 1e-12}).parts.student.state_dict()
    trained = first.parts.student.state_dict()
    assert not torch.allclose(trained["head.weight"], fresh["head.weight"], atol=1e-4)


@pytest.mark.slow
def test_what_cannot_be_trained_or_tested_on_is_refused() -> None:
    data = RECIPE["data"]["init_args"]
    with pytest.raises(ValueError, match="the test split is empty"):
        rehearsed(data={"class_path": "estl.data.Digits", "init_args": data | {"test_fraction": 0}})
    with pytest.raises(ValueError, match=r"part_lr names \['fusion'\]"):
        rehearsed(learner={"part_lr": {"fusion": 1.0}})


def test_what_the_run_would_be_refused_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estl.training.trainer.find_spec", lambda name: None)
    for options, says in (
        ({"devices": "cuda"}, r"devices is cuda: give how many, or which \(0,1\), or auto"),
        ({"logger": "wandb"}, "logger wandb needs wandb: pip install"),
    ):
        with pytest.raises(ValueError, match=says):
            rehearsed(trainer=options)


@pytest.mark.slow
def test_a_set_without_validation_is_rehearsed_too() -> None:
    data = RECIPE["data"]["init_args"] | {"val_fraction": 0.0}
    found = rehearsed(data={"class_path": "estl.data.Digits", "init_args": data})
    assert found.parts.data.sizes["val"] == 0
    assert isinstance(found.parts.data, Digits)


@pytest.mark.slow
def test_the_command_prints_it_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--dataset=digits", "--arch=vggsnn-pooled", "--student.init_args.layers=[8,AP,16]"]
    small = ["--T=3", "--data.init_args.size=16", "--data.init_args.per_class=4"]
    assert main(["fit", *words, *small, "--tse", "--tau-f=0.3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "supervision: TSE: True, tau_f=0.3, kappa=1.0" in out
    assert not list(tmp_path.iterdir())
