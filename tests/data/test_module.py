import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from estl.commands.flags import TrainingFlags
from estl.data.augment import Augment
from estl.data.cache import Load
from estl.data.formats.atis import read_events
from estl.data.frames import Normalization
from estl.data.items import Item
from estl.data.module import ItemData
from estl.data.sets.digits import Digits
from estl.data.sets.nmnist import NMNISTPairs
from estl.training.checkpoint import make
from estl.training.recipe import make_parser, parse, parse_recipe
from estl.types import Batch, direct_code, is_static


def load_number(item: Item) -> tuple[Tensor, None]:
    return torch.full((2, 2, 3, 3), float(item.number)), None


def numbers(train: int, batch_size: int = 4, seed: int = 0, num_workers: int = 0) -> ItemData:
    """A set whose sample i is full of i."""
    splits = {
        "train": [Item("ab"[i % 2], str(i)) for i in range(train)],
        "val": [Item("a", "100"), Item("a", "101"), Item("b", "102")],
        "test": [Item("b", "200")],
    }
    return ItemData(
        splits,
        load_number,
        T=2,
        frame_size=(3, 3),
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        content=lambda item: [],
    )


def order(loader: DataLoader[Any], epoch: int = 0) -> list[list[int]]:
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Lightning does
    return [batch.events[:, 0, 0, 0, 0].int().tolist() for batch in loader]


def test_importing_the_data_package_does_not_import_lightning() -> None:
    code = "import estl.data, sys; print('lightning' in sys.modules, 'sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_the_data_sets_are_named_in_the_package() -> None:
    import estl.data

    assert estl.data.Digits is Digits
    assert estl.data.NMNISTPairs is NMNISTPairs
    with pytest.raises(AttributeError, match="Nothing"):
        _ = estl.data.Nothing


def test_batches_hold_each_item_once_with_its_label() -> None:
    data = numbers(train=10)
    assert data.classes == ("a", "b")
    assert data.sizes == {"train": 10, "val": 3, "test": 1}
    batches = list(data.train_dataloader())
    assert all(isinstance(batch, Batch) and batch.image is None for batch in batches)
    assert [len(batch.label) for batch in batches] == [4, 4, 2]
    seen = torch.cat([batch.events[:, 0, 0, 0, 0] for batch in batches]).int()
    assert sorted(seen.tolist()) == list(range(10))
    assert torch.equal(torch.cat([batch.label for batch in batches]), seen.long() % 2)


def test_training_batches_depend_on_seed_and_epoch_alone() -> None:
    first = order(numbers(train=10).train_dataloader(), epoch=3)
    torch.manual_seed(5)
    torch.rand(7)
    assert order(numbers(train=10).train_dataloader(), epoch=3) == first
    assert order(numbers(train=10).train_dataloader(), epoch=4) != first
    assert order(numbers(train=10, seed=1).train_dataloader(), epoch=3) != first


def test_validation_and_test_batches_keep_the_order_of_the_items() -> None:
    data = numbers(train=10, batch_size=2)
    assert order(data.val_dataloader()) == [[100, 101], [102]]
    assert order(data.test_dataloader()) == [[200]]


@pytest.mark.parametrize(("train", "expected"), [(9, [4, 4]), (10, [4, 4, 2]), (1, [1])])
def test_a_last_training_batch_of_one_sample_is_left_out(train: int, expected: list[int]) -> None:
    assert [len(batch) for batch in order(numbers(train=train).train_dataloader())] == expected


def test_batches_of_one_are_given_where_they_are_asked_for() -> None:
    assert len(order(numbers(train=5, batch_size=1).train_dataloader())) == 5


def test_processes_share_the_items_without_overlap() -> None:
    seen: list[int] = []
    for rank in range(2):
        data = numbers(train=10, batch_size=10)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)  # type: ignore[assignment]
        (batch,) = order(data.train_dataloader(), epoch=1)
        seen += batch
    assert sorted(seen) == list(range(10))


