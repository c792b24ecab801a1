"""Images that a supervision does not look at are not read, and nothing else changes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from estl.data import reading, shards
from estl.data.items import Item
from estl.data.module import EventData
from estl.data.samples import Split
from estl.data.sets.folder import ImageFolder
from estl.data.sets.ncaltech101 import NCaltech101Pairs
from estl.data.sets.nmnist import NMNISTPairs
from estl.data.sets.recordings import Recordings
from estl.data.shards import write_shards
from estl.data.stream import Shards
from estl.supervision import TET, TSE, EdgeGuidedDistillation, Sum
from estl.training.recipe import build, make_learner, parse_recipe
from estl.training.trainer import make_trainer
from estl.types import Batch, Loss, Output, Supervision
from tests.tiny_sets import (
    names_of,
    write_images,
    write_ncaltech101,
    write_nmnist,
    write_recordings,
)

HOW: dict[str, Any] = {"T": 2, "batch_size": 4, "val_fraction": 0.2}


def set_of(kind: str, root: Path, **more: Any) -> EventData:
    how = HOW | more
    match kind:
        case "nmnist":
            return NMNISTPairs(write_nmnist(root), **how)
        case "ncaltech101":
            names = [*names_of("chair", 6), *names_of("cup", 6)]
            return NCaltech101Pairs(write_ncaltech101(root, names), size=24, rgb=32, **how)
        case "recordings":
            return Recordings(write_recordings(root, images=True), size=16, rgb=16, **how)
        case _:
            return ImageFolder(write_images(root), size=16, rgb=16, **how)


def refuse(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("an image was read")


@pytest.mark.parametrize("where", ["files", "cache", "shards"])
@pytest.mark.parametrize("kind", ["nmnist", "ncaltech101", "recordings", "folder"])
def test_training_batches_without_images_are_otherwise_the_same(
    kind: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" if where == "cache" else None
    data = set_of(kind, tmp_path / "set", cache=cache)
    if where == "shards":
        write_shards(data, tmp_path / "shards", shard_size=5)
        data = Shards(tmp_path / "shards", batch_size=4)
    whole = list(data.loader("train", shuffle=True))
    data.training_images = False
    assert next(iter(data.loader("val"))).image is not None
    monkeypatch.setattr(reading, "read_digit", refuse)
    if kind != "folder":  # whose recordings are made of the images
        monkeypatch.setattr(reading, "read_rgb", refuse)
    if where == "shards":
        monkeypatch.setattr(shards.Image, "open", refuse)
    for with_images, without in zip(whole, data.loader("train", shuffle=True), strict=True):
        assert with_images.image is not None
        assert without.image is None
        assert torch.equal(with_images.events, without.events)
        assert torch.equal(with_images.label, without.label)


def recipe(root: Path, supervision: str, **augment: Any) -> dict[str, Any]:
    data = {"root": str(root), "augment": augment or None, **HOW}
    layers = {"layers": [8, "AP", 16], "pooled": True}
    return {
        "data": {"class_path": "estl.data.NMNISTPairs", "init_args": data},
        "student": {"class_path": "estl.students.VGGSNN", "init_args": layers},
        "supervision": {"class_path": f"estl.supervision.{supervision}"},
        "trainer": {"accelerator": "cpu"},
    }


def test_a_recipe_reads_images_where_its_supervision_looks_at_them(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    for supervision in ("MeanCE", "TET", "TSE", "TRE"):
        assert not build(*parse_recipe(recipe(tmp_path, supervision))).data.training_images
    assert build(*parse_recipe(recipe(tmp_path, "TSE", color=0.1))).data.training_images
    for how, read in (("simulated", True), ("drawn", False)):
        bridged = recipe(tmp_path, "TSE")
        bridge = {"images": None, "per_step": 2, "recordings": how}
        bridged["data"]["init_args"]["bridge"] = bridge
        assert build(*parse_recipe(bridged)).data.training_images == read
    assert EdgeGuidedDistillation.reads_images
    assert not Sum([TSE(), TET()]).reads_images
    assert Sum([TSE(), Supervision()]).reads_images
    assert not Sum([TSE(), Supervision()], weights=[1.0, 0.0]).reads_images


def test_a_teacher_that_looks_once_is_refused_with_images_that_change(
    tmp_path: Path, clip_folder: Path
) -> None:
    write_nmnist(tmp_path)

    def guided(augment: dict[str, float] | None, bridge: dict[str, float] | None) -> Supervision:
        given = recipe(tmp_path, "EdgeGuidedDistillation")
        kept = {"teacher": str(clip_folder), "cache_teacher": True}
        given["supervision"]["init_args"] = kept
        bridged = {"images": None, "per_step": 2, "augment": bridge}
        given["data"]["init_args"] |= {"augment": augment, "bridge": bridged}
        return build(*parse_recipe(given)).supervision

    for augment, bridge in ((None, None), ({"flip": 0.5, "drop_time": 0.2}, {"flip": 0.5})):
        assert guided(augment, bridge).keeps_images
    for augment, bridge in (({"shift": 0.1}, None), (None, {"flip": 0.5, "shift": 0.1})):
        with pytest.raises(ValueError, match=r"cache_teacher=true .* augment.shift=0.1 changes"):
            guided(augment, bridge)
    assert Sum([TSE(), guided(None, None)]).keeps_images
    without = Sum([TSE(), guided(None, None)], weights=[1.0, 0.0])
    assert not without.keeps_images
    assert not without.extends
    assert not Sum([TSE(), TET()]).keeps_images


class Looks(TSE):
    def forward(self, output: Output, batch: Batch) -> Loss:
        return super().forward(output, batch)


class Named(TSE):
    """Only of another name."""


def test_a_supervision_of_ones_own_looks_at_images_unless_it_says_otherwise() -> None:
    assert Looks.reads_images
    assert not Named.reads_images


def load_square(item: Item, image: int = 4) -> tuple[Tensor, None]:
    return torch.zeros(2, 2, image, image), None


def test_an_option_of_a_loader_that_means_something_else_is_left_alone() -> None:
    items = [Item("a", "0")]
    for load in (load_square, partial(load_square, image=8), lambda image: load_square(image)):
        events, _, _ = Split(items, ["a"], load, "none", images=False)[0]
        assert torch.equal(events, load(items[0])[0])


@pytest.mark.slow
def test_weights_are_those_of_a_training_that_reads_images(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    weights = []
    for images in (True, False):
        torch.manual_seed(0)
        given = recipe(tmp_path, "TSE", shift=0.1, rotation=10.0, flip=0.5)
        config, values = parse_recipe(given)
        parts = build(config, values)
        parts.data.training_images = images
        learner = make_learner(config, parts)
        off = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = make_trainer({"accelerator": "cpu", "max_epochs": 2}, **off, **quiet)
        trainer.fit(learner, parts.data)
        weights.append(parts.student.state_dict())
    for one, two in zip(*(state.values() for state in weights), strict=True):
        assert torch.equal(one, two)
