import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from estl.data.formats.atis import read_events
from estl.data.formats.images import read_rgb, read_size
from estl.data.reading import extent, seen, sensor_size
from estl.data.sets.ncaltech101 import NCaltech101Pairs
from tests.tiny_sets import encode, names_of, read_file, write_ncaltech101


@pytest.fixture
def pairs(shared: Path) -> Path:
    return shared / "data" / "ncaltech101-pairs"


def gradient(image: torch.Tensor) -> torch.Tensor:
    gray = image.mean(0)
    dx, dy = gray[1:-1, 2:] - gray[1:-1, :-2], gray[2:, 1:-1] - gray[:-2, 1:-1]
    return torch.hypot(dx, dy).sqrt()


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()


def blur(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x[None, None], 3, 1)[0, 0]


def test_the_sensor_of_real_recordings_follows_from_their_photographs(pairs: Path) -> None:
    for path in sorted(pairs.glob("Caltech101/*/*.bin")):
        photograph = pairs / "101_ObjectCategories" / path.parent.name / f"{path.stem}.jpg"
        assert sensor_size(read_size(photograph)) == extent(read_events(path))


def test_photographs_show_what_recordings_saw_to_within_a_pixel(pairs: Path) -> None:
    """Of all shifts by whole sensor pixels, at most one pixel gives the highest correlation."""
    for path in sorted(pairs.glob("Caltech101/*/*.bin")):
        photograph = pairs / "101_ObjectCategories" / path.parent.name / f"{path.stem}.jpg"
        events = read_events(path)
        H, W = sensor_size(read_size(photograph))
        counts = torch.zeros(H, W)
        counts.index_put_(
            (torch.from_numpy(events["y"].astype(int)), torch.from_numpy(events["x"].astype(int))),
            torch.ones(len(events)),
            accumulate=True,
        )
        image = read_rgb(photograph, 2 * 240, seen(read_size(photograph), (H, W)))
        image = F.interpolate(image[None], size=(H, W), mode="area")[0]
        edges, counts = blur(gradient(image)), blur(counts[1:-1, 1:-1].sqrt())
        found = {}
        for dy in range(-4, 5):
            for dx in range(-4, 5):
                moved = edges.roll((dy, dx), (0, 1))[4:-4, 4:-4]
                found[dy, dx] = correlation(moved, counts[4:-4, 4:-4])
        best = max(found, key=lambda shift: found[shift])
        assert max(map(abs, best)) <= 1
        assert found[0, 0] > found[best] - 0.01
        assert found[0, 0] > 0.8


def test_frames_hold_every_event_of_a_real_recording(pairs: Path) -> None:
    data = NCaltech101Pairs(pairs, T=6, size=48, rgb=32, val_fraction=0.0, test_fraction=0.0)
    for item in data.splits["train"]:
        assert item.events is not None
        for load in (data.load, data.decode, pickle.loads(pickle.dumps(data.load))):
            frames, image = load(item)
            assert frames.shape == (6, 2, 48, 48)
            assert frames.sum() == item.events.stat().st_size // 5
            assert image.shape == (3, 32, 32)
        options = {"T": 6, "size": 48, "rgb": 32, "by": "count"}
        read = read_file(item.events, "estl.data.NCaltech101Pairs", options)
        assert torch.equal(read, frames)  # its size from x and y is that from the photograph
        assert item.image is not None
        assert torch.equal(data.read_image(item.image), image)


