"""A data set as tar shards, for sets that are larger than a disk or read by many nodes.

`write_shards` decodes a data set once and packs each split into tar files of the webdataset format
(Aizman et al. 2019, "High Performance I/O For Large Scale Deep Learning"), which `estl.data.Shards`
streams from a folder, a web address or an object store. Pairs and splits stay what they are.
"""

import hashlib
import io
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import webdataset as wds
from jaxtyping import Float
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from estl.data.cache import Load, load_items
from estl.data.check import refuse_leaks
from estl.data.columns import narrowest
from estl.data.folders import naming, only_one
from estl.data.frames import Standard
from estl.data.items import Item
from estl.data.module import EventData, ItemData, with_items
from estl.data.remote import read_bytes
from estl.types import is_static

INDEX = "index.json"
_FORMAT = 3


@dataclass
class _Shard:
    """What an index says about a shard."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass
class _Index:
    """What an index has to hold."""

    fingerprint: str
    classes: list[str]
    T: int
    frame_size: tuple[int, int]
    in_channels: int
    standard: Standard | None
    allow_leaks: bool
    splits: dict[Literal["train", "val", "test"], list[_Shard]]


Parts = dict[str, bytes]
"""A sample's files in a shard: frames.npy, image.png (in a set with images), item.json."""


def write_shards(
    data: EventData, folder: str | Path, *, shard_size: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Write all splits of `data` to `folder/<split>-000000.tar`, ..., and `folder/index.json`.

    A sample is `frames.npy` (the counts before normalization, in the narrowest of uint8, uint16 and
    float32 that holds them; one step if they are directly coded), `image.png` (8 bits a channel)
    and `item.json` (class and name). Training items are shuffled first, so that each shard is a
    fair part of the set. The index has the classes, sizes and fingerprint of `data` and the
    checksum of every shard; it is written last, so that a folder without one is incomplete. The
    same data give the same bytes.

    Args:
        data: any data set but `Shards`; its `num_workers` processes decode.
        folder: made if it is not there.
        shard_size: samples per shard; a reader holds one shard in memory.
        seed: seed of the order of the training items.

    Returns:
        What the index holds.

    Raises:
        ValueError: `folder` already holds shards, or another process writes some there;
            `shard_size` is below 1; `data` has a leak (the same item in two splits) and does not
            allow it.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size}: at least 1")
    folder = Path(folder)
    _refuse_taken(folder)
    data = with_items(data)
    if not data.allow_leaks:
        refuse_leaks(data)
    with only_one(folder), naming(folder):
        _refuse_taken(folder)  # it was free before the lock was had
        return _write_all(data, folder, shard_size, seed)


def _refuse_taken(folder: Path) -> None:
    if (folder / INDEX).exists():
        raise ValueError(f"{folder} already holds shards: choose another folder")


def _write_all(data: ItemData, folder: Path, shard_size: int, seed: int) -> dict[str, Any]:
    """Write the shards and their index, which is returned."""
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, items in data.splits.items():
        order = sorted(items)
        if split == "train":
            random.Random(seed).shuffle(order)
        splits[split] = _write_split(data, order, str(folder / f"{split}-%06d.tar"), shard_size)
    index = {
        "format": _FORMAT,
        "source": type(data).__name__,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "T": data.T,
        "frame_size": list(data.frame_size),
        "in_channels": data.in_channels,
        "standard": asdict(data.normalize) if isinstance(data.normalize, Standard) else None,
        "allow_leaks": data.allow_leaks,
        "splits": splits,
    }
    index["sha256"] = _digest(index)
    part = folder / f".{INDEX}"  # a full disk may leave half of it, and a folder with one is taken
    part.write_text(json.dumps(index, indent=1) + "\n")
    part.replace(folder / INDEX)
    return index


