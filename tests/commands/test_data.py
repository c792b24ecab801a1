"""`estl data`: what a user types, and the pictures that come out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from estl.commands import data as commands
from estl.commands import main
from estl.commands.flags import DataFlags
from estl.data.formats.atis import read_events
from estl.data.sets.digits import Digits
from estl.data.show import View, chinese_fonts, draw, event_picture, partner, show, view
from estl.training.recipe import build_data, parse
from tests import tiny_sets


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["data", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err.strip()


@pytest.mark.slow
def test_a_set_without_mistakes_passes(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shared / "data" / "nmnist-pairs"
    status, out, _ = run(capsys, "check", "--root", root, "--limit", 20)
    assert status == 0
    assert "train: 629 items, 49 to 81 in each of 10 classes" in out
    assert "decoded: 60 of 800 items" in out
    assert out.endswith("nothing is wrong\n")


@pytest.mark.slow
def test_a_broken_recording_ends_with_status_1(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared / "data" / "nmnist-pairs" / "N-MNIST"
    for part in ("Train", "Test"):
        for path in sorted((source / part / "3").iterdir())[:3]:
            (folder := tmp_path / "N-MNIST" / part / "3").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
    words = ["check", "--root", tmp_path, "--data.init_args.images=false"]
    assert run(capsys, *words)[0] == 0
    broken = folder / path.name
    broken.write_bytes(b"123")
    status, out, _ = run(capsys, *words)
    assert status == 1
    assert str(broken) in out
    shutil.copy(next((tmp_path / "N-MNIST" / "Train" / "3").iterdir()), broken)
    status, out, _ = run(capsys, *words)
    assert status == 1
    assert "LEAKS" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], None),
        (["sow"], "Available commands: prepare, check, show, shard"),
        (["prepare", "imagenet22k", "--root", "{}"], "imagenet22k"),
        (["prepare", "nmnist", "--root", "{}", "--no-download"], "Train.zip"),
        (["check"], "no data chosen"),
        (["check", "--root", "{}/nowhere"], "no folder"),
        (["check", "--root", "{}"], "no images"),
        (["check", "--root", "{}", "--near", "65"], "--near 65"),
        (["check", "--root", "{}", "--limit", "0"], "--limit 0"),
        (["check", "--root", "{}", "--dataset", "nmnist"], "no recordings"),
        (["check", "--dataset", "shards", "--data-path", "{}"], "no file"),
        (["show", "{}/nowhere", "-o", "{}/x.png"], "no file or folder"),
        (["show", "{}", "-o", "{}/x.png"], "no recordings"),
        (["show", "{}/text.txt", "-o", "{}/x.png"], "text.txt"),
        (["show", "{}", "-o", "{}/x.png", "--T", "0"], "steps=0"),
        (["shard", "--output-dir", "{}/shards"], "no data chosen"),
    ],
)
def test_a_mistake_gets_one_line(
    words: list[str], says: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("no recording")
    status, out, err = run(capsys, *(word.format(tmp_path) for word in words))
    if says is None:
        assert status == 0
        assert "prepare" in out
    else:
        assert status == 2
        assert says in err
        assert len(err.splitlines()) == 1


def test_a_recording_without_its_image_is_listed(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared / "data" / "nmnist-pairs"
    for path in ("N-MNIST/Train/0", "N-MNIST/Test/0", "MNIST/Test/0"):
        shutil.copytree(source / path, tmp_path / path)
    (tmp_path / "MNIST/Train").mkdir()
    status, out, err = run(capsys, "check", "--root", tmp_path)
    assert status == 2
    assert "no images" in err
    assert "MNIST/Train" in err
    assert len(out.splitlines()) == len(list((tmp_path / "N-MNIST/Train/0").iterdir()))


def test_the_set_is_known_by_its_folder(shared: Path, tmp_path: Path) -> None:
    assert commands.dataset(shared / "data" / "nmnist-pairs") == "nmnist"
    assert commands.dataset(shared / "data" / "ncaltech101-pairs") == "ncaltech101"
    assert commands.dataset(tmp_path) == "folder"


@pytest.mark.slow
def test_pictures_are_drawn_of_pairs_recordings_and_images(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = shared / "data" / "ncaltech101-pairs"
    recording = sorted(pairs.glob("Caltech101/*/*.bin"))[0]
    alone = shutil.copy(recording, tmp_path / "alone.bin")
    photograph = shutil.copy(sorted(pairs.glob("101_*/*/*.jpg"))[0], tmp_path / "photograph.jpg")
    rows = {}
    for i, path in enumerate((pairs, recording, alone, photograph)):
        out = tmp_path / f"{i}.png"
        assert run(capsys, "show", path, "-o", out, "--T", 3)[0] == 0
        with Image.open(out) as file:
            rows[i] = np.array(file.convert("RGB"))
    assert rows[0].shape[0] > 2 * rows[1].shape[0]
    assert rows[1].shape[1] > 1.2 * rows[2].shape[1]  # the column of the image
    for picture in rows.values():
        red = (picture == (255, 0, 0)).all(-1).sum()
        blue = (picture == (0, 0, 255)).all(-1).sum()
        assert min(red, blue) > 500  # of the legend, some 150


@pytest.mark.slow
def test_a_set_is_packed_and_named_for_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shards"
    words = ["--dataset", "digits", "--T", 3, "--data.init_args.size=16"]
    words += ["--data.init_args.per_class=4", "--shard-size", 150]
    status, out, _ = run(capsys, "shard", "--output-dir", root, *words)
    assert status == 0
    assert out.splitlines() == [
        "train: 40 samples in 1 shard",
        "val: 145 samples in 1 shard",
        "test: 359 samples in 3 shards",
        f"shards are ready: --dataset shards --data-path {root}",
    ]
    assert out.splitlines()[-1].partition(": ")[2] == f"--dataset shards --data-path {root}"
    flags = DataFlags(dataset="shards", data_path=str(root))
    data = build_data(*parse(flags.spell_out(), ["data"]))
    source = Digits(T=3, size=16, per_class=4)
    assert (data.sizes, data.fingerprint) == (source.sizes, source.fingerprint)
    assert len(list(root.glob("*.tar"))) == 5
    status, _, err = run(capsys, "check", "--dataset", "shards", "--data-path", root)
    assert status == 2
    assert "give the set it was made from" in err


def test_partners_are_found_both_ways(shared: Path) -> None:
    for root, there, here in (
        ("nmnist-pairs", "N-MNIST/Test/0/60004.bin", "MNIST/Test/0/60004.png"),
        ("ncaltech101-pairs", "Caltech101/chair/image_0001.bin", None),
    ):
        recording = shared / "data" / root / there
        name, image = partner(recording) or ("", Path())
        assert name == root.removesuffix("-pairs")
        assert image.is_file()
        assert here is None or image == shared / "data" / root / here
        assert partner(image) == (name, recording)
    assert partner(shared / "golden" / "golden.json") is None


def test_image_and_events_share_one_field_of_view(shared: Path) -> None:
    root = shared / "data" / "ncaltech101-pairs" / "Caltech101"
    seen = view(root / "chair" / "image_0001.bin")
    assert seen.size == (173, 127)
    events = read_events(root / "chair" / "image_0001.bin")
    assert np.array_equal(seen.events, events)
    assert seen.image is not None
    gray = torch.nn.functional.interpolate(seen.image[None], seen.size, mode="area")[0].mean(0)
    edges = sum(g.abs() for g in torch.gradient(gray))
    counts = torch.from_numpy(np.histogram2d(events["y"], events["x"], seen.size)[0])

    def agreement(dx: int, dy: int) -> float:
        moved = edges.roll((dy, dx), (0, 1))
        return float(np.corrcoef(moved.flatten(), counts.clamp(max=30).flatten())[0, 1])

    assert agreement(0, 0) > max(agreement(dx, dy) for dx in (-4, 4) for dy in (-4, 4))
    assert agreement(0, 0) > 0.4


def test_colors_are_those_of_the_legend() -> None:
    counts = torch.zeros(2, 1, 4)
    counts[0, 0, :2] = 5.0
    counts[1, 0, 1:3] = 5.0
    got = event_picture(counts, most=4.0)[:, 0].T
    assert got.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]]


def test_every_frame_says_its_step_and_its_time(shared: Path) -> None:
    recording = view(shared / "data" / "nmnist-pairs" / "N-MNIST" / "Test" / "0" / "60004.bin")
    lone = View("lone", recording.events, recording.size)
    figure = draw([recording, lone], steps=3)
    titles = [ax.get_title() for ax in figure.axes]
    assert [t[:5] for t in titles[1:4]] == ["t = 1", "t = 2", "t = 3"]
    assert titles[1].endswith("0-103 ms")
    assert figure.axes[4].texts[0].get_text() == "no image"
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["ON: brighter", "OFF: darker", "both"]


def test_an_image_without_contrast_is_drawn_although_it_has_no_events(tmp_path: Path) -> None:
    Image.new("L", (12, 12), 255).save(tmp_path / "white.png")
    assert show(tmp_path / "white.png", tmp_path / "page.png", steps=2) == 1


def test_names_in_chinese_letters_are_drawn_or_are_boxes_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a letter that no font has, each is drawn as the same box."""

    def drawn(name: str) -> np.ndarray:
        path = tiny_sets.picture(tmp_path / name / "0.png", 12, 12)
        show(path, tmp_path / "page.png", steps=1)
        with Image.open(tmp_path / "page.png") as page:
            return np.asarray(page)

    assert np.array_equal(drawn("椅"), drawn("杯")) == (not chinese_fonts())
    monkeypatch.setattr("estl.data.show.chinese_fonts", list)
    assert np.array_equal(drawn("椅"), drawn("杯"))
    assert caplog.messages == []