@pytest.mark.parametrize("photograph", [(300, 200), (200, 300), (300, 225), (40, 300), (300, 300)])
def test_the_corners_of_the_sensor_are_the_corners_of_frames_and_image(
    tmp_path: Path, photograph: tuple[int, int]
) -> None:
    write_ncaltech101(tmp_path, names_of("cat", 1), photograph)
    w, h = photograph
    ramp = np.stack(np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h)), -1)
    picture = np.concatenate((ramp, ramp[..., :1]), -1).astype(np.uint8)
    path = tmp_path / "101_ObjectCategories" / "cat" / "image_0001.jpg"
    Image.fromarray(picture).save(path, quality=95)
    data = NCaltech101Pairs(tmp_path, T=1, size=8, rgb=224, val_fraction=0.0, test_fraction=0.0)
    frames, image = data.load(data.splits["train"][0])
    for y in (0, -1):
        for x in (0, -1):
            assert frames[0, :, y, x].sum() == 1
    W = sensor_size((h, w))[1]
    scale = (W + 7) / w  # sensor pixels to one of the photograph
    left, right = 4 / scale / (w - 1), (4 + W) / scale / (w - 1)
    # half a pixel of either grid, and the coarseness of JPEG
    assert image[0, 112, 0].item() == pytest.approx(left, abs=1.5 / min(w, 224) + 0.02)
    assert image[0, 112, -1].item() == pytest.approx(right, abs=1.5 / min(w, 224) + 0.02)


def test_recordings_without_photographs_take_their_size_from_their_events(tmp_path: Path) -> None:
    write_ncaltech101(tmp_path, names_of("cat", 1))
    shutil.rmtree(tmp_path / "101_ObjectCategories")
    data = NCaltech101Pairs(
        tmp_path, T=1, size=4, images=False, val_fraction=0.0, test_fraction=0.0
    )
    frames, image = data.load(data.splits["train"][0])
    assert image is None
    assert frames[0].sum(0)[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [1, 1, 1, 1]


def test_a_recording_larger_than_its_photograph_says_loses_no_event(tmp_path: Path) -> None:
    write_ncaltech101(tmp_path, names_of("cat", 1))
    path = tmp_path / "Caltech101" / "cat" / "image_0001.bin"
    path.write_bytes(encode([(0, 0, 0, 1), (5, 239, 179, 1)]))
    data = NCaltech101Pairs(tmp_path, T=1, size=4, rgb=8, val_fraction=0.0, test_fraction=0.0)
    frames, image = data.load(data.splits["train"][0])
    assert frames.sum() == 2
    assert image.shape == (3, 8, 8)


@pytest.mark.parametrize("folder", ["Caltech101", "N-Caltech101", "N-Caltech101/Caltech101", "."])
def test_the_folders_people_have_are_found(tmp_path: Path, folder: str) -> None:
    write_ncaltech101(tmp_path / "set", names_of("cat", 4))
    (tmp_path / "root" / folder).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tmp_path / "set" / "Caltech101", tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "root" / folder, dirs_exist_ok=True)
    data = NCaltech101Pairs(tmp_path / "root", images=False)
    assert sum(data.sizes.values()) == 4


def test_background_and_faces_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    names = [n for c in ("BACKGROUND_Google", "Faces", "Faces_easy", "cat") for n in names_of(c, 3)]
    write_ncaltech101(tmp_path, names)
    assert NCaltech101Pairs(tmp_path).classes == ("Faces_easy", "cat")
    with_all = NCaltech101Pairs(tmp_path, leave_out=())
    assert with_all.classes == ("BACKGROUND_Google", "Faces", "Faces_easy", "cat")


def test_the_hundred_classes_are_those_of_the_photographs_at_hand(shared: Path) -> None:
    folder = shared / "data" / "caltech101-128px" / "101_ObjectCategories"
    classes = {path.name for path in folder.iterdir()}
    assert len(classes) == 100
    assert not classes & {"BACKGROUND_Google", "Faces"}