def test_a_batch_is_shared_by_the_processes() -> None:
    data = numbers(train=12, batch_size=6)
    parts = [order(data.loader("train", rank=rank, world_size=3)) for rank in range(3)]
    assert [[len(batch) for batch in part] for part in parts] == [[2, 2]] * 3
    with pytest.raises(ValueError, match=r"batch_size=6 is shared by 4 processes.*multiple of 4"):
        data.loader("train", world_size=4)


def test_one_process_reads_a_whole_split_while_a_trainer_is_there() -> None:
    data = numbers(train=10, batch_size=4)
    data.trainer = SimpleNamespace(world_size=2, global_rank=1)  # type: ignore[assignment]
    assert order(data.val_dataloader()) == [[101]]  # its share
    assert order(data.loader("val")) == [[100, 101, 102]]
    assert order(data.loader("train")) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    parts = [order(data.loader("val", rank=rank, world_size=2)) for rank in range(2)]
    assert parts == [[[100, 102]], [[101]]]


def test_an_empty_split_is_refused_where_it_is_needed() -> None:
    data = numbers(train=0)
    data.require("val")
    with pytest.raises(ValueError, match="the train split is empty: ItemData has no such items"):
        data.require("train")


def test_labels_follow_given_classes() -> None:
    data = numbers(train=4)
    data.follow(("zebra", "b", "a"))
    assert data.classes == ("zebra", "b", "a")
    assert torch.cat([batch.label for batch in data.loader("val")]).tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match=r"a class 'zebra', none of the 2 of the checkpoint"):
        data.follow(("a", "b"))


def test_workers_load_the_same_batches() -> None:
    expected = order(numbers(train=10).train_dataloader())
    assert order(numbers(train=10, num_workers=2).train_dataloader()) == expected


