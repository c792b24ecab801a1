"""A teacher made here loads as a real one does, and never learns from held-out images."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from estl.data.check import refuse_seen
from estl.data.items import Item
from estl.data.module import EventData, ItemData
from estl.data.sets.digits import Digits
from estl.data.sets.photographs import Photographs
from estl.data.twins import image_key
from estl.experiments import train_teacher as module
from estl.experiments.train_teacher import train_teacher
from estl.guidance import ClipTeacher
from estl.guidance.teacher import TRAINED_ON
from estl.guidance.tower import ClipTower, CosineHead
from estl.supervision import EdgeGuidedDistillation, Sum
from estl.training.leaks import without_leaks
from estl.training.recipe import Parts
from estl.types import Batch

SMALL = {"image_size": 16, "patch": 8, "dim": 16, "depth": 1, "heads": 2}


def full(number: int) -> None:
    """As a disk without room for the weights."""
    if os.fstat(number).st_size > 10_000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
def test_a_taught_teacher_is_loaded_with_the_features_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Digits(T=3, size=16, per_class=3)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"model.safetensors cannot be written \(No space left"):
        train_teacher(data, tmp_path, tower=SMALL, epochs=1, lr=1e-3)
    monkeypatch.undo()
    record = train_teacher(data, tmp_path, tower=SMALL, epochs=1, lr=1e-3)
    assert len(ClipTeacher(tmp_path).trained_on) == data.sizes["train"]
    (tmp_path / "another").touch()
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1
    assert set(record.image_accuracy) == {"val", "test"}
    teacher = ClipTeacher(tmp_path)
    assert teacher.dim == 16
    assert teacher.grid == (2, 2)
    image = torch.rand(2, 3, 16, 16)
    assert teacher(image).attention.shape == (2, 2, 2)
    with pytest.raises(ValueError, match="already holds"):
        train_teacher(data, tmp_path, tower=SMALL, epochs=1, lr=1e-3)


@pytest.fixture
def taught(tmp_path: Path) -> ClipTeacher:
    """A teacher that says that it was trained on the training images of seed 0, and one more."""
    data = Digits(T=3, size=16)
    extra = tmp_path / "extra.png"
    Image.new("L", (8, 8)).save(extra)
    keys = [image_key(data, item) for item in data.splits["train"]]
    keys.append(image_key(data, Item("0", "extra", image=extra)))
    ClipTower(3, **SMALL).tower.save_pretrained(tmp_path)
    (tmp_path / TRAINED_ON).write_text("\n".join(keys))
    return ClipTeacher(tmp_path)


def test_images_that_the_teacher_was_trained_on_are_not_held_out(taught: ClipTeacher) -> None:
    def held(data: EventData) -> Parts:
        guided = EdgeGuidedDistillation(taught, student_dim=8, T=3, classes=10)
        return without_leaks(Parts(data, nn.Identity(), Sum([guided]), {}))

    same = Digits(T=3, size=16, per_class=2)
    assert held(same).same == []
    moved = Digits(T=3, size=16, split_seed=1)
    seen = {*Digits(T=3, size=16).splits["train"]} & {*moved.splits["val"], *moved.splits["test"]}
    number = moved.sizes["val"] + moved.sizes["test"]
    with pytest.raises(ValueError, match=f"leak: teacher .* {len(seen)} of {number} .* val item"):
        held(moved)
    assert held(Digits(T=3, size=16, split_seed=1, allow_leaks=True)).same is None


def test_a_file_of_an_image_is_known_again_among_others(
    taught: ClipTeacher, tmp_path: Path
) -> None:
    (tmp_path / "copy.png").write_bytes((tmp_path / "extra.png").read_bytes())
    Image.new("L", (8, 8), 255).save(tmp_path / "other.png")

    def listed(name: str) -> ItemData:
        item = Item("0", "1", events=tmp_path / "1.bin", image=tmp_path / name)
        splits = {"train": [], "val": [], "test": [item]}
        return ItemData(
            splits, lambda item: (torch.zeros(2, 2, 4, 4), None), T=2, frame_size=(4, 4)
        )

    refuse_seen(listed("other.png"), taught.trained_on, "t")
    with pytest.raises(ValueError, match=r"on 1 of 1 images .* test item 0/1"):
        refuse_seen(listed("copy.png"), taught.trained_on, "t")


def test_further_images_do_not_make_those_of_the_set_unknown(tmp_path: Path) -> None:
    """Of images that are in no files of their own, the set knows the content."""
    (tmp_path / "1").mkdir()
    Image.new("L", (16, 16), 255).save(tmp_path / "1" / "x.png")
    photographs = Photographs(Digits(T=3, size=16), tmp_path)
    keys = {image_key(photographs, item) for item in photographs.splits["train"]}
    assert len(keys) == photographs.sizes["train"]
    with pytest.raises(ValueError, match="leak: teacher t was trained on"):
        refuse_seen(Digits(T=3, size=16, split_seed=1), keys, "t")


def test_a_teacher_of_a_set_without_a_test_split_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SimpleNamespace(root_device=torch.device("cpu"))
    done: dict[str, Any] = {"world_size": 1, "is_global_zero": True, "strategy": place}
    trainer = SimpleNamespace(fit=lambda *_: None, **done)
    monkeypatch.setattr(module, "make_trainer", lambda *_, **__: trainer)
    data = Digits(T=3, size=16, per_class=1, test_fraction=0.0)
    record = train_teacher(data, tmp_path, tower=SMALL, epochs=1, lr=1e-3)
    assert record is not None
    assert set(record.image_accuracy) == {"val"}
    assert ClipTeacher(tmp_path).dim == 16


def test_the_seed_is_that_of_the_batch_order_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []

    def fit(_: object, photographs: Photographs) -> None:
        orders.append([*photographs.loader("train", shuffle=True).sampler])

    trainer = SimpleNamespace(world_size=1, fit=fit, is_global_zero=False)
    monkeypatch.setattr(module, "make_trainer", lambda *_, **__: trainer)
    for seed in (0, 1, 1):
        data = Digits(T=3, size=16, per_class=3)
        train_teacher(data, tmp_path, tower=SMALL, epochs=1, lr=1e-3, seed=seed)
    assert orders[0] != orders[1] == orders[2]


def test_tower_and_teacher_see_the_same(tmp_path: Path) -> None:
    tower = ClipTower(3, **SMALL).eval()
    tower.tower.save_pretrained(tmp_path)
    image = torch.rand(2, 3, 24, 24)
    output, seen = tower(image[:, None]), ClipTeacher(tmp_path)(image)
    torch.testing.assert_close(output.class_token[:, 0], seen.pooled)
    patches = output.features[:, 0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, seen.patches)


def test_cosine_head_is_a_scaled_cosine() -> None:
    head = CosineHead(4, 3)
    x = torch.randn(5, 4)
    for i in range(5):
        for k in range(3):
            cosine = F.cosine_similarity(head.project(x)[i], head.embeddings[k], dim=0)
            torch.testing.assert_close(head(x)[i, k], 10.0 * cosine)


@pytest.mark.slow
@pytest.mark.parametrize("flip", [False, True])
def test_training_images_are_moved_but_not_far_and_mirrored_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    made: list[Photographs] = []

    def make(*given: Any) -> Photographs:
        made.append(Photographs(*given))
        return made[0]

    monkeypatch.setattr(module, "Photographs", make)
    digits = Digits(T=3, size=16, per_class=3)
    train_teacher(digits, tmp_path, tower=SMALL, epochs=1, lr=1e-3, flip=flip)
    images = torch.zeros(64, 1, 3, 21, 21)
    images[..., 10, 6] = 1.0
    batch = Batch(images, torch.zeros(64, dtype=torch.long))
    made[0].trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
    moved = made[0].on_after_batch_transfer(batch, 0).events[:, 0]
    place = moved[:, 0].flatten(1).argmax(1)
    row, column = place // 21, place % 21
    mirrored = column > 10
    assert 16 < mirrored.sum() < 48 if flip else not mirrored.any()
    column = torch.where(mirrored, 20 - column, column)
    assert (row - 10).abs().max() <= 3
    assert (column - 6).abs().max() <= 3
    assert len(place.unique()) > 5
    made[0].trainer = SimpleNamespace(training=False)  # type: ignore[assignment]
    assert made[0].on_after_batch_transfer(batch, 0) is batch


def test_photographs_hold_the_images_of_each_split() -> None:
    data = Digits(T=3, size=16, per_class=3)
    photographs = Photographs(data)
    assert photographs.sizes == data.sizes
    batch = next(iter(photographs.test_dataloader()))
    paired = next(iter(data.test_dataloader()))
    assert paired.image is not None
    torch.testing.assert_close(batch.events[:, 0], paired.image[: len(batch.label)])


def test_an_extra_image_of_a_held_out_item_is_refused(tmp_path: Path) -> None:
    data = Digits(T=3, size=16, per_class=3)
    for label, number in (("0", "extra"), (data.splits["test"][0].label, "twin")):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.new("L", (16, 16)).save(tmp_path / label / f"{number}.png")
    assert Photographs(data, tmp_path).sizes["train"] == 32
    twin = data.splits["test"][0]
    Image.new("L", (16, 16)).save(tmp_path / twin.label / f"{twin.number}.png")
    with pytest.raises(ValueError, match="held out"):
        Photographs(data, tmp_path)
    (tmp_path / twin.label / f"{twin.number}.png").unlink()
    (tmp_path / "zebra").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "zebra" / "a.png")
    with pytest.raises(ValueError, match="zebra"):
        Photographs(data, tmp_path)


def test_sizes_that_do_not_divide_and_unknown_objectives_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="multiple of patch"):
        ClipTower(3, image_size=30, patch=4)
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match="one of embedding, linear, got 'cosine'"):
        ClipTower(3, objective="cosine")
