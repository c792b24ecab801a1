"""What is kept of the weights that a training starts from, and that looking changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from estl.data.sets.digits import Digits
from estl.report.start import Start
from estl.students import VGGSNN
from estl.supervision import TSE
from estl.training.learner import Learner


def data() -> Digits:
    return Digits(T=3, size=16, per_class=2)


def learner() -> Learner:
    torch.manual_seed(0)
    student = VGGSNN(
        classes=10, in_channels=2, frame_size=(16, 16), layers=(8, "AP", 8), pooled=True
    )
    student.layers[0].eval()  # frozen by its owner: it must stay so
    return Learner(student, TSE(tau_f=0.05))


def state(module: torch.nn.Module) -> list[Any]:
    weights = [value.clone() for value in module.state_dict().values()]
    return [weights, [m.training for m in module.modules()], torch.get_rng_state()]


class Compare(Callback):
    """Keeps the state before and after what stands between two of them."""

    states: list[list[Any]]

    def on_train_start(self, trainer: Trainer, pl_module: Learner) -> None:  # type: ignore[override]
        self.states = [*getattr(self, "states", []), state(pl_module)]


def train(folder: Path, epochs: int, *callbacks: Callback, **options: Any) -> Learner:
    trained = learner()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )
    trainer.fit(trained, data(), **options)
    trainer.save_checkpoint(folder / "last.ckpt")
    return trained


def alone(student: VGGSNN, events: Tensor, label: int) -> list[list[list[float]]]:
    """The probability of a class by each step and place, asked one after the other."""
    student.eval()
    maps = student(events[None]).features[0]  # (T,D,H,W)
    return [
        [
            [
                float(student.head(step[:, i, j][None]).softmax(-1)[0, label])
                for j in range(step.shape[2])
            ]
            for i in range(step.shape[1])
        ]
        for step in maps
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_the_start_is_kept_as_it_was_and_looking_changes_nothing(tmp_path: Path) -> None:
    first, second = Compare(), Compare()
    train(tmp_path, 1, first, Start(samples=4), second)
    before, after = first.states[0], second.states[0]
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])

    held = np.load(tmp_path / "start.npz")
    assert held["sample_label"].tolist() == [0, 3, 6, 9]
    items, split = data().splits["test"], data().dataset("test")
    with torch.no_grad():
        for k, name in enumerate("0369"):
            events = split[[item.label for item in items].index(name)][0]
            wanted = alone(learner().student, events, int(name))
            np.testing.assert_allclose(held["sample_activation"][k], wanted, atol=1e-3)

    written = (tmp_path / "start.npz").read_bytes()
    train(tmp_path, 2, Start(samples=4), ckpt_path=tmp_path / "last.ckpt")
    assert (tmp_path / "start.npz").read_bytes() == written


def test_an_error_at_the_start_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such map")

    monkeypatch.setattr(Start, "write", broken)
    trainer = Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer.datamodule = data()  # type: ignore[attr-defined]
    Start().on_train_start(trainer, learner())
    assert "no maps of the start: no such map" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
