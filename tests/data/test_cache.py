"""What is kept on disk is what was decoded, whoever writes it and whatever interrupts."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from estl.data import cache
from estl.data.cache import Cache, describe, open_cache
from estl.data.columns import COUNTS, PIXELS
from estl.data.items import Item
from estl.data.module import ItemData
from estl.data.samples import collate
from estl.data.sets.digits import Digits
from estl.data.sets.folder import ImageFolder
from estl.data.sets.nmnist import NMNISTPairs
from estl.types import direct_code, is_static

ITEMS = [Item("a", str(i)) for i in range(5)]


def load(item: Item, largest: float = 3.0, image: bool = True) -> tuple[Tensor, Tensor | None]:
    i = int(item.number)
    frames = torch.arange(16.0).view(2, 2, 2, 2) + i
    frames[0, 0, 0, 0] = largest if i == 3 else 0.0
    return frames, torch.full((3, 4, 4), i / 255) if image else None


def load_broken(item: Item) -> tuple[Tensor, Tensor | None]:
    if item.number in "24":
        raise ValueError(f"{item}: broken")
    return load(item)


def load_static(item: Item) -> tuple[Tensor, None]:
    image = torch.full((1, 3, 4, 4), int(item.number) / 255)
    return direct_code(image, 6)[0], None


def load_odd(item: Item) -> tuple[Tensor, None]:
    return torch.zeros(2, 2, 3, 3 + (item.number == "2")), None


def no_content(item: Item) -> list[bytes]:
    return []


def built(folder: Path, load: cache.Load = load, **options: bool | int) -> Cache:
    return open_cache(ITEMS, load, folder, no_content, **options)


def same(kept: Cache, load: cache.Load = load) -> bool:
    pairs = [(kept(item), load(item)) for item in ITEMS]
    return all(
        torch.equal(a, b) and (c is d is None or torch.equal(c, d)) for (a, c), (b, d) in pairs
    )


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [
        (3.0, "uint8"),
        (255.0, "uint8"),
        (256.0, "uint16"),
        (65536.0, "float32"),
        (0.1, "float32"),
        (-1.0, "float32"),
    ],
)
def test_frames_are_stored_in_the_narrowest_numbers_that_hold_them(
    tmp_path: Path, largest: float, dtype: str
) -> None:
    how = partial(load, largest=largest)
    kept = built(tmp_path, how)
    assert kept.columns["frames"][0].dtype == dtype
    assert {path.name for path in kept.folder.iterdir()} == {
        *("cache.json", f"frames.{dtype}.npy", "images.uint8.npy")
    }
    assert same(kept, how)


def test_images_that_are_no_bytes_stay_floats(tmp_path: Path) -> None:
    assert all(code.numbers(torch.rand(9)) is None for code in (COUNTS[0], PIXELS[0]))
    k = torch.arange(256) / 255
    stored = PIXELS[0].numbers(k)
    assert stored is not None
    assert torch.equal(PIXELS[0].floats(stored), k)


def test_static_items_keep_one_step(tmp_path: Path) -> None:
    kept = built(tmp_path, load_static)
    assert kept.columns["frames"][0].shape == (5, 1, 3, 4, 4)
    assert kept.columns["frames"][0].dtype == np.uint8
    assert same(kept, load_static)
    batch = collate([(kept(item)[0], 0, None) for item in ITEMS])
    assert is_static(batch.events)
    assert batch.events.shape == (5, 6, 3, 4, 4)
    assert torch.equal(batch.events[3], load_static(ITEMS[3])[0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_real_pairs_come_back_bit_by_bit(shared: Path, tmp_path: Path, workers: int) -> None:
    root = shared / "data" / "nmnist-pairs"
    plain = NMNISTPairs(root, T=4, per_class=3)
    kept = NMNISTPairs(root, T=4, per_class=3, cache=str(tmp_path), num_workers=workers)
    for split in ("train", "test"):
        loaders = [DataLoader(d.dataset(split), 16, collate_fn=collate) for d in (plain, kept)]
        for a, b in zip(*loaders, strict=True):
            assert torch.equal(a.events, b.events)
            assert torch.equal(a.label, b.label)
            assert torch.equal(a.image, b.image)
    batches = list(kept.val_dataloader())
    assert sum(len(b.label) for b in batches) == kept.sizes["val"]
    assert plain.fingerprint == kept.fingerprint
    assert len(pickle.dumps(kept.dataset("train").load)) < 500


def test_simulated_sets_come_back_bit_by_bit(shared: Path, tmp_path: Path) -> None:
    photographs = shared / "data" / "ncaltech101-pairs" / "101_ObjectCategories"
    makers = (
        partial(Digits, T=3, size=16, per_class=2),
        partial(ImageFolder, photographs, size=16, rgb=20),
    )
    for make in makers:
        data = [make(), make(cache=tmp_path)]
        for split in data[0].splits:
            for i in range(min(20, data[0].sizes[split])):
                a, b = (d.dataset(split)[i] for d in data)
                assert torch.equal(a[0], b[0])
                assert torch.equal(a[2], b[2])


def test_items_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path)
    monkeypatch.setattr(cache, "load_items", None)
    assert same(built(tmp_path))
    with pytest.raises(TypeError):
        built(tmp_path, partial(load, largest=4.0))


def test_the_key_knows_the_loader_its_arguments_the_items_and_their_files(tmp_path: Path) -> None:
    file = tmp_path / "0.bin"
    file.write_bytes(b"abc")
    items = [Item("a", "0", events=file)]
    keys = {
        cache.key(ITEMS, load, no_content),
        cache.key(ITEMS, partial(load, largest=1.0), no_content),
        cache.key(ITEMS, load_static, no_content),
        cache.key(ITEMS[:4], load, no_content),
        cache.key(ITEMS, load, lambda item: [b"x"]),
        cache.key(items, load, no_content),
    }
    os.utime(file, ns=(1, 1))
    keys.add(cache.key(items, load, no_content))
    assert len(keys) == 7
    assert cache.key(ITEMS, load, no_content) in keys


def test_loaders_without_a_name_or_with_arguments_that_are_not_plain_are_refused() -> None:
    for bad in (lambda item: load(item), partial(load, ITEMS[0]), ITEMS.index):
        with pytest.raises(ValueError, match="cannot be cached"):
            describe(bad)
    with pytest.raises(ValueError, match="largest of load is a object"):
        describe(partial(load, largest=object()))
    tensor = describe(partial(load, largest=torch.ones(2)))
    assert tensor != describe(partial(load, largest=torch.zeros(2)))


def test_an_item_of_another_shape_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"item a/2 has shapes .*a/0"):
        built(tmp_path, load_odd)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]


def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        built(tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]


def test_the_first_broken_item_raises_its_own_error(tmp_path: Path) -> None:
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"^a/2: broken$"):
            built(tmp_path, load_broken, num_workers=workers)
    kept = built(tmp_path, load_broken, skip_broken=True)
    with pytest.raises(ValueError, match=r"^a/2: broken$"):
        built(tmp_path, load_broken)  # and when the cache is there
    head = json.loads((kept.folder / "cache.json").read_text())
    assert head["broken"] == kept.broken == {f"a/{i}": f"a/{i}: broken" for i in (2, 4)}
    with pytest.raises(ValueError, match="broken"):
        open_cache(ITEMS[2:3], load_broken, tmp_path, no_content, skip_broken=True)


def test_broken_items_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {"train": ITEMS[:3], "val": ITEMS[3:4], "test": ITEMS[4:]}

    def make(**options: object) -> ItemData:
        return ItemData(
            splits,
            load_broken,
            T=2,
            frame_size=(2, 2),
            content=no_content,
            **options,
        )

    data = make(cache=tmp_path, skip_broken=True)
    assert data.sizes == {"train": 2, "val": 1, "test": 0}
    assert len(data.dataset("train")) == 2
    said = capsys.readouterr().err
    assert "2 broken items are left out" in said
    assert "a/2: broken" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(ValueError, match="needs a cache"):
        make(skip_broken=True)


def test_a_damaged_cache_is_built_again(tmp_path: Path) -> None:
    kept = built(tmp_path)
    folder = kept.folder
    frames = (folder / "frames.uint8.npy").read_bytes()

    def truncate() -> None:
        (folder / "frames.uint8.npy").write_bytes(frames[:-1])

    for damage in (
        truncate,
        (folder / "images.uint8.npy").unlink,
        partial((folder / "cache.json").write_text, "{"),
        partial((folder / "cache.json").write_text, "{}"),
        partial(shutil.rmtree, folder),
    ):
        damage()
        assert same(built(tmp_path))
        assert (folder / "frames.uint8.npy").read_bytes() == frames
    assert {p.name for p in tmp_path.iterdir()} == {folder.name, f"{folder.name}.lock"}


MODULE = """
import torch
from estl.data.cache import open_cache
from estl.data.items import Item

