"""Any PyTorch data set as data."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from estl.commands import main
from estl.data import FromDataset
from estl.data.augment import Augment
from estl.data.check import check, refuse_leaks
from estl.data.formats.events import EVENT
from estl.data.frames import to_frames
from estl.evaluation.accuracy import evaluate
from estl.students import VGGSNN
from estl.training.recipe import build_data, parse


class Mine(Dataset[Any]):
    """Two classes; n samples of events on a sensor of 6 by 9, with a gray image or without."""

    def __init__(self, n: int = 20, images: bool = False, seed: int = 0) -> None:
        self.n, self.images, self.seed = n, images, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(1000 * self.seed + i)
        columns = (np.sort(rng.integers(0, 1000, 30)), *rng.integers(0, [[9], [6], [2]], (3, 30)))
        events = np.rec.fromarrays(columns, names="t,x,y,p")
        image = torch.full((3, 8, 8), (10 * self.seed + i) / 100)
        return (events, i % 2, image) if self.images else (events, i % 2)


def test_events_are_framed_as_those_of_a_file(tmp_path: Path) -> None:
    data = FromDataset(Mine(), T=3, size=4, sensor="6x9")
    assert data.sizes == {"train": 14, "val": 2, "test": 4}
    refuse_leaks(data)
    for batch in data.loader("test"):
        assert batch.image is None
        for item, label, frames in zip(
            data.splits["test"], batch.label.tolist(), batch.events, strict=True
        ):
            events, own = Mine()[int(item.number)]
            assert own == label
            whole = np.array(events.tolist(), EVENT[["t", "x", "y", "p"]].descr)
            assert torch.equal(frames, to_frames(whole.astype(EVENT), 3, (4, 4), sensor=(6, 9)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.bool_])
def test_frames_and_images_may_be_arrays(dtype: type) -> None:
    def samples(make: Any) -> list[Any]:
        frames: list[Any] = [np.full((3, 2, 4, 4), i % 2).astype(dtype) for i in range(10)]
        for x in frames:
            x.setflags(write=False)
        image = np.full((3, 5, 5), 0.5)
        return [(make(x), i % 2, make(image)) for i, x in enumerate(frames)]

    found, expected = (
        next(iter(FromDataset(samples(make), T=3, size=4).loader("train")))
        for make in (lambda x: x, torch.tensor)
    )
    assert found.events.dtype == found.image.dtype == torch.float32
    assert torch.equal(found.events, expected.events)
    assert torch.equal(found.image, expected.image)


def test_labels_may_be_true_and_false() -> None:
    for true in (True, np.bool_(True), torch.tensor([True])):
        frames = [(torch.full((1, 2, 2, 2), i), true if i % 2 else False) for i in range(10)]
        data = FromDataset(frames)
        assert data.classes == ("0", "1")
        batch = next(iter(data.loader("train")))
        assert torch.equal(batch.label, batch.events[:, 0, 0, 0, 0].long() % 2)


def test_own_splits_images_and_names_are_kept() -> None:
    parts = {"val": Mine(4, True, 1), "test": Mine(6, True, 2)}
    data = FromDataset(Mine(8, True), **parts, sensor=(6, 9), classes=("zebra", "ape"))
    assert data.sizes == {"train": 8, "val": 4, "test": 6}
    assert data.classes == ("zebra", "ape")
    (batch,) = data.loader("val")
    assert sorted(batch.label.tolist()) == [0, 0, 1, 1]
    for item, label, image in zip(data.splits["val"], batch.label, batch.image, strict=True):
        i = int(item.number.removeprefix("val/"))
        assert image.unique().item() == pytest.approx((10 + i) / 100)
        assert label == i % 2
    assert not check(data).wrong


def test_labels_stay_the_numbers_that_they_are() -> None:
    samples = [(torch.full((2, 2, 3, 3), float(k)), k % 12) for k in range(48)]
    data = FromDataset(samples)
    for batch in data.loader("train"):
        assert torch.equal(batch.events[:, 0, 0, 0, 0].long() % 12, batch.label)


def test_labels_are_not_read_from_samples_where_there_are_targets() -> None:
    class Costly(Mine):
        targets = np.arange(20) % 2

        def __getitem__(self, i: int) -> tuple[Any, ...]:
            asked.append(i)
            return super().__getitem__(i)

    asked: list[int] = []
    data = FromDataset(Costly(), sensor=(6, 9))
    assert len(asked) == 1
    assert data.classes == ("0", "1")


def test_labels_are_those_of_the_samples_where_targets_are_changed() -> None:
    class Changed(Mine):
        targets = np.arange(20)
        target_transform = staticmethod(lambda label: label % 2)

    assert FromDataset(Changed(), sensor=(6, 9)).classes == ("0", "1")


def test_whole_labels_of_floats_are_numbers_and_images_of_doubles_are_floats() -> None:
    image = torch.rand(3, 3, 3, dtype=torch.float64)
    samples = [(torch.full((2, 2, 3, 3), float(k)), float(k % 12), image) for k in range(48)]
    data = FromDataset(samples, augment=Augment(color=0.1))
    assert data.classes == tuple(str(k) for k in range(12))
    for batch in data.batches(0):
        assert torch.equal(batch.events[:, 0, 0, 0, 0].long() % 12, batch.label)
        assert batch.image is not None
        assert batch.image.dtype == torch.float32


def test_the_same_sample_twice_is_a_leak_and_another_sample_another_fingerprint() -> None:
    samples = [(torch.randn(2, 2, 3, 3), k % 2) for k in range(20)]
    data, other = FromDataset(samples), FromDataset([*samples[:-1], (samples[0][0] + 1, 1)])
    assert data.fingerprint == FromDataset(samples).fingerprint != other.fingerprint
    train, test = (int(data.splits[split][0].number) for split in ("train", "test"))
    samples[test] = samples[train]
    with pytest.raises(ValueError, match=r"leak: .* have the same content"):
        refuse_leaks(FromDataset(samples))


@pytest.mark.parametrize(
    ("samples", "how", "message"),
    [
        ([(np.zeros(3), 0)] * 9, {}, "train sample 0: frames of shape .3,., not .T,C,H,W.$"),
        ([("a.bin", 0)] * 9, {}, "train sample 0: events are neither frames .T,C,H,W. nor"),
        ([(torch.zeros(4, 2, 3, 3), 0)] * 9, {"T": 5}, "not by T=5: leave T out"),
        ([(torch.zeros(4, 2, 3, 3), 0)] * 9, {"size": 8}, "not by size=8: leave size out"),
        ([(torch.zeros(2, 3, 3), 0)] * 9, {}, r"sample 0: frames of shape \(2, 3, 3\), not"),
        (Mine(), {}, r'sample 0: events need the sensor.*sensor="720x1280"'),
        (Mine(), {"sensor": (2, 2)}, r"train sample 0: event .* outside the sensor of H=2 W=2"),
        (
            [(torch.zeros(1, 2, 3, 3), 7)] * 9,
            {"classes": ("a", "b")},
            "sample 0 has label 7, none of 2",
        ),
        ([], {}, "without samples"),
        ([(torch.zeros(1, 2, 3, 3), 0, "a.png")] * 9, {}, "its image is no tensor"),
        (
            [{"x": 0, "y": 1}] * 9,
            {},
            r"train sample 0 is a dict: .* has to be \(events, label\) or",
        ),
        ([torch.zeros(1, 2, 3, 3)] * 9, {}, r"train sample 0 is a Tensor: .* has to be"),
        (
            [(torch.zeros(1, 2, 3, 3), 0), (torch.zeros(1, 2, 3, 3), torch.tensor([0, 1]))],
            {},
            r"train sample 1 has a label of shape \(2,\): give a number or a name.*argmax",
        ),
        (
            [(torch.zeros(1, 2, 3, 3), np.eye(2)[0])] * 9,
            {},
            r"sample 0 has a label of shape \(2,\)",
        ),
        ([(torch.zeros(1, 2, 3, 3), [0, 1])] * 9, {}, "sample 0 has a label of list: give"),
    ],
)
def test_samples_of_another_kind_are_refused(samples: Any, how: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        FromDataset(samples, **how)
    assert "\n" not in str(error.value)


def test_dicts_and_one_hot_labels_are_refused_where_there_are_targets() -> None:
    class Kept(list[Any]):
        targets: Any = torch.eye(2)

    with pytest.raises(ValueError, match=r"train sample 0 has a label of shape \(2,\)"):
        FromDataset(Kept([(torch.zeros(1, 2, 3, 3), 0)] * 2))
    Kept.targets = [0, 1]
    with pytest.raises(ValueError, match="train sample 0 is a dict: a sample has to be"):
        FromDataset(Kept([{"events": torch.zeros(1, 2, 3, 3), "label": 0}] * 2))


def test_labels_may_be_arrays_of_one_number() -> None:
    labels = (torch.tensor([1]), np.array(0), np.int64(1), torch.tensor(0))
    samples = [(torch.full((1, 2, 3, 3), float(i)), label) for i, label in enumerate(labels)]
    items = FromDataset(samples, test=samples).splits["test"]
    assert {item.number[-1]: item.label for item in items} == dict(zip("0123", "1010", strict=True))


def shown(folder: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> list[str]:
    """Words that name a set of 20 samples of frames and images, changed by a line of code."""
    (folder / "own_frames.py").write_text(
        "import torch\nfrom estl.data import FromDataset\n\n\nclass Frames(FromDataset):\n"
        "    def __init__(self, **loading):\n"
        "        frames, images = torch.rand(20, 2, 2, 8, 8), torch.rand(20, 3, 8, 8)\n"
        "        samples = [(x, i % 2, y) for i, (x, y) in enumerate(zip(frames, images))]\n"
        f"        {change}\n"
        "        super().__init__(samples, test=samples[:6], val=samples[6:8], **loading)\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_frames", raising=False)
    return ["--data=own_frames.Frames", "--data.init_args.allow_leaks=true"]


BROKEN = {
    "frames[3, 1, 0, 2, 2] = torch.nan": "sample 3: NaN or infinite values in its frames",
    "frames[3, 1, 0, 2, 2] = torch.inf": "sample 3: NaN or infinite values in its frames",
    "images[0, 0, 0, 0] = -torch.inf": "sample 0: NaN or infinite values in its image",
    "samples[3] = (*samples[3][:2], 200 * torch.ones(3, 8, 8))": (
        "sample 3: its image is float32 from 200 to 200, and has to be floats in [0,1]"
    ),
    "samples[3] = (*samples[3][:2], torch.ones(3, 8, 8).byte())": (
        "sample 3: its image is uint8 from 1 to 1, and has to be floats in [0,1]"
    ),
    "samples[3] = (torch.rand(5, 2, 8, 8), 1, samples[3][2])": (
        "sample 3 has T=5 frames (2, 8, 8) and an image (3, 8, 8), "
        "but train sample 0 has T=2 frames (2, 8, 8) and an image (3, 8, 8): give all one shape"
    ),
    "samples[3] = samples[3][:2]": "sample 3 has T=2 frames (2, 8, 8) and no image, but train",
}


@pytest.mark.parametrize("change", BROKEN)
@pytest.mark.parametrize("limit", [[], ["--limit=1"]])
def test_broken_samples_are_listed_by_a_check(
    change: str,
    limit: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["data", "check", *shown(tmp_path, monkeypatch, change), *limit]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("unreadable")] == ["unreadable: 2"]
    for split in ("train", "test"):  # the same one is in both
        assert any(f": {split} {BROKEN[change]}" in line for line in lines)


@pytest.mark.parametrize("change", BROKEN)
def test_broken_samples_are_refused_when_they_are_read(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shown(tmp_path, monkeypatch, change)
    config, given = parse(words, ["data"])
    data = build_data(config, given)
    for read in (lambda: list(data.loader("test")), lambda: data.fingerprint):
        with pytest.raises(ValueError, match=re.escape(BROKEN[change])) as error:
            read()
        assert "\n" not in str(error.value)


def test_frames_whose_sum_alone_is_not_finite_are_taken() -> None:
    large = torch.full((1, 2, 3, 3), 3e38)
    assert large.sum().isinf()
    data = FromDataset([(large * (1 - i / 100), i % 2) for i in range(20)])
    assert next(iter(data.loader("test"))).events.isfinite().all()


def test_plain_batches_are_evaluated() -> None:
    events, label = torch.poisson(torch.ones(10, 2, 2, 8, 8)), torch.arange(10) % 2
    student = VGGSNN(2, layers=[4, "AP"], pooled=True)
    plain: DataLoader[tuple[Tensor, ...]] = DataLoader(TensorDataset(events, label), 4)
    data = FromDataset(list(zip(events, label, strict=True)), test_fraction=0.4)
    one, other = evaluate(student, plain), evaluate(student, data.loader("test"))
    assert one.samples == 10
    picked = [int(item.number) for item in data.splits["test"]]
    assert "".join(one.right[i] for i in picked) == other.right


@pytest.mark.slow
def test_a_teacher_is_trained_on_its_images(tmp_path: Path) -> None:
    from estl.experiments.train_teacher import train_teacher

    data = FromDataset(Mine(20, images=True), sensor=(6, 9), batch_size=8)
    tower = {"dim": 16, "depth": 1, "heads": 2, "patch": 4, "image_size": 8}
    train_teacher(data, tmp_path, tower=tower, epochs=1, lr=1e-3)
    assert (tmp_path / "config.json").is_file()


@pytest.mark.slow
def test_a_subclass_is_fitted_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bars.py").write_text(
        "import torch\nfrom estl.data import FromDataset\n\n\nclass Bars(FromDataset):\n"
        "    def __init__(self, n: int = 40, **loading):\n"
        "        samples = [(torch.ones(2, 2, 8, 8) * (i + 1), i % 2) for i in range(n)]\n"
        "        super().__init__(samples, **loading)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    words = ["fit", "--data=bars.Bars", "--data.init_args.batch_size=8", "--arch=vggsnn-pooled"]
    words += ["--student.init_args.layers=[4]", "--epochs=1", f"--output-dir={run}"]
    assert main(words) == 0
    assert main(["test", f"--ckpt={run / 'last.ckpt'}", "--trust=bars"]) == 0