def test_a_recording_without_photograph_is_an_error_or_a_counted_skip(tmp_path: Path) -> None:
    write_ncaltech101(tmp_path, [*names_of("cat", 5), *names_of("BACKGROUND_Google", 2)])
    (tmp_path / "101_ObjectCategories" / "cat" / "image_0002.jpg").unlink()
    (tmp_path / "101_ObjectCategories" / "cat" / "image_0003.jpg").unlink()
    (tmp_path / "101_ObjectCategories" / "BACKGROUND_Google" / "image_0001.jpg").unlink()
    (tmp_path / "Caltech101" / "cat" / "image_0005.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 recordings have no .*0002\.bin") as error:
        NCaltech101Pairs(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match=r"2 recordings have no image, .*image_0002\.bin"):
        data = NCaltech101Pairs(tmp_path, missing="skip")
    assert [path.stem for path in data.alone] == ["image_0002", "image_0003"]
    assert data.extra_images == 1
    assert sum(data.sizes.values()) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(NCaltech101Pairs(tmp_path, images=False).sizes.values()) == 4


def test_a_missing_set_says_where_to_point(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recordings .*--data-path .*Caltech101"):
        NCaltech101Pairs(tmp_path / "none")
    write_ncaltech101(tmp_path, names_of("cat", 1))
    shutil.rmtree(tmp_path / "101_ObjectCategories")
    with pytest.raises(FileNotFoundError, match=r"no photographs .*images=false"):
        NCaltech101Pairs(tmp_path)


@pytest.mark.filterwarnings("ignore:1 recordings have no image")
def test_published_lists_name_the_splits(tmp_path: Path) -> None:
    write_ncaltech101(tmp_path, [*names_of("cat", 6), *names_of("Faces", 1)])
    (tmp_path / "101_ObjectCategories" / "cat" / "image_0006.jpg").unlink()
    lists = tmp_path / "lists"
    lists.mkdir()
    train = ["cat/image_0001.bin", "cat/image_0002.bin", "cat/image_0006.bin", "Faces/image_0001"]
    (lists / "train.txt").write_text("\n".join(train))
    (lists / "test.txt").write_text("cat/image_0004\n")
    with pytest.warns(UserWarning, match="1 recordings"):
        data = NCaltech101Pairs(tmp_path, splits=lists, val_fraction=0.0, missing="skip")
    names = {split: [item.number for item in items] for split, items in data.splits.items()}
    assert names == {"train": ["image_0001", "image_0002"], "val": [], "test": ["image_0004"]}
    (lists / "test.txt").write_text("cat/image_0001\n")
    with pytest.raises(ValueError, match=r"test\.txt line 1: .* already in train\.txt line 1"):
        NCaltech101Pairs(tmp_path, splits=lists, missing="skip")


@pytest.mark.slow
@pytest.mark.usefixtures("without_compiling")
def test_the_recipe_builds_and_learns_with_a_small_tower(
    tmp_path: Path, pairs: Path, clip_folder: Path
) -> None:
    from estl.commands.flags import TrainingFlags
    from estl.training.recipe import build, parse

    for path in [*pairs.glob("Caltech101/*/*.bin"), *pairs.glob("101_ObjectCategories/*/*.jpg")]:
        for i in range(6):
            copy = tmp_path / path.relative_to(pairs).with_name(f"image_{i:04d}{path.suffix}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    flags = TrainingFlags(
        config=("ncaltech101_clip",),
        data_path=str(tmp_path),
        batch_size=2,
        T=2,
        teacher=str(clip_folder),
    )
    more = ["--supervision.init_args.edge_grid=14", "--data.init_args.rgb=32"]
    run = build(*parse(flags.spell_out([*more, "--data.init_args.num_workers=0"])))
    assert run.data.sizes == {"train": 12, "val": 3, "test": 3}
    batch = next(iter(run.data.train_dataloader()))
    output = run.student(batch.events)
    assert output.patch_tokens.shape == (2, 2, 144, 256)
    assert output.class_token.shape == (2, 2, 256)
    loss = run.supervision(output, batch)
    loss.total.backward()
    assert set(loss.terms) == {
        *("cls", "global_distill", "patch_distill", "edge_events", "logit_distill"),
    }
    for part in (run.student, run.supervision.edge_detector, run.supervision.projector):
        assert all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
