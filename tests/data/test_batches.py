"""Training batches of a loop of one's own are those that a trainer's steps get."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from estl.data import Bridge, Digits, EventData, Shards
from estl.data.augment import Augment
from estl.data.frames import normalize
from estl.data.shards import write_shards
from estl.students import VGGSNN
from estl.supervision import MeanCE
from estl.training import Learner
from estl.types import Batch
from tests.data.test_module import numbers


def digits(**options: Any) -> Digits:
    options = {"T": 3, "size": 16, "per_class": 4, "batch_size": 16, "seed": 5} | options
    return Digits(**options)


def augmented(folder: Path) -> EventData:
    return digits(augment=Augment(flip=0.5, noise=0.3, color=0.2, mixup=0.4), normalize="max")


def bridged(folder: Path) -> EventData:
    bridge = Bridge("unused", per_step=4, augment=Augment(rotation=30.0))
    return digits(augment=Augment(rotation=20.0), bridge=bridge)


def workers(folder: Path) -> EventData:
    return digits(augment=Augment(drop_events=0.5), num_workers=2)


def shards(folder: Path) -> EventData:
    write_shards(digits(), folder / "shards", shard_size=10)
    augment = Augment(drop_time=0.5)
    return Shards(folder / "shards", batch_size=16, seed=5, augment=augment, normalize="std")


class Keeper(Learner):
    """Keeps the batches that its steps get, with their epochs."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        kept.setdefault(self.current_epoch, []).append(batch)
        return super().training_step(batch, batch_idx)


kept: dict[int, list[Batch]] = {}


def same(a: Batch, b: Batch) -> bool:
    pairs = ((getattr(a, field.name), getattr(b, field.name)) for field in fields(Batch))
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`")
@pytest.mark.parametrize("make", [augmented, bridged, workers, shards])
def test_they_are_bit_for_bit_those_of_a_trainer(
    make: Callable[[Path], EventData], tmp_path: Path
) -> None:
    kept.clear()
    data = make(tmp_path)
    student = VGGSNN(10, layers=[4, "AP"], pooled=True)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Keeper(student, MeanCE(), recipe={"seed": 5}), data)
    assert [len(kept[epoch]) for epoch in range(3)] == [3, 3, 3]
    again = make(tmp_path / "again")
    for epoch in (2, 0, 1):  # in any order, with the trainer's own data too
        for own in (again, data):
            for mine, seen in zip(own.batches(epoch), kept[epoch], strict=True):
                assert same(mine, seen)


def frames(batches: Iterator[Batch]) -> list[Tensor]:
    return [batch.events for batch in batches]


def test_two_epochs_differ_in_order_and_the_same_does_not() -> None:
    def order(epoch: int, seed: int = 0) -> list[int]:
        found = frames(numbers(train=12, seed=seed).batches(epoch))
        return torch.cat(found)[:, 0, 0, 0, 0].int().tolist()

    assert sorted(order(0)) == sorted(order(1)) == list(range(12))
    assert order(0) == order(0) != order(1)
    assert order(1) != order(1, seed=1)


def test_two_epochs_differ_in_augmentation_and_processes_too() -> None:
    data = digits(per_class=1, batch_size=2, augment=Augment(noise=1.0))
    data.splits["train"] = [data.splits["train"][0], data.splits["train"][0]]  # in whatever order

    def first(epoch: int, rank: int) -> Tensor:
        return next(data.batches(epoch, rank=rank, world_size=2)).events

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(1, 0))
    assert not torch.equal(first(0, 0), first(0, 1))


def test_frames_are_normalized_after_the_augmentation() -> None:
    data = digits(augment=Augment(flip=1.0), normalize="max")
    counts = {float(x.events.max()) for x in data.loader("train", shuffle=True)}
    assert max(counts) > 1
    test = next(iter(data.loader("test"))).events
    ((mirrored, *_), (raw, *_)) = (frames(x.batches(0)) for x in (data, digits()))
    assert torch.equal(mirrored, normalize(raw.flip(-1), "max"))
    assert torch.equal(mirrored.amax((1, 2, 3, 4)).unique(), test.amax((1, 2, 3, 4)).unique())


def test_the_program_s_random_numbers_and_theirs_do_not_meet() -> None:
    data = digits(augment=Augment(noise=1.0, mixup=0.4))
    expected = frames(data.batches(1))
    torch.manual_seed(3)
    alone = [torch.rand(1) for _ in expected]
    torch.manual_seed(3)
    for batch, events, number in zip(data.batches(1), expected, alone, strict=True):
        assert torch.equal(torch.rand(1), number)
        assert torch.equal(batch.events, events)


def test_without_training_items_they_are_refused() -> None:
    with pytest.raises(ValueError, match="the train split is empty"):
        numbers(train=0).batches(0)


def test_they_lie_on_the_device() -> None:
    data = numbers(train=4)
    assert next(data.batches(0, device="meta")).events.is_meta