def _digest(index: Mapping[str, Any]) -> str:
    """Checksum of an index, of all but itself."""
    rest = {name: value for name, value in index.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write_split(
    data: ItemData, items: Sequence[Item], pattern: str, shard_size: int
) -> list[dict[str, Any]]:
    """The shards of one split, as the index describes them."""
    if not items:
        return []
    paths: list[str] = []
    options = {"user": "", "group": "", "mtime": 0, "encoder": False}
    options |= {"maxsize": math.inf, "verbose": 0}  # by default a shard ends at 3 GB, too
    with wds.ShardWriter(pattern, shard_size, post=paths.append, **options) as writer:
        pack = partial(_pack, load=data.load)
        packed = load_items(items, pack, data.num_workers, "Packing")
        for i, (_, parts) in enumerate(packed):
            if isinstance(parts, Exception):
                raise parts
            writer.write({"__key__": f"{i:08d}"} | parts)
    return [
        {
            "file": path.name,
            "samples": min(shard_size, len(items) - i * shard_size),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for i, path in enumerate(map(Path, paths))
    ]


def _pack(item: Item, load: Load) -> Parts:
    return pack_sample(item, *load(item))


def pack_sample(item: Item, frames: Float[Tensor, "T C H W"], image: Tensor | None) -> Parts:
    """A sample's files; counts are kept exactly, an image to 8 bits a channel."""
    if is_static(frames[None]):
        frames = frames[:1]
    file = io.BytesIO()
    np.save(file, narrowest(frames.contiguous())[1])
    parts = {
        "frames.npy": file.getvalue(),
        "item.json": json.dumps({"label": item.label, "number": item.number}).encode(),
    }
    if image is not None:
        file = io.BytesIO()
        pixels = (image * 255).round().clamp(0, 255).byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        parts["image.png"] = file.getvalue()
    return parts


def unpack_sample(
    parts: Mapping[str, bytes], T: int, *, images: bool = True
) -> tuple[Item, Float[Tensor, "T C H W"], Float[Tensor, "3 h w"] | None]:
    """The item, frames and image that `pack_sample` was given; without `images`, None for it."""
    item = json.loads(parts["item.json"])
    frames = torch.from_numpy(np.load(io.BytesIO(parts["frames.npy"]), allow_pickle=False)).float()
    if len(frames) == 1:
        frames = frames.expand(T, -1, -1, -1)
    image = None
    if images and "image.png" in parts:
        pixels = np.array(Image.open(io.BytesIO(parts["image.png"])))
        image = torch.from_numpy(pixels).movedim(-1, 0).float() / 255
    return Item(item["label"], item["number"]), frames, image


def read_shard(root: str, shard: Mapping[str, Any]) -> Iterator[Parts]:
    """The samples of one shard, after its length and checksum were compared with the index.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: another length or checksum.
    """
    url = f"{root}/{shard['file']}"
    content = read_bytes(url)
    if len(content) != shard["bytes"]:
        raise ValueError(
            f"{url}: truncated or replaced ({len(content)} bytes, {shard['bytes']} in {INDEX}): "
            "fetch the shard again"
        )
    if hashlib.sha256(content).hexdigest() != shard["sha256"]:
        raise ValueError(f"{url}: its SHA-256 is not that of {INDEX}: fetch the shard again")
    for sample in group_by_keys(tar_file_expander([{"url": url, "stream": io.BytesIO(content)}])):
        yield {name: part for name, part in sample.items() if not name.startswith("__")}


def read_index(root: str) -> dict[str, Any]:
    """The index of a folder, or web address, of shards.

    Raises:
        FileNotFoundError: no index.
        ValueError: not an index, or one of another format.
    """
    url = f"{root}/{INDEX}"
    content = read_bytes(url)
    try:
        index: dict[str, Any] = json.loads(content)
        if index["format"] == _FORMAT:
            TypeAdapter(_Index).validate_python(index)
            if index.get("sha256", (found := _digest(index))) == found:
                return index
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(
        f"{url}: not an index of shards in format {_FORMAT}, or damaged: write the shards again"
    )
