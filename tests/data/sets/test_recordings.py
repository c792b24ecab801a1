"""Own recordings: a published set in other bytes, windows of them, with images or without."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from estl.commands import main
from estl.data import NMNISTPairs, Recordings
from estl.data.check import check, refuse_leaks
from estl.data.formats.atis import read_events
from estl.data.module import ItemData
from estl.data.reading import extent, read_digit
from estl.data.windows import microseconds, sensor_shape, windows
from estl.training.results import Results
from tests import encoders
from tests.encoders import Event, as_events, write
from tests.tiny_sets import picture, write_nmnist, write_recordings

SIZE = (34, 34)


def rewrite(original: Path, path: Path, i: int, size: tuple[int, int] = SIZE) -> None:
    """The i-th recording in another format."""
    events = as_events(read_events(original))
    match i % 4:
        case 0:
            write(path.with_suffix(".aedat4"), encoders.aedat4(events, size))
        case 1:
            write(path.with_suffix(".raw"), encoders.evt3(events, size))
        case 2:
            encoders.hdf5(path.with_suffix(".h5"), events, size)
        case 3:
            write(path.with_suffix(".csv"), encoders.csv(events, None))


def rewritten(root: Path, folder: Path) -> Path:
    """N-MNIST's recordings and digits below `root`, as a user's own."""
    for split in ("Train", "Test"):
        for i, original in enumerate(sorted(root.glob(f"N-MNIST/{split}/*/*.bin"))):
            path = folder / split.lower() / original.parent.name / original.name
            rewrite(original, path, i)
            digit = read_digit(root / "MNIST" / Path(*original.parts[-3:]).with_suffix(".png"))
            pixels = (digit * 255).round().byte().movedim(0, -1).numpy()
            Image.fromarray(pixels).save(path.with_suffix(".png"))
    return folder


def assert_same_batches(one: ItemData, other: ItemData) -> None:
    assert one.classes == other.classes
    assert one.sizes == other.sizes
    for split in ("train", "val", "test"):
        torch.manual_seed(0)
        pairs = zip(
            one.loader(split, shuffle=split == "train"),
            other.loader(split, shuffle=split == "train"),
            strict=True,
        )
        for a, b in pairs:
            assert torch.equal(a.label, b.label)
            assert torch.equal(a.events, b.events)
            assert torch.equal(a.image, b.image)


def same_as_n_mnist(root: Path, folder: Path) -> None:
    how = {"T": 10, "batch_size": 4}
    own = Recordings(rewritten(root, folder), size=34, rgb=34, sensor="34x34", **how)
    assert_same_batches(NMNISTPairs(root, **how), own)


def trained(folder: Path, *words: str) -> tuple[Any, ...]:
    """Figures and weights of a run of two epochs."""
    student = ["--arch=vggsnn-pooled", "--student.init_args.layers=[8,AP,8]"]
    common = ["--T=3", "--batch-size=8", "--epochs=2", "--tse", f"--output-dir={folder}"]
    assert main(["fit", *words, *student, *common]) == 0
    found = Results.read(folder / "results.json")
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return found.val, found.test, {name: x.tolist() for name, x in state.items()}


def test_n_mnist_rewritten_in_other_formats_gives_the_same_batches(tmp_path: Path) -> None:
    same_as_n_mnist(write_nmnist(tmp_path / "set"), tmp_path / "own")


@pytest.mark.slow
def test_real_recordings_rewritten_in_other_formats_give_the_same_batches(
    shared: Path, tmp_path: Path
) -> None:
    real, some = shared / "data" / "nmnist-pairs", tmp_path / "set"
    for split, n in (("Train", 6), ("Test", 2)):
        for folder in sorted((real / "N-MNIST" / split).iterdir()):
            for path in sorted(folder.iterdir())[:n]:
                for below in (path, (real / "MNIST" / split / folder.name / path.stem)):
                    source = below if below is path else below.with_suffix(".png")
                    target = some / source.relative_to(real)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(source)
    same_as_n_mnist(some, tmp_path / "own")
    one = trained(tmp_path / "one", "--dataset=nmnist", f"--data-path={some}")
    how = ["--sensor=34x34", "--data.init_args.size=34", "--data.init_args.rgb=34"]
    own = [f"--data-path={tmp_path / 'own'}", *how]
    assert trained(tmp_path / "two", "--dataset=recordings", *own) == one


@pytest.mark.slow
def test_real_recordings_of_other_sizes_train_to_the_same_figures(
    shared: Path, tmp_path: Path
) -> None:
    real, own = shared / "data" / "ncaltech101-pairs", tmp_path / "own"
    for i, original in enumerate(sorted(real.glob("Caltech101/*/*.bin"))):
        events = read_events(original)
        rewrite(original, own / original.parent.name / original.name, i, extent(events))
    lists = tmp_path / "list.yaml"
    lists.write_text(
        "train: [chair/image_0001, umbrella/image_0021]\ntest: [helicopter/image_0001]"
    )
    how = [f"--data.init_args.splits={lists}", "--data.init_args.val_fraction=0"]
    how.append("--data.init_args.images=false")
    one = trained(tmp_path / "one", "--dataset=ncaltech101", f"--data-path={real}", *how)
    two = trained(tmp_path / "two", "--dataset=recordings", f"--data-path={own}", *how)
    assert two == one


def cut_by_loop(times: list[int], window: int, stride: int) -> list[tuple[int, int]]:
    found, start = [], 0
    while start == 0 or start + window <= times[-1] - times[0] + 1:
        if any(start <= t - times[0] < start + window for t in times):
            found.append((start, start + window))
        start += stride
    return found


def test_windows_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        t = np.sort(rng.integers(50, 50 + rng.integers(1, 200), rng.integers(1, 9)))
        window, stride = (int(n) for n in rng.integers(1, 60, 2))
        assert windows(t, window, stride) == cut_by_loop(t.tolist(), window, stride)


def test_windows_of_a_recording_are_in_one_split_and_hold_its_events(tmp_path: Path) -> None:
    root = write_recordings(tmp_path, each=10)
    whole = Recordings(root, T=3)
    cut = Recordings(root, T=3, window="200ms")
    every = Recordings(root, T=3, window="200ms", stride="100ms", per_class=2)
    assert {s: [str(i) for i in items] for s, items in whole.splits.items()} == {
        s: list(dict.fromkeys(str(i).rpartition("/")[0] for i in items))
        for s, items in cut.splits.items()
    }
    assert cut.sizes == {split: 2 * n for split, n in whole.sizes.items()}  # 590 ms hold two
    assert every.sizes["train"] == 2 * 2 * 4
    first = cut.splits["train"][:2]
    assert [i.number.rpartition("/")[2] for i in first] == ["0-200000", "200000-400000"]
    events = [cut.load(item)[0] for item in first]
    assert [frames.sum().item() for frames in events] == [20, 20]
    # The same as the recording cut by hand.
    places = np.random.default_rng(int(first[0].number[5:7])).integers(0, 40, (60, 2))
    counts = torch.zeros(2, 48, 48)
    for n in range(20, 40):
        x, y = places[n]
        counts[n % 2, y * 48 // 40, x * 48 // 60] += 1
    assert torch.equal(events[1].sum(0), counts)


def test_lists_name_recordings_and_their_windows_follow(tmp_path: Path) -> None:
    root = write_recordings(tmp_path / "set")
    lists = tmp_path / "list.yaml"
    lists.write_text(
        "train: [chair/walk_01-03, cup/walk_01-03]\nval: [cup/walk_04]\ntest: [chair/walk_05.raw]\n"
    )
    data = Recordings(root, window="200ms", splits=lists)
    assert data.sizes == {"train": 12, "val": 2, "test": 2}


def test_times_and_sizes_are_understood_or_refused() -> None:
    assert [microseconds(t) for t in ("0.5s", "20 ms", "7us")] == [500_000, 20_000, 7]
    for time in ("0ms", "fast", "1.2.3s", "-3ms", "3min"):
        with pytest.raises(ValueError, match=r"is no time: give 300ms, 1\.5s or 250us"):
            microseconds(time)
    for size in ("720", "720x", "0x3", "axb", (1, 0), "40000x1"):
        with pytest.raises(ValueError, match=r"sensor=.*: give height and width .* 720x1280"):
            sensor_shape(size)


ONE: list[Event] = [(1, 2, 3, 1), (9, 4, 4, 0)]


def test_a_sensor_that_no_file_tells_is_asked_for_and_a_headers_comes_first(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write(tmp_path / label / "1.csv", encoders.csv(ONE, None))
    data = Recordings(tmp_path)
    with pytest.raises(ValueError, match=r"1\.csv: the file does not tell .*sensor 720x1280"):
        data.load(data.splits["train"][0])
    frames, image = Recordings(tmp_path, T=1, size=5, sensor="10x10").load(data.splits["train"][0])
    assert frames.nonzero().tolist() == [[0, 0, 2, 2], [0, 1, 1, 1]]
    assert image is None
    data = Recordings(tmp_path, sensor=(4, 4))
    with pytest.raises(ValueError, match=r"1\.csv: event 1, x=4 y=4, outside the sensor of H=4"):
        data.load(data.splits["train"][0])
    write(tmp_path / "a" / "1.csv", encoders.csv(ONE, (10, 10)))
    assert data.load(data.splits["train"][0])[0].sum() == 2


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["data", "check", "--dataset=recordings", *words]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def test_what_is_wrong_with_a_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    assert "no recordings <class>/<name>" in refused(capsys, f"--root={root}")
    write(root / "chair" / "notes.mcap", b"x")
    assert ".aedat4, .raw" in refused(capsys, f"--root={root}")
    write_recordings(root, labels="chair")
    assert "of one class, chair: a folder a class" in refused(capsys, f"--root={root}")
    write_recordings(root)
    for bare in (["--window=3"], ["--window=1s", "--stride=3"], ["--data.init_args.window=3"]):
        text = "3 is a time without a unit: give 3ms, 3s or 3us"
        assert text in refused(capsys, f"--root={root}", *bare)
    (tmp_path / "bare.yaml").write_text(
        "data: {class_path: estl.data.Recordings, init_args: {window: 300000}}"
    )
    said = refused(capsys, f"--root={root}", f"--config={tmp_path / 'bare.yaml'}")
    assert "300000 is a time without a unit: give 300000ms" in said
    stride = ["--stride=3ms"]
    assert "stride=3ms without a window" in refused(capsys, f"--root={root}", *stride)
    write(root / "cup" / "walk_01.csv", encoders.csv(ONE, SIZE))
    assert "have the same name: rename" in refused(capsys, f"--root={root}")
    (root / "cup" / "walk_01.csv").unlink()
    image = picture(root / "cup" / "walk_02.png", 9, 9)
    assert "9 recordings have no image, the first" in refused(capsys, f"--root={root}")
    assert main(["data", "check", f"--root={root}", "--data.init_args.images=false"]) == 0
    assert "recordings without their image: 9" in capsys.readouterr().out
    image.unlink()
    path = root / "cup" / "walk_01.aedat4"
    path.write_bytes(path.read_bytes()[:-1])
    window = ["--window=200ms", "--stride=100ms", "--sensor=9x9"]
    assert "walk_01.aedat4: truncated" in refused(capsys, f"--root={root}", *window)
    assert main(["data", "check", f"--root={root}"]) == 1
    assert "cup/walk_01: " in capsys.readouterr().out
    assert main(["data", "prepare", "recordings", f"--root={root}"]) == 2
    assert "no data set 'recordings': choose from" in capsys.readouterr().err


def test_images_lie_beside_or_in_a_folder_of_their_own(tmp_path: Path) -> None:
    root = write_recordings(tmp_path / "set")
    assert Recordings(root).load(Recordings(root).splits["test"][0])[1] is None
    for item in (i for items in Recordings(root).splits.values() for i in items):
        picture(tmp_path / "images" / item.label / f"{item.number}.JPG", 20, 30)
    data = Recordings(root, images=tmp_path / "images", rgb=8, window="200ms")
    item = data.splits["test"][0]
    assert item.image == tmp_path / "images" / item.label / f"{item.number.split('/')[0]}.JPG"
    frames, image = data.load(item)
    assert frames.sum() == 20
    assert image is not None
    assert torch.equal(image, data.read_image(item.image))
    assert image.shape == (3, 8, 8)
    beside = picture(root / "chair" / "walk_01.png", 20, 30)
    with pytest.raises(FileNotFoundError, match=r"^9 recordings have no image, .* beside it, or"):
        Recordings(root)
    assert Recordings(root, images=False).splits["train"][0].image is None
    beside.unlink()
    with pytest.raises(FileNotFoundError, match=r"^10 recordings have no image"):
        Recordings(root, images=True)


def test_windows_of_a_recording_share_its_image_and_are_no_repetition(tmp_path: Path) -> None:
    root = write_recordings(tmp_path, images=True)
    assert check(Recordings(root, rgb=8, window="200ms")).entries()["twice"] == []
    (root / "cup" / "walk_01.png").write_bytes((root / "cup" / "walk_02.png").read_bytes())
    found = check(Recordings(root, rgb=8, window="200ms")).entries()
    assert found["twice"] + found["leaks"]


def test_folders_for_splits_are_the_splits_and_the_rest_is_drawn(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        write_recordings(tmp_path / split, "raw", each=3 + i, seed=100 * i)
    assert Recordings(tmp_path).sizes == {"train": 6, "val": 8, "test": 10}
    walk = next((tmp_path / "test" / "cup").iterdir())
    walk.rename(walk.with_name("2024-01.raw"))  # is no window
    data = Recordings(tmp_path, T=1)
    assert "cup/test/2024-01" in map(str, data.splits["test"])
    assert all(data.load(item)[0].sum() == 60 for item in data.splits["test"])
    (tmp_path / "val").rename(tmp_path / "other")
    assert Recordings(tmp_path, val_fraction=0.3).sizes == {"train": 4, "val": 2, "test": 10}
    (tmp_path / "train").rename(tmp_path / "gone")
    data = Recordings(tmp_path)
    assert data.sizes == {"train": 0, "val": 0, "test": 10}
    assert data.no_training is not None


def test_a_recording_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    root = write_recordings(tmp_path)
    data = Recordings(root, window="200ms")
    refuse_leaks(data)
    train, test = (data.splits[split][0].events for split in ("train", "test"))
    test.write_bytes(train.read_bytes())
    with pytest.raises(ValueError, match=r"leak: .* have the same recording"):
        refuse_leaks(data)
    assert check(data, root).wrong


def test_recordings_that_lie_too_deep_and_folders_without_any_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_recordings(tmp_path / "set")
    deep = root / "chair" / "session1" / "deep"
    deep.mkdir(parents=True)
    (root / "chair" / "walk_05.aedat4").rename(deep / "walk_05.aedat4")
    (root / "cap").mkdir()
    write(root / "images" / "chair" / "walk_01.png", b"")
    for words in (["--dataset=recordings", f"--data-path={root}"], [f"--root={root}"]):
        assert main(["data", "check", *words]) == 0
        said = capsys.readouterr().out
        title = "recordings that lie deeper than <class>/<name> (not used): 1"
        assert f"{title}\n  {deep / 'walk_05.aedat4'}\n" in said
        assert f"folders without a recording (no classes): 1\n  {root / 'cap'}\n" in said
    for split in ("train", "test"):
        write_recordings(tmp_path / "own" / split)
        (tmp_path / "own" / split / "cap").mkdir()
    report = check(Recordings(tmp_path / "own"), limit=1)
    assert report.bare == [tmp_path / "own" / split / "cap" for split in ("train", "test")]
    assert report.nested == []
    for words in ([f"--root={tmp_path}"], [f"--root={tmp_path}", "--dataset=recordings"]):
        assert main(["data", "check", *words]) == 2
        said = capsys.readouterr().err
        assert "recordings" in said
        assert f"but 30 that lie deeper, the first {tmp_path / 'own'}" in said


@pytest.mark.parametrize("window", [None, "200ms"])
def test_how_long_and_large_recordings_are_is_said(tmp_path: Path, window: str | None) -> None:
    for label in ("a", "b"):
        for i in range(1, 4):
            # In nanoseconds, if they are 2.5 us, 5 us and 7.5 us.
            events = [(0, 1, 1, 1)] * (2 * i) + [(2_500_000 * i, 2, 2, 0)]
            write(tmp_path / label / f"{i}.csv", encoders.csv(events, SIZE))
    line = "recordings, in the median: 5,000.0 ms, the longest 7,500.0; 5 events, the largest 7"
    assert line in check(Recordings(tmp_path, window=window)).lines()


@pytest.mark.slow
def test_shards_of_windows_give_the_same_samples(tmp_path: Path) -> None:
    root = write_recordings(tmp_path / "set", images=True)
    words = ["--dataset=recordings", f"--data-path={root}", "--T=2", "--data.init_args.rgb=16"]
    words.append("--window=200ms")
    assert main(["data", "shard", *words, f"--output-dir={tmp_path / 'shards'}"]) == 0
    from estl.data import Shards

    data = Recordings(root, T=2, rgb=16, window="200ms")
    for a, b in zip(data.loader("test"), Shards(tmp_path / "shards").loader("test"), strict=True):
        assert torch.equal(a.events, b.events)
        assert torch.equal(a.label, b.label)
