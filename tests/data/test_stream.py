"""Shards are streamed: every sample once an epoch, whoever reads, in an order that is known."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from estl.commands import main
from estl.data.augment import Augment
from estl.data.check import check, refuse_leaks
from estl.data.items import Item
from estl.data.module import ItemData, with_items
from estl.data.sets.digits import Digits
from estl.data.sets.folder import ImageFolder
from estl.data.sets.photographs import Photographs
from estl.data.shards import read_index, read_shard, unpack_sample, write_shards
from estl.data.stream import Shards, Stream
from estl.training.recipe import parse
from estl.types import Batch


@pytest.fixture(scope="module")
def source(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """Four classes of photographs with their simulated recordings."""
    root = tmp_path_factory.mktemp("photographs")
    for label in ("accordion", "anchor", "ant", "barrel"):
        photographs = shared / "data" / "caltech101-128px" / "101_ObjectCategories" / label
        (root / label).symlink_to(photographs)
    return ImageFolder(root, T=3, size=16, rgb=24)


@pytest.fixture(scope="module")
def real(source: ImageFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    write_shards(source, root, shard_size=32)
    return root


def number(item: Item, steps: int = 2) -> tuple[Tensor, None]:
    """Frames that say which item they are of."""
    return torch.full((steps, 2, 1, 1), float(item.number)), None


def numbered(n: int, **loading: Any) -> ItemData:
    """Training items 0 to n - 1, validation items n to n + 6, test items n + 7 to n + 10."""
    items = [Item("ab"[i % 2], f"{i:03d}") for i in range(n + 11)]
    splits = {"train": items[:n], "val": items[n : n + 7], "test": items[n + 7 :]}
    return ItemData(
        splits, number, T=2, frame_size=(1, 1), content=lambda i: [str(i).encode()], **loading
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """61 numbered training items in shards of 8."""
    write_shards(numbered(61), tmp_path / "shards", shard_size=8)
    return tmp_path / "shards"


def numbers(batches: Any) -> list[int]:
    return [int(n) for batch in batches for n in batch.events[:, 0, 0, 0, 0]]


def stream(root: Path, rank: int = 0, processes: int = 1, **options: Any) -> Stream:
    shuffle = options.pop("shuffle", True)
    data = Shards(root, **{"batch_size": 4 * processes, "buffer": 16} | options)
    return Stream(data, "train" if shuffle else "val", shuffle=shuffle, rank=rank, R=processes)


@pytest.mark.slow
def test_shards_of_photographs_hold_what_the_folder_holds(source: ImageFolder, real: Path) -> None:
    data = Shards(real, batch_size=10)
    assert data.classes == source.classes
    assert data.sizes == source.sizes
    assert data.fingerprint == source.fingerprint
    assert (data.T, data.frame_size, data.in_channels) == (3, (16, 16), 2)
    assert data.sizes["train"] > 64  # so that there are several shards
    for split in ("train", "val", "test"):
        items = {str(item): item for item in source.splits[split]}
        for shard in data.shards[split]:
            for parts in read_shard(data.root, shard):
                item, frames, image = unpack_sample(parts, data.T)
                events, photograph = source.load(items.pop(str(item)))
                assert torch.equal(frames, events)
                assert image is not None
                assert photograph is not None
                assert torch.equal(image, photograph)
        assert not items  # each once


def test_batches_for_evaluation_are_those_of_the_folder(source: ImageFolder, real: Path) -> None:
    batches = list(Shards(real, batch_size=32).test_dataloader())
    expected = list(source.test_dataloader())
    events = torch.cat([batch.events for batch in batches])
    assert torch.equal(events, torch.cat([batch.events for batch in expected]))
    labels = torch.cat([batch.label for batch in batches])
    assert torch.equal(labels, torch.cat([batch.label for batch in expected]))


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own(root: Path) -> None:
    loader = Shards(root, batch_size=4, buffer=16, seed=3).train_dataloader()
    epochs = [numbers(loader) for _ in range(3)]
    assert len(loader) == 15  # a last batch of one sample is left out
    assert all(len(set(epoch)) == len(epoch) == 60 for epoch in epochs)
    assert all(set(epoch) <= set(range(61)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != sorted(epochs[0])
    again = Shards(root, batch_size=4, buffer=16, seed=3).train_dataloader()
    assert [numbers(again) for _ in range(3)] == epochs
    other = Shards(root, batch_size=4, buffer=16, seed=4).train_dataloader()
    assert numbers(other) != epochs[0]


def test_a_shards_samples_do_not_stay_together(root: Path) -> None:
    order = numbers(Shards(root, batch_size=4, buffer=60).train_dataloader())
    written = [
        {int(json.loads(p["item.json"])["number"]) for p in read_shard(str(root), shard)}
        for shard in Shards(root).shards["train"]
    ]
    assert all(not set(order[i : i + 8]) <= shard for i in range(53) for shard in written)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_the_samples(root: Path, workers: int) -> None:
    seen, lengths = [], []
    for rank in range(2):
        part = stream(root, rank, processes=2)
        loader = DataLoader(
            part,
            batch_size=4,
            num_workers=workers,
            collate_fn=lambda s: [int(x[0][0, 0]) for x in s],
        )
        batches = list(loader)
        lengths.append([len(batch) for batch in batches])
        seen.append([n for batch in batches for n in batch])
    assert sorted(lengths[0]) == sorted(lengths[1]) == [2, *[4] * 7]  # equally many batches
    assert len(seen[0]) == len(set(seen[0])) == 30
    assert not set(seen[0]) & set(seen[1])
    assert set(seen[0] + seen[1]) < set(range(61))  # 61 is odd: one of them rests


def test_what_rests_changes_from_epoch_to_epoch(root: Path) -> None:
    rested = set()
    for epoch in range(12):
        seen: list[int] = []
        for rank in range(2):
            part = stream(root, rank, processes=2)
            part.epoch = epoch
            seen += [int(frames[0, 0]) for frames, _, _ in part]
        rested |= set(range(61)) - set(seen)
    assert len(rested) > 4


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 9])
def test_evaluation_is_complete_and_of_equal_length_on_every_process(
    root: Path, processes: int
) -> None:
    parts = [
        [int(frames[0, 0]) for frames, _, _ in stream(root, rank, processes, shuffle=False)]
        for rank in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    assert {n for part in parts for n in part} == set(range(61, 68))
    if processes == 1:
        assert parts[0] == [62, 64, 66, 61, 63, 65, 67]  # class a, then class b


class Recorder(L.LightningModule):
    """Writes down the order of the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: dict[int, list[int]] = {}

    def training_step(self, batch: Batch) -> Tensor:
        self.epochs.setdefault(self.current_epoch, []).extend(numbers([batch]))
        return self.weight * batch.events.mean()

    def validation_step(self, batch: Batch) -> None:
        assert batch.events.shape[1:] == (2, 2, 1, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def train(root: Path, folder: Path, epochs: int, checkpoint: Path | None = None) -> Recorder:
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, Shards(root, batch_size=4), ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "last.ckpt")
    return recorder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_sees_the_batches_it_would_have_seen(root: Path, tmp_path: Path) -> None:
    whole = train(root, tmp_path, 3).epochs
    assert whole[0] != whole[1] != whole[2]
    assert numbers(Shards(root, batch_size=4).train_dataloader()) == whole[0]
    train(root, tmp_path, 1)
    assert train(root, tmp_path, 3, tmp_path / "last.ckpt").epochs == {1: whole[1], 2: whole[2]}


