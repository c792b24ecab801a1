"""Tiny copies of the data sets, byte by byte as they are distributed."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from estl.data.reading import sensor_size
from estl.data.recorded import read_parts
from tests.encoders import aedat4, evt3

Event = tuple[int, int, int, int]
"""t, x, y, p."""

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The classes of CIFAR-10."""


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def picture(path: Path, W: int, H: int, mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


# N-MNIST and N-Caltech101: the ATIS format


def encode(events: Sequence[Event]) -> bytes:
    """One event at a time, as the format is described."""
    return b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, x, y, p in events)


def write_nmnist(root: Path, below: str = "N-MNIST/", digits: str = "01", each: int = 4) -> Path:
    for part in ("Train", "Test"):
        for digit in digits:
            for i in range(each):
                number = (60_000 if part == "Test" else 0) + 10 * int(digit) + i + 1
                places = np.random.default_rng(number).integers(0, 34, (60, 2)).tolist()
                events = [(t, x, y, t % 2) for t, (x, y) in enumerate(places)]
                write(root / f"{below}{part}/{digit}/{number:05d}.bin", encode(events))
                image = root / f"MNIST/{part}/{digit}/{number:05d}.png"
                picture(image, 28, 28, "L", seed=number)
    return root


def write_ncaltech101(
    root: Path,
    names: Sequence[str],
    photograph: tuple[int, int] = (300, 200),
    below: str = "Caltech101/",
    photographs: str = "101_ObjectCategories/",
) -> Path:
    """One recording with an event in each corner, and a photograph (W,H), for each name."""
    H, W = sensor_size(photograph[::-1])
    for i, name in enumerate(names):
        corners = [(i, 0, 0, 1), (i + 10, W - 1, 0, 0), (i + 20, 0, H - 1, 1)]
        write(root / f"{below}{name}.bin", encode([*corners, (i + 30, W - 1, H - 1, 0)]))
        picture(root / f"{photographs}{name}.jpg", *photograph, seed=i)
    return root


def names_of(label: str, n: int) -> list[str]:
    return [f"{label}/image_{i:04d}" for i in range(1, n + 1)]


# CIFAR: pickles of Python 2


def python2(value: Any) -> bytes:
    """Opcodes of one value as Python 2 and its numpy wrote them (protocol 2)."""
    if isinstance(value, dict):
        pairs = b"".join(python2(k) + python2(v) for k, v in value.items())
        return b"}(" + pairs + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, str):
        text = value.encode("latin1")
        return b"U" + bytes([len(text)]) + text
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    text = value.tobytes()
    minus_one = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * minus_one + b"K\x00tb"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + (python2(value.shape[0]) + python2(value.shape[1]) + b"\x86" + dtype + b"\x89T")
        + (struct.pack("<i", len(text)) + text + b"tb")
    )


def pickled(content: Any) -> bytes:
    return b"\x80\x02" + python2(content) + b"."


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def write_cifar10(root: Path, n: int = 20, below: str = "cifar-10-batches-py/") -> Path:
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [row % 10 for row in range(n)]
        content = {"batch_label": name, "labels": labels, "data": pixels(n, i)}
        write(root / f"{below}{name}", pickled(content))
    names = {"num_cases_per_batch": n, "label_names": list(NAMES)}
    write(root / f"{below}batches.meta", pickled(names))
    return root


def write_cifar100(root: Path, n: int = 200, below: str = "") -> Path:
    for part, seed in (("train", 0), ("test", 1)):
        content = {
            "filenames": ["x.png"] * n,
            "fine_labels": [i % 100 for i in range(n)],
            "coarse_labels": [0] * n,
            "data": pixels(n, seed),
        }
        write(root / f"{below}{part}", pickled(content))
    names = {"fine_label_names": [f"class{i:02d}" for i in range(100)]}
    write(root / f"{below}meta", pickled(names | {"coarse_label_names": ["all"]}))
    return root


# CIFAR10-DVS: AEDAT 2.0, or converted

EVENTS: list[Event] = [(5, 0, 127, 1), (9, 100, 3, 0), (12, 64, 64, 1), (12, 64, 65, 1)]
"""Events as SpikingJelly's conversion gives them."""


