"""Images of a bridge come from the training side alone, and reach training batches alone."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import Trainer

from estl.commands import main
from estl.data.augment import Augment
from estl.data.bridge import Bridge
from estl.data.check import refuse_leaks
from estl.data.module import ItemData
from estl.data.sets.digits import Digits
from estl.data.sets.nmnist import NMNISTPairs
from estl.data.sets.photographs import Photographs
from estl.data.simulator import simulate
from estl.types import Batch
from tests.tiny_sets import picture, write_nmnist, write_recordings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight training pairs and eight of test, and three further images of the same digits."""
    write_nmnist(tmp_path)
    for digit, number in (("0", "00105"), ("0", "00106"), ("1", "00115")):
        picture(tmp_path / f"more/{digit}/{number}.png", 28, 28, "L", seed=int(number))
    return tmp_path


def pairs(root: Path, **bridge: Any) -> NMNISTPairs:
    options: dict[str, Any] = {"images": root / "more", "per_step": 4} | bridge
    return NMNISTPairs(root, T=3, val_fraction=0.25, bridge=Bridge(**options))


def trained(data: ItemData, training: bool = True) -> Batch:
    """A training batch as the trainer hands it to a step."""
    data.trainer = cast(Trainer, SimpleNamespace(training=training))
    batch = next(iter(data.loader("train")))
    return data.on_after_batch_transfer(batch, 0)


def one_of(image: torch.Tensor, images: list[torch.Tensor]) -> bool:
    return any((image - other).abs().max() < 1 / 255 for other in images)


def test_training_batches_and_no_others_have_unpaired_images(root: Path) -> None:
    data = pairs(root)
    batch = trained(data)
    assert batch.unpaired.shape == (4, 3, 34, 34)
    more = [data.read_image(path) for path in sorted(root.glob("more/*/*"))]
    assert all(one_of(image, more) for image in batch.unpaired)
    assert batch.unlabeled == 0
    assert trained(data, training=False).unpaired is None
    torch.manual_seed(7)
    first = trained(data).unpaired
    torch.manual_seed(7)
    assert torch.equal(first, trained(data).unpaired)


def test_without_a_folder_they_are_the_pairs_own_changed_if_asked(root: Path) -> None:
    data = pairs(root, images=None)
    train = data.dataset("train")
    own = [image for _, _, image in train.__getitems__(range(len(train)))]
    assert all(one_of(image, own) for image in trained(data).unpaired)
    changed = trained(pairs(root, images=None, augment=Augment(rotation=30.0))).unpaired
    assert not any(one_of(image, own) for image in changed)
    assert changed.shape == (4, 3, 34, 34)


def test_unused_ones_are_those_that_per_class_leaves_out(root: Path) -> None:
    bridge = Bridge(images="unused", per_step=4)
    data = NMNISTPairs(root, T=3, val_fraction=0.25, per_class=1, bridge=bridge)
    assert [len(data.splits[s]) for s in ("train", "val")] == [2, 2]
    assert len(data.unpaired) == 4
    assert not {*data.unpaired} & {item for items in data.splits.values() for item in items}
    assert all(item.image and "Train" in str(item.image) for item in data.unpaired)
    images = [data.read_image(item.image) for item in data.unpaired if item.image]
    assert all(one_of(image, images) for image in trained(data).unpaired)
    digits = Digits(T=3, size=16, per_class=4, bridge=bridge)  # their images are no files
    assert trained(digits).unpaired.shape == (4, 3, 16, 16)
    with pytest.raises(ValueError, match="images=unused: no training item is, give per_class"):
        trained(NMNISTPairs(root, T=3, bridge=bridge))


def test_simulated_recordings_are_the_simulator_s_of_these_images(root: Path) -> None:
    data = pairs(root, recordings="simulated")
    batch = trained(data)
    n = len(batch.label) - batch.unlabeled
    assert batch.unlabeled == 4
    assert batch.label[n:].tolist() == [-100] * 4
    assert torch.equal(batch.events[n:], simulate(batch.image[n:], steps=3))


