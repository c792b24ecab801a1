"""A guided run leaves pages of pictures; other runs leave none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from estl.data.module import EventData
from estl.data.sets.cifar import CIFAR
from estl.data.sets.digits import Digits
from estl.data.shards import write_shards
from estl.data.show import event_picture
from estl.data.stream import Shards
from estl.guidance.tower import ClipTower
from estl.guidance.watch import Maps
from estl.report.pictures import Pictures, choose, first_saccade, guided_part, page, smaller
from estl.students import VGGSNN
from estl.supervision import TSE, EdgeGuidedDistillation, MeanCE, Sum
from estl.supervision.terms import WRITTEN
from estl.training.groups import owner
from estl.training.learner import Learner
from estl.types import Batch, Supervision
from tests.tiny_sets import write_cifar10


def guided(folder: Path, **options: Any) -> EdgeGuidedDistillation:
    tower = ClipTower(10, image_size=16, patch=8, dim=16, depth=1, heads=2)
    tower.tower.save_pretrained(folder)
    fused: dict[str, Any] = {"target": "fused", "weights": WRITTEN | {"edge_reg": 0.0}, "heads": 2}
    return EdgeGuidedDistillation(folder, student_dim=8, T=3, **fused | options)


def fit(supervision: Supervision, folder: Path, data: EventData | None = None) -> Trainer:
    data = data or Digits(T=3, size=16, per_class=2)
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
    C, size = data.in_channels, data.frame_size
    student = VGGSNN(in_channels=C, frame_size=size, layers=(8, "AP"), pooled=True)
    trainer.fit(Learner(student, supervision), data)
    return trainer


@pytest.mark.slow
def test_a_guided_run_has_a_page_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    trainer = fit(guided(tmp_path / "teacher"), tmp_path)
    pages = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert pages == ["epoch_002.npz", "epoch_003.npz"]
    held = [np.load(tmp_path / "pictures" / name) for name in pages]
    kinds = {"names", "image", "events", "edges", "sobel", "counts", "teacher", "student"}
    assert set(held[0]) == kinds | {"gate", "added"}
    assert (held[0]["image"] == held[1]["image"]).all()
    assert (held[0]["student"] != held[1]["student"]).any()
    logged = trainer.callback_metrics
    parts = {name.removeprefix("gradient/") for name in logged if name.startswith("gradient/")}
    assert parts == {"student", "edge_detector", "fusion", "projector", "projector_patches"}
    assert all(logged[f"gradient/{part}"] > 0 for part in parts)
    assert {"watch/edge_mean", "watch/edge_spread", "watch/target_spread"} <= logged.keys()


@pytest.mark.slow
def test_a_guided_run_on_direct_coded_images_has_its_pages(tmp_path: Path) -> None:
    data = CIFAR(write_cifar10(tmp_path), T=2, images=True, val_fraction=0.2)
    fit(
        guided(tmp_path / "teacher", edges="written", weights=WRITTEN | {"edge_events": 0.0}),
        tmp_path,
        data,
    )
    assert len(list((tmp_path / "pictures").iterdir())) == 2


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


@pytest.mark.parametrize("standardize", [True, False])
def test_direct_coded_events_are_drawn_as_the_image(tmp_path: Path, standardize: bool) -> None:
    data = CIFAR(write_cifar10(tmp_path), T=2, images=True, standardize=standardize)
    batch = choose(data, "val", 4)
    assert batch.image is not None
    shown = event_picture(first_saccade(batch.events))
    assert shown.shape == (4, 3, 32, 32)
    if standardize:  # as bright, and each color a linear function of itself
        torch.testing.assert_close(shown, batch.image, rtol=0, atol=0.1)
        for color in range(3):
            pairs = torch.stack([shown[:, color].flatten(), batch.image[:, color].flatten()])
            assert pairs.corrcoef()[0, 1] > 0.9999
    else:
        assert torch.equal(shown, batch.image)


def test_rows_are_of_different_classes_of_a_sorted_set(tmp_path: Path) -> None:
    data = Digits(T=3, size=16, per_class=2)
    labels = torch.tensor([data.classes.index(i.label) for i in data.splits["val"]])
    assert len(labels[:4].unique()) == 1
    batch = choose(data, "val", 4)
    assert batch.label.tolist() == [0, 2, 5, 7]
    whole = next(iter(data.loader("val")))
    first = [int((labels == label).nonzero()[0]) for label in (0, 2)]
    assert torch.equal(batch.events[:2], whole.events[first])
    assert torch.equal(choose(data, "val", 4).events, batch.events)
    assert len(choose(data, "val", 13).label) == 13

    write_shards(data, tmp_path / "shards")
    streamed = choose(Shards(tmp_path / "shards", batch_size=5), "val", 3)
    assert streamed.label.tolist() == [0, 1, 2]
    assert torch.equal(streamed.events[0], batch.events[0])


def test_what_a_page_holds_is_what_was_seen() -> None:
    events = torch.zeros(2, 3, 2, 8, 8)
    events[0, :, 0, 1, 2], events[1, 2, 1, 3, 3] = 2.0, 5.0
    batch = Batch(events, torch.tensor([0, 1]), torch.full((2, 3, 8, 8), 0.2))
    edges, sobel = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    teacher = torch.tensor([[0.7, 0.1], [0.1, 0.1]]).expand(2, -1, -1)
    even = torch.full((2, 4, 4), 1 / 16)
    held = page(batch, Maps(edges, sobel, teacher, even, even, 2 * even), ["a", "b"])
    assert held["names"].tolist() == ["a", "b"]
    assert (held["image"] == 51).all()
    assert held["counts"][0, 1, 2] == 6
    assert held["counts"][1, 3, 3] == 5
    assert held["counts"].sum() == 11
    for name, wanted in (("edges", edges[:, 0]), ("sobel", sobel[:, 0]), ("added", 2 * even)):
        np.testing.assert_allclose(held[name], wanted, atol=1e-3)
    np.testing.assert_allclose(held["teacher"][0], [[2.8, 0.4], [0.4, 0.4]], rtol=1e-3)
    assert (held["student"] == 1).all()
    bare = page(
        Batch(events, batch.label, batch.image), Maps(None, sobel, teacher, even), ["a", "b"]
    )
    assert set(bare) == {"names", "image", "events", "counts", "teacher", "student"}


def test_large_maps_are_kept_small_and_their_mean_is_kept() -> None:
    left = torch.zeros(1, 240, 120)
    left[:, :, :60] = 1.0
    kept = smaller(left)
    assert kept.shape == (1, 96, 48)
    assert float(kept.mean()) == pytest.approx(0.5, abs=0.01)
    assert kept[:, :, :20].min() > 0.999
    assert smaller(left[:, :96, :96]).shape == (1, 96, 96)


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