ITEMS = [Item("a", str(i)) for i in range(5)]
LOADED = []

def load(item):
    LOADED.append(item)
    return torch.full((2, 2, 3, 3), float(item.number)), None

def built(folder):
    kept = open_cache(ITEMS, load, folder, lambda item: [])
    assert all(torch.equal(kept(item)[0], load(item)[0]) for item in ITEMS)
    return kept
"""
"""What several processes import; it is small, because each of them does."""


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    """A process that runs `code` with `folder` and `built` of `MODULE`."""
    (folder / "module.py").write_text(MODULE)
    head = f"import sys; sys.path.insert(0, {str(folder)!r})\nfrom pathlib import Path\n"
    head += f"from module import LOADED, built\nfolder = Path({str(folder / 'cache')!r})\n"
    return subprocess.Popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> int:
    """Its exit status."""
    process.communicate(timeout=300)
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("place", ["Column.write", "Path.rename"])
def test_a_killed_build_leaves_nothing_that_is_taken_for_complete(
    tmp_path: Path, place: str
) -> None:
    killed = f"import os\nfrom estl.data import cache\ncache.{place} = lambda *_: os._exit(9)\n"
    assert ended(start(tmp_path, killed + "built(folder)")) == 9
    folder = tmp_path / "cache"
    assert sorted(p.suffix for p in folder.iterdir() if not p.name.startswith(".")) == [".lock"]
    assert len(list(folder.glob(".*"))) == 1
    assert ended(start(tmp_path, "built(folder)")) == 0
    assert not list(folder.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("locks", [True, False])
def test_two_processes_that_build_at_once_both_have_a_good_cache(
    tmp_path: Path, locks: bool
) -> None:
    code = "import fcntl, os, time\n"
    if not locks:
        code += "def flock(*_): raise OSError('no locks here')\nfcntl.flock = flock\n"
    code += (
        "folder.mkdir(exist_ok=True)\n"
        "(folder / f'{os.getpid()}.ready').touch()\n"
        "while len(list(folder.glob('*.ready'))) < 2: time.sleep(0.001)\n"
        "print(built(folder).folder.name, len(LOADED))"
    )
    runs = [start(tmp_path, code) for _ in range(2)]
    said = [run.communicate(timeout=300)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert len({name for name, _ in said}) == 1
    if locks:  # each has looked at the five items, and only one has decoded them
        assert sorted(int(loaded) for _, loaded in said) == [5, 10]
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1


@pytest.mark.parametrize("good", [True, False])
def test_a_finished_cache_of_another_process_is_kept_if_it_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    """Without locks: the other finishes while this one decodes."""
    other = built(tmp_path / "other").folder
    place = tmp_path / "cache" / other.name
    inodes = []

    def load_items(*given: Any) -> Iterator[Any]:
        shutil.copytree(other, place)
        if not good:
            (place / "images.uint8.npy").unlink()
        inodes.append(place.stat().st_ino)
        yield from decode(*given)

    decode = cache.load_items
    monkeypatch.setattr(cache, "load_items", load_items)
    assert same(built(tmp_path / "cache"))
    assert (place.stat().st_ino == inodes[0]) == good
    assert {p.name for p in place.parent.iterdir()} == {place.name, f"{place.name}.lock"}