def test_images_that_are_training_pairs_are_left_out_and_held_out_ones_refused(
    root: Path,
) -> None:
    shutil.copytree(root / "MNIST/Train/0", root / "more/0", dirs_exist_ok=True)
    data = pairs(root)
    known = {item.number for item in data.splits["train"]}
    held = {item for item in data.splits["val"] if item.label == "0"}
    assert not known & {item.number for item in data.unpaired}
    assert held
    told = r"leak: val item 0/.* and bridge image 0/.* have the same name"
    with pytest.raises(ValueError, match=told):
        refuse_leaks(data)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_planted_image_of_a_held_out_item_is_refused(root: Path, split: str) -> None:
    refuse_leaks(pairs(root))
    item = pairs(root).splits[split][0]
    assert item.image is not None
    shutil.copy(item.image, root / "more/1/09999.png")
    with pytest.raises(ValueError, match=r"leak: .*09999.* have the same image") as error:
        refuse_leaks(pairs(root))
    assert "\n" not in str(error.value)


def test_what_a_bridge_cannot_be_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"bridge.per_step=0: at least 1"):
        Bridge(per_step=0)
    with pytest.raises(ValueError, match="drawn as counts, not as normalize='max' has them"):
        NMNISTPairs(root, T=3, bridge=Bridge(), normalize="max")
    picture(root / "other/1/x.png", 20, 30)
    other = Digits(T=3, size=16, per_class=1, bridge=Bridge(root / "other", per_step=2))
    text = "bridge: the image of 1/x has 30 by 20 pixels, that of a pair 16 by 16: resize it"
    with pytest.raises(ValueError, match=text):
        next(other.batches(0))
    data = NMNISTPairs(root, T=3, images=False, bridge=Bridge())
    with pytest.raises(ValueError, match="has no image: a bridge needs paired data"):
        trained(data)


def test_a_folder_without_images_is_named_by_its_option(root: Path) -> None:
    data = pairs(root, images=root / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"point --data.init_args.bridge.images at a folder"
    ):
        refuse_leaks(data)
    with pytest.raises(
        FileNotFoundError, match=r"no images .*/nowhere .*: point --images at a folder"
    ):
        Photographs(NMNISTPairs(root), root / "nowhere")


def test_an_extended_batch_moves_and_narrows_with_all_its_fields(root: Path) -> None:
    batch = trained(pairs(root))
    soft = torch.full((len(batch.label), 2), 0.5)
    batch = replace(batch, soft_label=soft).extend(torch.ones(4, 3, 2, 34, 34))
    assert batch.soft_label[-4:].sum() == 0
    moved = batch.to("meta")
    assert moved.events.device == moved.image.device == torch.device("meta")
    assert moved.unlabeled == 4
    assert torch.equal(batch.labeled.soft_label, soft)
    assert len(batch.labeled.image) == len(soft)
    with pytest.raises(ValueError, match=r"of frames \(3, 2, 34, 34\), not \(2, 2, 34, 34\)"):
        trained(pairs(root)).extend(torch.ones(4, 2, 2, 34, 34))
    with pytest.raises(ValueError, match="without images"):
        batch.labeled.extend(torch.ones(4, 3, 2, 34, 34))


@pytest.mark.parametrize(
    ("kind", "split"), [("recordings", "val"), ("recordings", "test"), ("nmnist", "test")]
)
def test_a_held_out_folder_given_as_it_is_spelled_is_refused(
    kind: str, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images go by other names there, test/test_walk_01 or 60900, but are the same."""
    root, folder = tmp_path, tmp_path / split
    if kind == "nmnist":
        write_nmnist(root)
        folder = root / "MNIST" / "Test"
        for i, image in enumerate(sorted(folder.glob("*/*")), 900):  # as MNIST counts them
            for path in (image, root / "N-MNIST/Test" / image.parent.name / f"{image.stem}.bin"):
                path.rename(path.with_stem(f"{i:05d}"))
    else:
        for i, name in enumerate(("train", "val", "test")):
            write_recordings(root / name, images=True, seed=100 * i)
            for path in list((root / name).glob("*/*")):
                path.rename(path.with_stem(f"{name}_{path.stem}"))
    words = [f"--dataset={kind}", f"--data-path={root}", "--T=3"]
    bridged = [f"--data.init_args.bridge.images={folder}", "--data.init_args.bridge.per_step=2"]
    student = ["--arch=vggsnn-pooled", "--student.init_args.layers=[4]", "--tse", "--epochs=1"]
    run = f"--output-dir={tmp_path / 'run'}"
    assert main(["fit", *words, *bridged, *student, run]) == 2
    said = capsys.readouterr().err
    assert "have the same image" in said
    assert str(folder) in said
    assert main(["data", "check", *words, *bridged]) == 1
    assert "LEAKS, the same in two splits" in capsys.readouterr().out
    assert main(["train-teacher", *words, f"--images={folder}", "--epochs=1", run]) == 2
    assert "have the same image" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