def test_persistent_workers_are_told_the_epoch(root: Path) -> None:
    loader = Shards(root, batch_size=4, num_workers=2).train_dataloader()
    first, second = numbers(loader), numbers(loader)
    assert len(set(first)) == len(set(second)) == 60
    assert first != second
    assert numbers(Shards(root, batch_size=4, num_workers=2).train_dataloader()) == first


def test_a_missing_shard_is_named(root: Path) -> None:
    (root / "val-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"val-000000\.tar"):
        list(Shards(root).val_dataloader())


def test_options_that_make_no_sense_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cache' is not accepted"):
        parse(["--dataset=shards", f"--data-path={root}", f"--data.init_args.cache={tmp_path}"])
    with pytest.raises(ValueError, match="buffer=0"):
        Shards(root, buffer=0)
    shards = Shards(root, batch_size=200)
    few = shards.sizes["train"]
    with pytest.raises(ValueError, match=f"{few} training samples are too few for 200 processes"):
        shards.loader("train", shuffle=True, world_size=200)


@pytest.mark.parametrize("augment", [None, Augment()])
def test_frames_that_will_be_augmented_are_left_as_counts(
    root: Path, augment: Augment | None
) -> None:
    data = Shards(root, batch_size=4, normalize="max", augment=augment)
    train = {frames.max().item() for frames, _, _ in Stream(data, "train", shuffle=True)}
    assert (train <= {0.0, 1.0}) == (augment is None)
    assert {frames.max().item() for frames, _, _ in Stream(data, "test")} == {1.0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_on_shards_is_trained_tested_and_tested_again(
    real: Path, source: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_leaks(Shards(real))  # its items are not listed: writing has looked for leaks
    words = ["--dataset=shards", f"--data-path={real}", "--arch=vggsnn-pooled", "--epochs=1"]
    words += ["--student.init_args.layers=[8,AP,8]", f"--output-dir={tmp_path / 'run'}"]
    assert main(["fit", *words, "--tse"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["of"]["data"] == {
        "name": "Shards",
        "fingerprint": source.fingerprint,
        "sizes": source.sizes,
        "classes": len(source.classes),
    }
    assert results["test"]["final"]["samples"] == source.sizes["test"]
    per_step = results["test"]["final"]["per_step"]
    assert len(per_step) == 3
    assert main(["test", f"--ckpt={tmp_path / 'run' / 'last.ckpt'}"]) == 0
    assert f"test accuracy: {100 * per_step[-1]:.2f} %" in capsys.readouterr().out.splitlines()[-1]


def test_shards_have_no_single_items_and_follow_given_classes(root: Path, tmp_path: Path) -> None:
    data = Shards(root, batch_size=4)
    for takes_items in (with_items, check, Photographs, lambda d: write_shards(d, tmp_path / "x")):
        with pytest.raises(ValueError, match="Shards has no single items: give the set it was"):
            takes_items(data)
    labels = torch.cat([batch.label for batch in data.loader("val")])
    data.follow(("b", "c", "a"))
    followed = torch.cat([batch.label for batch in data.loader("val")])
    assert torch.equal(followed, torch.tensor([2, 0])[labels])


def test_leaks_that_were_allowed_have_to_be_allowed_again(tmp_path: Path) -> None:
    data = Digits(T=3, size=16, per_class=2, allow_leaks=True)
    write_shards(data, tmp_path)
    with pytest.raises(ValueError, match="allow_leaks"):
        Shards(tmp_path)
    assert Shards(tmp_path, allow_leaks=True).sizes == data.sizes


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    """Of a web server of the shards, which this starts and ends."""
    if shutil.which("curl") is None:
        pytest.skip("no curl here, with which webdataset reads web addresses")
    handler = partial(SimpleHTTPRequestHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_at_a_web_address_are_those_of_the_folder(root: Path, address: str) -> None:
    options = {"batch_size": 4, "buffer": 16, "seed": 3}
    one, two = (numbers(Shards(a, **options).train_dataloader()) for a in (root, address))
    assert one == two
    name = read_index(str(root))["splits"]["train"][0]["file"]
    (root / name).write_bytes(b"cut")
    with pytest.raises(ValueError, match=rf"{address}/train.*truncated or replaced"):
        numbers(Shards(address, **options).train_dataloader())


def test_an_address_is_no_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shards are read from a folder, http"):
        Shards(f"pipe:touch {tmp_path}/ran #://x")
    assert not (tmp_path / "ran").exists()
