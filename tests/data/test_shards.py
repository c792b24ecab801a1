"""A data set is packed into shards: what is read is what was written, or is refused."""

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds
from torch import Tensor

from estl.data.frames import Standard
from estl.data.items import Item
from estl.data.module import ItemData
from estl.data.sets.cifar import CIFAR, MEAN, STD
from estl.data.shards import pack_sample, read_index, read_shard, unpack_sample, write_shards
from estl.data.stream import Shards
from estl.types import direct_code, is_static
from tests.tiny_sets import write_cifar10

ITEMS = [Item("ab"[i % 2], f"{i:02d}") for i in range(20)]


def load(item: Item) -> tuple[Tensor, None]:
    return torch.full((2, 2, 1, 1), float(item.number)), None


def small(leak: int = 0, **loading: Any) -> ItemData:
    """14 training items, 4 for validation, 2 for testing and `leak` of the training items again."""
    splits = {"train": ITEMS[:14], "val": ITEMS[14:18], "test": ITEMS[18:] + ITEMS[:leak]}
    return ItemData(
        splits, load, T=2, frame_size=(1, 1), content=lambda i: [str(i).encode()], **loading
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_shards(small(), tmp_path / "shards", shard_size=6)
    return tmp_path / "shards"


def test_the_same_data_make_the_same_shards(tmp_path: Path) -> None:
    a = write_shards(small(), tmp_path / "a", shard_size=6)
    b = write_shards(small(num_workers=1), tmp_path / "b", shard_size=6)
    assert a == b
    assert [shard["samples"] for shard in a["splits"]["train"]] == [6, 6, 2]


def test_a_shard_has_its_samples_however_large_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """webdataset begins another file at 3 GB: here at one byte, of which the index knew nothing."""
    monkeypatch.setattr(wds, "ShardWriter", partial(wds.ShardWriter, maxsize=1))
    write_shards(small(), tmp_path / "shards", shard_size=6)
    batches = Shards(tmp_path / "shards", batch_size=4).loader("train")
    assert sum(len(batch.label) for batch in batches) == 14


@pytest.mark.parametrize(
    ("frames", "bytes_each"),
    [
        (torch.tensor([0.0, 255.0]), 1),
        (torch.tensor([0.0, 256.0]), 2),
        (torch.tensor([0.5, -1.0]), 4),
        (torch.tensor([0.0, 65536.0]), 4),
    ],
)
def test_frames_come_back_exactly(frames: Tensor, bytes_each: int) -> None:
    frames = frames.view(2, 1, 1, 1).expand(2, 2, 40, 40).contiguous()
    parts = pack_sample(Item("a", "1.b"), frames, None)
    assert len(parts["frames.npy"]) < 2 * 2 * 40 * 40 * bytes_each + 200
    item, again, image = unpack_sample(parts, 2)
    assert item == Item("a", "1.b")
    assert torch.equal(again, frames)
    assert image is None


def test_direct_coding_stays_one_step() -> None:
    image = torch.rand(3, 5, 5)
    parts = pack_sample(Item("a", "1"), direct_code(image[None], 4)[0], image)
    _, frames, again = unpack_sample(parts, 4)
    assert is_static(frames[None])
    assert torch.equal(frames[3], image)
    assert again is not None
    assert (again - image).abs().max() <= 0.5 / 255 + 1e-6


def test_pictures_are_kept_in_0_to_1_and_standardized_when_read(tmp_path: Path) -> None:
    data = CIFAR(write_cifar10(tmp_path / "a"), T=2, batch_size=20)
    write_shards(data, tmp_path / "b")
    shards = Shards(tmp_path / "b", batch_size=20)
    assert shards.normalize == data.normalize == Standard(MEAN[10], STD[10])
    first, again = (next(iter(x.loader("test"))) for x in (data, shards))
    torch.testing.assert_close(again.events, first.events)
    assert is_static(again.events)


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[:-700]
    else:
        content[600] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize(("how", "text"), [("cut", "truncated"), ("flip", "SHA-256")])
def test_a_broken_shard_is_named(root: Path, how: str, text: str) -> None:
    spoil(root / "test-000000.tar", how)
    with pytest.raises(ValueError, match=rf"test-000000\.tar: .*{text}"):
        list(read_shard(str(root), read_index(str(root))["splits"]["test"][0]))


def test_an_incomplete_or_foreign_folder_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.json.*--data-path"):
        read_index(str(tmp_path))
    for text in ("no json", "[]", '{"format": 99}', "\xff"):
        (root / "index.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"index\.json: not an index"):
            read_index(str(root))


def test_a_folder_that_holds_shards_and_empty_shards_are_refused(
    root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="shard_size=0"):
        write_shards(small(), tmp_path / "b", shard_size=0)
    with pytest.raises(ValueError, match="already holds shards"):
        write_shards(small(), root)


def test_a_folder_is_written_by_one_process_and_named_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; from pathlib import Path; from estl.data.folders import only_one\n"
    code += "with only_one(Path(sys.argv[1])): pass"

    def write(*_: object) -> None:
        second = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True)
        assert b"another process writes there" in second.stderr
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("estl.data.shards._write_split", write)
    with pytest.raises(OSError, match="No space left") as raised:
        write_shards(small(), tmp_path)
    assert raised.value.filename == str(tmp_path)


def test_half_an_index_takes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.write_text

    def half(path: Path, text: str) -> int:
        whole(path, text[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="No space left"):
            write_shards(small(), tmp_path)
    assert write_shards(small(), tmp_path) == read_index(str(tmp_path))


def test_a_leak_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leak"):
        write_shards(small(leak=1), tmp_path / "a")
    write_shards(small(leak=1, allow_leaks=True), tmp_path / "b")
