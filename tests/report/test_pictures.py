"""A guided run leaves pages of pictures; other runs leave none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from estl.data.sets.digits import Digits
from estl.data.show import event_picture
from estl.guidance.tower import ClipTower
from estl.report.pictures import Pictures, first_saccade, guided_part
from estl.students import VGGSNN
from estl.supervision import TSE, EdgeGuidedDistillation, MeanCE, Sum
from estl.training.learner import Learner, owner
from estl.types import Supervision


def guided(folder: Path) -> EdgeGuidedDistillation:
    tower = ClipTower(10, image_size=16, patch=8, dim=16, depth=1, heads=2)
    tower.tower.save_pretrained(folder)
    return EdgeGuidedDistillation(folder, student_dim=8, heads=2)


def fit(supervision: Supervision, folder: Path) -> Trainer:
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[Pictures(every=2, samples=2)],
        default_root_dir=folder,
    )
    student = VGGSNN(frame_size=(16, 16), layers=(8, "AP"), pooled=True)
    trainer.fit(Learner(student, supervision), Digits(T=3, size=16, per_class=2))
    return trainer


@pytest.mark.slow
def test_a_guided_run_has_a_page_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    trainer = fit(guided(tmp_path / "teacher"), tmp_path)
    pages = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert pages == ["epoch_002.png", "epoch_003.png"]
    with Image.open(tmp_path / "pictures" / pages[0]) as page:
        pixels = torch.from_numpy(np.array(page.convert("RGB"))).flatten(0, 1)
        assert page.width > page.height
    assert len(pixels.unique(dim=0)) > 50
    logged = trainer.callback_metrics
    parts = {name.removeprefix("gradient/") for name in logged if name.startswith("gradient/")}
    assert parts == {"student", "edge_detector", "fusion", "projector", "projector_patches"}
    assert all(logged[f"gradient/{part}"] > 0 for part in parts)
    assert {"watch/edge_mean", "watch/edge_spread", "watch/target_spread"} <= logged.keys()


@pytest.mark.slow
def test_other_runs_have_no_pages(tmp_path: Path) -> None:
    fit(TSE(), tmp_path)
    assert not (tmp_path / "pictures").exists()


def test_the_guided_part_is_found_in_a_sum(tmp_path: Path) -> None:
    part = guided(tmp_path)
    assert guided_part(Sum([TSE(), part])) is part
    assert guided_part(MeanCE()) is None


def test_on_is_red_and_off_is_blue() -> None:
    events = torch.zeros(1, 3, 2, 1, 3)
    events[0, 0, 0, 0, 0] = 4.0
    events[0, 0, 1, 0, 1] = 4.0
    events[0, 1, 1, 0, 2] = 4.0  # not of the first third
    picture = event_picture(first_saccade(events))[0, :, 0].T.tolist()
    assert picture == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("student.layers.0.0.weight", "student"),
        ("supervision.fusion.gate.0.bias", "fusion"),
        ("supervision.supervisions.0.projector.bias", "projector"),
        ("supervision.kappa", "supervision"),
    ],
)
def test_a_parameter_belongs_to_its_part(name: str, part: str) -> None:
    assert owner(name) == part