class Recorder(L.LightningModule):
    """Trains nothing and writes down what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.events[:, 0, 0, 0, 0].int().tolist()))
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(epochs: int, folder: Path, resume: Path | None = None) -> Recorder:
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, datamodule=numbers(train=10), ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return recorder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_sees_the_batches_of_the_unbroken_run(tmp_path: Path) -> None:
    whole = fit(3, tmp_path).seen
    assert len({str(batch) for _, batch in whole}) == 9  # every epoch in another order
    start = fit(1, tmp_path).seen
    rest = fit(3, tmp_path, resume=tmp_path / "1.ckpt").seen
    assert start + rest == whole


# What is done to frames


def ramp(item: Item) -> tuple[Tensor, None]:
    return torch.arange(18.0).view(1, 2, 3, 3).repeat(2, 1, 1, 1) * float(item.number), None


def static(item: Item) -> tuple[Tensor, None]:
    return direct_code(torch.arange(27.0).view(1, 3, 3, 3), 4)[0], None


def one_item(load: Load, T: int, **options: Any) -> ItemData:
    splits = {name: [Item("a", "2")] for name in ("train", "val", "test")}
    return ItemData(splits, load, T=T, frame_size=(3, 3), content=lambda item: [], **options)


@pytest.mark.parametrize("how", ["none", "max", "std"])
@pytest.mark.parametrize("cached", [False, True])
def test_frames_are_normalized_after_the_cache(
    how: Normalization, cached: bool, tmp_path: Path
) -> None:
    data = one_item(ramp, 2, normalize=how, cache=tmp_path if cached else None)
    raw = ramp(Item("a", "2"))[0]
    assert torch.equal(data.load(Item("a", "2"))[0], raw)
    divisor = {"none": 1.0, "max": raw.max(), "std": raw.std(correction=0)}[how]
    torch.testing.assert_close(data.dataset("train")[0][0], raw / divisor)


def test_directly_coded_frames_are_normalized_and_stacked_as_one_step() -> None:
    data = one_item(static, 4, normalize="max")
    batch = next(iter(data.val_dataloader()))
    assert is_static(batch.events)
    torch.testing.assert_close(batch.events[0], static(Item("a", "2"))[0] / 26)


def test_training_batches_alone_are_augmented_and_normalized_after_that() -> None:
    data = one_item(ramp, 2, normalize="max", augment=Augment(flip=1.0))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        training=True, world_size=1, global_rank=0
    )
    raw = next(iter(data.train_dataloader()))
    assert raw.events.max() == 34  # counts, as augmentation needs them
    mirrored = data.on_after_batch_transfer(raw, 0)
    torch.testing.assert_close(mirrored.events, raw.events.flip(-1) / 34)
    data.trainer.training = False
    held = next(iter(data.val_dataloader()))
    assert data.on_after_batch_transfer(held, 0) is held
    torch.testing.assert_close(held.events, raw.events / 34)


@pytest.mark.slow
def test_a_trainer_sees_augmented_batches_and_a_seed_gives_them_again() -> None:
    def seen(seed: int) -> Tensor:
        class Keeper(Recorder):
            def training_step(self, batch: Batch, index: int) -> Tensor:
                frames.append(batch.events)
                return super().training_step(batch, index)

        frames: list[Tensor] = []
        torch.manual_seed(seed)
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = one_item(ramp, 2, augment=Augment(noise=3.0), batch_size=1)
        trainer.fit(Keeper(), datamodule=data)
        return frames[0]

    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1), seen(2))


@pytest.mark.slow
def test_options_of_loading_are_read_from_a_recipe(tmp_path: Path) -> None:
    words = ["--data.init_args.normalize=max"]
    words += [f"--data.init_args.cache={tmp_path}", "--data.init_args.skip_broken=true"]
    words += ["--data.init_args.augment.flip=0.5", "--data.init_args.allow_leaks=true"]
    flags = TrainingFlags(dataset="digits", arch="vggsnn-pooled")
    config, _ = parse(flags.spell_out(words))
    data = make(make_parser(), "data", config.data)
    assert data.augment == Augment(flip=0.5)
    assert data.normalize == "max"
    assert data.allow_leaks
    assert list(tmp_path.glob("*/cache.json"))
    text = make_parser().dump(config, skip_validation=True)
    assert parse_recipe(yaml.safe_load(text))[0].data == config.data


# N-MNIST


@pytest.fixture(scope="module")
def nmnist(shared: Path) -> NMNISTPairs:
    return NMNISTPairs(shared / "data" / "nmnist-pairs", T=4)


def test_nmnist_has_its_sizes_classes_and_shapes(nmnist: NMNISTPairs) -> None:
    assert nmnist.classes == tuple("0123456789")
    assert sum(nmnist.sizes.values()) == 800
    assert nmnist.sizes["test"] == 100
    assert (nmnist.in_channels, nmnist.T, nmnist.frame_size) == (2, 4, (34, 34))
    batch = next(iter(nmnist.val_dataloader()))
    assert batch.events.shape == (50, 4, 2, 34, 34)
    assert batch.image is not None
    assert batch.image.shape == (50, 3, 34, 34)
    assert batch.image.min() == 0
    assert batch.image.max() == 1


def test_nmnist_pairs_a_recording_with_its_digit_and_label(nmnist: NMNISTPairs) -> None:
    for index in (0, 40, 99):
        item = nmnist.splits["test"][index]
        events, label, image = nmnist.dataset("test")[index]
        assert item.events is not None
        assert item.image is not None
        assert image is not None
        assert str(label) == item.label == item.events.parent.name == item.image.parent.name
        assert events.sum() == len(read_events(item.events))
        digit = torch.from_numpy(np.array(Image.open(item.image))) / 255
        assert torch.equal(image[1, 3:31, 3:31], digit)
        assert image.sum() == pytest.approx(3 * digit.sum().item(), rel=1e-5)


def test_nmnist_images_lie_where_the_events_are(nmnist: NMNISTPairs) -> None:
    batch = next(iter(nmnist.test_dataloader()))
    assert batch.image is not None
    counts = batch.events.sum((1, 2)).clamp(max=20)
    image = batch.image[:, 0]
    edges = sum(g.abs() for g in torch.gradient(image, dim=(1, 2)))
    assert isinstance(edges, Tensor)

    def agreement(dx: int, dy: int) -> float:
        moved = edges.roll((dy, dx), (1, 2))
        pairs = zip(moved.flatten(1), counts.flatten(1), strict=True)
        return float(np.mean([np.corrcoef(a.numpy(), b.numpy())[0, 1] for a, b in pairs]))

    offsets = {(dx, dy): agreement(dx, dy) for dx in range(-3, 4) for dy in range(-3, 4)}
    assert max(offsets, key=lambda offset: offsets[offset]) == (0, 0)


def test_nmnist_splits_share_no_item_and_are_stratified(nmnist: NMNISTPairs) -> None:
    names = [{str(item) for item in items} for items in nmnist.splits.values()]
    assert len(set.union(*names)) == 800
    per_class = Counter(item.label for item in nmnist.splits["val"])
    train = Counter(item.label for item in nmnist.splits["train"])
    for label, n in per_class.items():
        assert n == pytest.approx(0.1 * (n + train[label]), abs=0.5)


def test_nmnist_few_shot_sets_are_nested_and_keep_the_other_splits(
    shared: Path, nmnist: NMNISTPairs
) -> None:
    root = shared / "data" / "nmnist-pairs"
    five, ten = (NMNISTPairs(root, per_class=n) for n in (5, 10))
    assert (five.sizes["train"], ten.sizes["train"]) == (50, 100)
    assert set(five.splits["train"]) < set(ten.splits["train"]) < set(nmnist.splits["train"])
    assert five.splits["val"] == nmnist.splits["val"]
    other = NMNISTPairs(root, per_class=5, split_seed=1)
    prints = {data.fingerprint for data in (five, ten, nmnist, other)}
    assert len(prints) == 4
    assert NMNISTPairs(root, per_class=5, seed=7, T=2).fingerprint == five.fingerprint


def test_nmnist_is_read_in_the_layout_of_the_public_archive(
    shared: Path, nmnist: NMNISTPairs
) -> None:
    data = NMNISTPairs(shared / "data" / "nmnist-pairs" / "N-MNIST", images=False, T=4)
    assert data.splits == nmnist.splits
    batch, other = next(iter(data.test_dataloader())), next(iter(nmnist.test_dataloader()))
    assert batch.image is None
    assert torch.equal(batch.events, other.events)


def test_nmnist_test_recordings_numbered_from_one_share_no_name_with_training_ones(
    shared: Path, tmp_path: Path
) -> None:
    source = shared / "data" / "nmnist-pairs"
    for part, original in (("Train", "00002"), ("Test", "60004")):
        for root, suffix in (("N-MNIST", "bin"), ("MNIST", "png")):
            (folder := tmp_path / root / part / "0").mkdir(parents=True)
            shutil.copy(source / root / part / "0" / f"{original}.{suffix}", folder)
            (folder / f"{original}.{suffix}").rename(folder / f"00002.{suffix}")
    data = NMNISTPairs(tmp_path)
    assert [str(item) for item in data.splits["train"]] == ["0/00002"]
    (item,) = data.splits["test"]
    assert str(item) == "0/60002"
    assert item.events == tmp_path / "N-MNIST/Test/0/00002.bin"
    assert item.image == tmp_path / "MNIST/Test/0/00002.png"


def test_nmnist_without_its_folders_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recordings .*--data-path.*N-MNIST") as error:
        NMNISTPairs(tmp_path)
    assert "\n" not in str(error.value)


def test_nmnist_without_an_image_says_which_and_what_to_do(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "nmnist-pairs"
    for path in ("N-MNIST/Train/0", "N-MNIST/Test/0", "MNIST/Test/0"):
        shutil.copytree(source / path, tmp_path / path)
    with pytest.raises(FileNotFoundError, match=r"MNIST/Train.*--data-path.*images=false"):
        NMNISTPairs(tmp_path)
    images = sorted((source / "MNIST/Train/0").iterdir())
    (tmp_path / "MNIST/Train/0").mkdir(parents=True)
    shutil.copy(images[0], tmp_path / "MNIST/Train/0")
    missing = rf"{len(images) - 1} recordings have no image, the first .*{images[1].stem}\.bin"
    with pytest.raises(FileNotFoundError, match=rf"{missing}: point --data-path.*images=false"):
        NMNISTPairs(tmp_path)


def test_nmnist_images_of_another_size_are_refused(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "nmnist-pairs"
    for path in ("N-MNIST/Test/0/60004.bin", "MNIST/Test/0/60004.png"):
        for part in ("Train", "Test"):
            (tmp_path / path.replace("Test", part)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, tmp_path / path.replace("Test", part))
    Image.new("L", (32, 32)).save(tmp_path / "MNIST/Test/0/60004.png")
    data = NMNISTPairs(tmp_path)
    with pytest.raises(ValueError, match=r"60004\.png: 32 by 32 pixels"):
        next(iter(data.test_dataloader()))


# Digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def test_digits_have_their_sizes_classes_and_shapes(digits: Digits) -> None:
    assert digits.classes == tuple("0123456789")
    assert sum(digits.sizes.values()) == 1797
    assert digits.sizes["test"] == pytest.approx(0.2 * 1797, abs=5)
    assert digits.sizes["val"] == pytest.approx(0.08 * 1797, abs=5)
    batch = next(iter(digits.train_dataloader()))
    assert batch.events.shape == (50, 6, 2, 32, 32)
    assert (digits.in_channels, digits.T, digits.frame_size) == (2, 6, (32, 32))
    assert batch.image is not None
    assert batch.image.shape == (50, 3, 32, 32)
    assert batch.image.min() == 0
    assert 0.8 < batch.image.max() <= 1
    assert (batch.events.sum((2, 3, 4)) > 50).all()  # no empty frame


def test_digits_splits_share_no_item(digits: Digits) -> None:
    names = [{item.number for item in items} for items in digits.splits.values()]
    assert len(set.union(*names)) == 1797


def test_a_digit_is_the_scan_of_its_number(digits: Digits) -> None:
    scans, target = load_digits(return_X_y=True)
    for index in (0, 100, 300):
        item = digits.splits["test"][index]
        _, label, image = digits.dataset("test")[index]
        assert image is not None
        assert label == target[int(item.number)]
        small = nn.functional.adaptive_avg_pool2d(image[:1, 4:28, 4:28], 8).flatten()
        scan = torch.from_numpy(scans[int(item.number)] / 16)
        assert np.corrcoef(small.numpy(), scan.numpy())[0, 1] > 0.97


@pytest.mark.slow
def test_digits_are_the_same_each_time_and_differ_with_the_split(digits: Digits) -> None:
    again, other = Digits(seed=3), Digits(split_seed=1)
    assert again.fingerprint == digits.fingerprint != other.fingerprint
    assert torch.equal(again.dataset("val")[5][0], digits.dataset("val")[5][0])
    assert Digits(per_class=5).sizes["train"] == 50


@pytest.mark.slow
def test_digits_can_be_told_apart_by_their_events(digits: Digits) -> None:
    def counts(name: str) -> tuple[Tensor, Tensor]:
        samples = [digits.dataset(name)[i] for i in range(digits.sizes[name])]
        x = torch.stack([s[0] for s in samples]).flatten(1)[:, ::7]
        return nn.functional.pad(x, (0, 1), value=1.0), torch.tensor([s[1] for s in samples])

    x, y = counts("train")
    ridge = x.T @ x + 100 * torch.eye(x.shape[1])
    weight = torch.linalg.solve(ridge, x.T @ nn.functional.one_hot(y, 10).float())
    x, y = counts("test")
    assert ((x @ weight).argmax(1) == y).float().mean() > 0.9


def test_a_canvas_that_is_no_multiple_of_eight_is_refused() -> None:
    with pytest.raises(ValueError, match="size=30"):
        Digits(size=30)
