"""Every parser of files that come from elsewhere, with whole files for it to read."""

import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from estl.commands.flags import RECIPES, DataFlags, read_recipe
from estl.data.formats.archives import unpack
from estl.data.formats.cifar import read_batch, read_names
from estl.data.formats.images import LARGEST, read_rgb
from estl.data.formats.pieces import read_pieces
from estl.data.formats.recording import read_recording
from estl.data.items import Item
from estl.data.published import pick_items, read_lists
from estl.data.reading import read_labels
from estl.data.sets.digits import Digits
from estl.data.shards import write_shards
from estl.data.stream import Shards
from estl.students import VGGSNN
from estl.training.checkpoint import load_student
from estl.training.recipe import parse_recipe
from estl.training.results import Results
from tests import encoders, tiny_sets

SPARE = 256 << 20
"""Bytes that a parser may take beside four times the file's size."""


class Parser(NamedTuple):
    """Something that reads a file.

    Args:
        read: it.
        whole: files that it can read.
        name: that the file has to have, for parsers that go by it.
        spare: bytes beside four times the file's size.
    """

    read: Callable[[Path], Any]
    whole: list[bytes]
    name: str = "input"
    spare: int = SPARE


def parsers(folder: Path) -> dict[str, Parser]:
    """All of them; `folder` is for what has to be a file before it is bytes."""
    made = folder / "made"
    made.mkdir(parents=True)
    return {
        "recording": Parser(read_recording, list(recordings(made))),
        "pieces": Parser(_pieces, list(followed())),
        "image": Parser(
            read_rgb,
            [picture(kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF")] + others(),
            spare=24 * LARGEST,  # bytes of its pixels, twice, and floats, with room
        ),
        "cifar": Parser(_cifar, list(batches(made))),
        "archive": Parser(_unpack, list(archives())),
        "labels": Parser(
            lambda path: read_labels(path.with_name("input.aedat")),
            [(tiny_sets.TITLE + "1,5,9\n2,9,12\n").encode()],
            "input_labels.csv",
        ),
        "lists": Parser(
            _lists, [b"train: [0/1-9, 1/3.bin]\ntest: ['1/4']\nextra: [1/5]\n"], "a.yaml"
        ),
        "json lists": Parser(
            _lists, [b'{"train": ["0/1-9", "1/3.bin"], "test": ["1/4"]}'], "a.json"
        ),
        "recipe": Parser(_recipe, [path.read_bytes() for path in sorted(RECIPES.glob("n*.yaml"))]),
        "results": Parser(Results.read, [RESULTS]),
        "index": Parser(lambda path: Shards(path.parent), [index(made)], "index.json"),
        "checkpoint": Parser(load_student, [checkpoint()]),
    }


def some_events() -> list[encoders.Event]:
    places = np.random.default_rng(0).integers(0, 30, (40, 2)).tolist()
    return [(50 * t, x, y, t % 2) for t, (x, y) in enumerate(places)]


def followed() -> Iterator[bytes]:
    """One in each format that can be followed."""
    size, events = (30, 40), some_events()
    for packed in encoders.PACKED:
        yield encoders.aedat4(events, size, each=9, packed=packed)
    yield from (f(events, size) for f in (encoders.evt2, encoders.evt21, encoders.evt3))
    yield from (encoders.dat(events, size), encoders.csv(events, size), tiny_sets.encode(events))
    yield encoders.event_stream(events, size)


def _pieces(path: Path) -> None:
    data = path.read_bytes()
    cut = (data[start : start + 300] for start in range(0, len(data), 300))
    assert sum(map(len, read_pieces("live", cut)[1])) < 1 << 20


def recordings(made: Path) -> Iterator[bytes]:
    """One in each format."""
    size, events = (30, 40), some_events()
    yield from followed()
    for layout in ("cd", "events", "plain"):
        yield encoders.hdf5(made / layout, events, size, layout).read_bytes()
    yield tiny_sets.write_npz(made / "e.npz", events).read_bytes()
    yield tiny_sets.write_aedat(
        made / "e.aedat", [(t, x, y, p) for t, x, y, p in events]
    ).read_bytes()
    yield tiny_sets.write_recording(made, "user01_led", []).read_bytes()


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def others() -> list[bytes]:
    """Of 16 bits, of transparent places, turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for mode, how in (
        ("I;16", {}),
        ("LA", {}),
        ("P", {"transparency": 3}),
        ("RGB", {"exif": exif}),
    ):
        buffer = io.BytesIO()
        Image.new(mode, (14, 12)).save(buffer, "PNG", **how)
        found.append(buffer.getvalue())
    return found


def batches(made: Path) -> Iterator[bytes]:
    root = tiny_sets.write_cifar10(made, n=2)
    yield from (path.read_bytes() for path in sorted(root.glob("*/*batch*")))
    yield (root / "cifar-10-batches-py" / "batches.meta").read_bytes()


def _cifar(path: Path) -> None:
    try:
        read_batch.__wrapped__(path, 10)
    except ValueError:
        read_names(path, 10)


def archives() -> Iterator[bytes]:
    for kind in ("w", "w:gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=kind) as tar:
            for name in ("a/b.bin", "a/c.bin"):
                part = tarfile.TarInfo(name)
                part.size = 100
                tar.addfile(part, io.BytesIO(bytes(100)))
        yield buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/b.bin", bytes(100))
    yield buffer.getvalue()


def _unpack(path: Path) -> None:
    folder = path.parent / "unpacked"
    before = set(os.listdir(path.parent))
    try:
        unpack(path, folder, largest=1 << 20)
    finally:
        outside = set(os.listdir(path.parent)) - before - {"unpacked"}
        shutil.rmtree(folder, ignore_errors=True)
    assert not outside, f"{outside} was written outside"


def _lists(path: Path) -> None:
    pick_items(read_lists(path), [Item(label, str(n)) for label in "01" for n in range(1, 10)])


def _recipe(path: Path) -> None:
    recipe = read_recipe(path)
    DataFlags(config=(str(path),)).spell_out()
    if isinstance(recipe, dict) and random.random() < 0.02:  # building the schema takes its time
        parse_recipe(recipe)


def index(made: Path) -> bytes:
    write_shards(Digits(T=3, size=8, per_class=2), made / "shards", shard_size=500)
    return (made / "shards" / "index.json").read_bytes()


def checkpoint() -> bytes:
    student = {
        "class_path": "estl.students.VGGSNN",
        "init_args": {"layers": [4, "AP"], "frame_size": [8, 8]},
    }
    state = VGGSNN(layers=(4, "AP"), frame_size=(8, 8)).state_dict()
    buffer = io.BytesIO()
    torch.save({"recipe": {"student": student}, "state_dict": state, "classes": ["0"]}, buffer)
    return buffer.getvalue()


FACTS = {"name": "D", "fingerprint": "0", "sizes": {"train": 4}}
OF = {"command": "estl fit", "seed": 0, "data": FACTS, "student": "S", "parameters": 1, "cores": 1}
OF |= {"supervision": "T", "versions": {}, "processor": "P", "gpu": None, "finished": "now"}
VAL = {"final": {"per_step": [0.5, 0.5], "samples": 4}}
ALL = {"of": OF, "epochs": 1, "train_seconds": 1.0, "peak_memory_mib": 1, "val": VAL}
RESULTS = json.dumps(ALL).encode()