def write_aedat(path: Path, events: Sequence[Event] = EVENTS) -> Path:
    """The conversion is x = 127 - (bits 8 to 14), y = 127 - (bits 1 to 7), p = 1 - bit 0."""
    body = [
        struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | (1 - p), t) for t, x, y, p in events
    ]
    return write(path, b"#!AER-DAT2.0\r\n# a test\r\n" + b"".join(body))


def write_npz(path: Path, events: Sequence[Event] = EVENTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(zip("txyp", np.array(events).T, strict=True)))
    return path


def write_cifar10dvs(
    root: Path,
    below: str = "",
    suffix: str = "aedat",
    each: int = 20,
    labels: str = "airplane bird",
) -> Path:
    for k, label in enumerate(labels.split()):
        for i in range(each):
            path = root / below / label / f"cifar10_{label}_{i}.{suffix}"
            events = [*EVENTS[:3], (12, 5 * i, 65 + 40 * k, 1)]
            write_aedat(path, events) if suffix == "aedat" else write_npz(path, events)
    return root


# DVS128 Gesture: AEDAT 3.1 with labels

HEAD = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
TITLE = "class,startTime_usec,endTime_usec\n"


def write_recording(folder: Path, name: str, labels: Sequence[tuple[int, int, int]]) -> Path:
    """An event every 10 us up to 1 ms, at x = t / 10, y = the number of `name`, 5 a packet."""
    y = int(name[4:6])
    events = [struct.pack("<Ii", (t // 10) << 17 | y << 2 | 3, t) for t in range(0, 1000, 10)]
    data = HEAD
    for i in range(0, 100, 5):
        data += struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, 5, 5, 5) + b"".join(events[i : i + 5])
    lines = "".join(f"{a},{b},{c}\n" for a, b, c in labels)
    write(folder / f"{name}_labels.csv", TITLE + lines)
    return write(folder / f"{name}.aedat", data)


def write_gestures(
    folder: Path,
    training: int = 20,
    test: int = 2,
    lights: Sequence[str] = ("led", "natural"),
    apart: int = 1,
) -> Path:
    names: dict[str, list[str]] = {"train": [], "test": []}
    for i in range(1, training + test + 1):
        for light in lights:
            name = f"user{apart * i:02d}_{light}"
            labels = [(1, 100, 200), (8, 200, 445), (8, 600, 700), (11, 0, 55)]
            write_recording(folder, name, labels)
            names["train" if i <= training else "test"].append(name)
    for part, listed in names.items():
        write(folder / f"trials_to_{part}.txt", "".join(f"{n}.aedat\n" for n in listed))
    return folder


# Own recordings


def write_recordings(
    root: Path,
    suffix: str = "aedat4",
    labels: str = "chair cup",
    each: int = 5,
    images: bool = False,
    seed: int = 0,
) -> Path:
    """Sixty events in 600 ms on a sensor of 40 by 60, which the file tells."""
    encoder = {"aedat4": aedat4, "raw": evt3}[suffix]
    for k, label in enumerate(labels.split()):
        for i in range(1, each + 1):
            places = np.random.default_rng(seed + 10 * k + i).integers(0, 40, (60, 2)).tolist()
            events = [(10_000 * n, x, y, n % 2) for n, (x, y) in enumerate(places)]
            path = write(root / label / f"walk_{i:02d}.{suffix}", encoder(events, (40, 60)))
            if images:
                picture(path.with_suffix(".png"), 30, 20, seed=seed + 10 * k + i)
    return root


def write_labelled(root: Path, recordings: int = 6) -> Path:
    """Recordings below `root`, as above, that are of a chair, then of nothing, then of a cup."""
    write_recordings(root / "all", labels="day", each=recordings)
    lines = ["recording,start,end,class"]
    for i in range(1, recordings + 1):
        name = f"all/day/walk_{i:02d}.aedat4"
        lines += [f"{name},0.1s,200ms,chair", f"{name},400000us,,cup"]
    write(root / "labels.csv", "\n".join(lines))
    return root


# Folders of images


def write_images(folder: Path, labels: str = "chair cup", each: int = 5, seed: int = 0) -> Path:
    for k, label in enumerate(labels.split()):
        for i in range(1, each + 1):
            picture(folder / label / f"image_{i:04d}.jpg", 20, 16, seed=seed + 10 * k + i)
    return folder


def read_file(path: Path, class_path: str, init_args: dict[str, Any]) -> Tensor:
    """Frames (T,C,H,W) of one whole file."""
    ((_, frames),) = read_parts(path, class_path, init_args)
    return frames
