"""The files of each set as frames and images: one function a set, used by fit and test.

Such a function takes an item and the set's options and returns (frames, image or None); with
`image=False` no image is read. Lightning takes seconds to import and is not imported here.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from estl.data.formats.aedat import DVS128, Between, read_aedat
from estl.data.formats.atis import read_events
from estl.data.formats.images import Box, read_rgb, read_size
from estl.data.formats.recording import read_recording
from estl.data.frames import Slicing, to_frames
from estl.data.items import Item
from estl.data.labels import span_of
from estl.data.simulator import simulate
from estl.data.windows import sensor_shape
from estl.types import direct_code

NMNIST_SENSOR = (34, 34)

# N-Caltech101: the screen's part that the photograph was fitted into, and the recording's window.
SCREEN = (180, 240)
MARGIN = 7
OFFSET = (4.5, 4.0)

GESTURES = (
    *("hand_clapping", "right_hand_wave", "left_hand_wave", "right_arm_clockwise"),
    *("right_arm_counter_clockwise", "left_arm_clockwise", "left_arm_counter_clockwise"),
    *("arm_roll", "air_drums", "air_guitar", "other_gestures"),
)
"""Classes of DVS128 Gesture by the set's own numbers, which start at 1."""

Coding = Literal["saccades", "direct"]

Frames = Float[Tensor, "T 2 h w"]
Image = Float[Tensor, "3 H W"]


def read_nmnist(item: Item, T: int, by: Slicing, image: bool = True) -> tuple[Frames, Image | None]:
    """Event counts of a recording of N-MNIST, and its digit on the sensor's grid."""
    assert item.events is not None
    frames = to_frames(read_events(item.events, NMNIST_SENSOR), T, NMNIST_SENSOR, by)
    return frames, read_digit(item.image) if image and item.image is not None else None


def read_digit(path: Path) -> Float[Tensor, "3 34 34"]:
    """An MNIST image in the middle of black pixels, where the sensor sees it."""
    digit = read_rgb(path)
    H, W = digit.shape[-2:]
    if (H, W) != (28, 28):
        raise ValueError(f"{path}: {W} by {H} pixels, but MNIST images are 28 by 28: replace it")
    return F.pad(digit, [(34 - 28) // 2] * 4)


def read_ncaltech101(
    item: Item, T: int, size: int, rgb: int, by: Slicing, image: bool = True
) -> tuple[Frames, Image | None]:
    """Event counts of a recording on a grid of `size`, and what it shows of the photograph."""
    assert item.events is not None
    events = read_events(item.events)
    H, W = extent(events)
    if item.image is None:
        return to_frames(events, T, (size, size), by, sensor=(H, W)), None
    photograph = read_size(item.image)
    rows, columns = sensor_size(photograph)
    sensor = (max(H, rows), max(W, columns))  # no event is lost, should a recording be larger
    frames = to_frames(events, T, (size, size), by, sensor=sensor)
    return frames, read_rgb(item.image, rgb, seen(photograph, sensor)) if image else None


def screen_size(photograph: tuple[int, int]) -> tuple[int, int]:
    """(H,W) at which a photograph was shown: fitted into `SCREEN`, rounded up to even numbers.

    >>> screen_size((300, 223)), screen_size((193, 300))
    ((180, 134), (156, 240))
    """
    h, w = photograph
    H, W = SCREEN
    if W * h <= H * w:
        return 2 * -(-h * W // (2 * w)), W
    return H, 2 * -(-w * H // (2 * h))


def sensor_size(photograph: tuple[int, int]) -> tuple[int, int]:
    """(H,W) of the recording of a photograph of (h,w): what the screen shows less `MARGIN`.

    >>> sensor_size((300, 223)), sensor_size((193, 300))
    ((173, 127), (149, 233))
    """
    H, W = screen_size(photograph)
    return H - MARGIN, W - MARGIN


def seen(photograph: tuple[int, int], sensor: tuple[int, int]) -> Box:
    """The part of a photograph of (h,w) that a recording of (H,W) shows."""
    H, W = screen_size(photograph)
    top, left = OFFSET
    lower, right = min((top + sensor[0]) / H, 1.0), min((left + sensor[1]) / W, 1.0)
    return left / W, top / H, right, lower


def extent(events: np.ndarray) -> tuple[int, int]:
    """(H,W) of the smallest sensor that holds all events."""
    return int(events["y"].max()) + 1, int(events["x"].max()) + 1


def read_cifar10dvs(item: Item, T: int, size: int, by: Slicing) -> tuple[Frames, None]:
    """Event counts of a recording of CIFAR10-DVS, binned from 128×128 into `size` × `size`.

    Rows and columns of an `.aedat` file, as jAER shows it, are swapped: SpikingJelly's conversion
    to `.npz`, on which most published figures rest, lays them out so, and a recording gives the
    same frames from either file.
    """
    assert item.events is not None
    events, _ = read_recording(item.events)
    if item.events.suffix.lower() == ".aedat":
        events["x"], events["y"] = events["y"], events["x"].copy()
    try:
        return to_frames(events, T, (size, size), by, sensor=DVS128), None
    except ValueError as error:
        raise ValueError(f"{item.events}: {error}") from None


def read_gesture(item: Item, T: int, size: int, by: Slicing) -> tuple[Frames, None]:
    """Event counts of one gesture, whose packets alone are decoded, or of a whole recording."""
    assert item.events is not None
    events, _ = read_aedat(item.events, DVS128, interval(item) if "/" in item.number else None)
    return to_frames(events, T, (size, size), by, sensor=DVS128), None


def interval(item: Item) -> Between:
    """When an item's gesture was made; its number, "user01_led/3", counts the labels from 0."""
    assert item.events is not None
    return read_labels(item.events)[int(item.number.rpartition("/")[2])][1]


def read_labels(recording: Path) -> list[tuple[str, Between]]:
    """Gestures of `user01_led.aedat` and when they were made, from `user01_led_labels.csv`.

    Below the head "class,startTime_usec,endTime_usec" each line holds one gesture's number, 1 to
    11, and the interval, its end excluded, by the recording's clock. For any other line, the
    ValueError names the file and the number.
    """
    path = recording.with_name(f"{recording.stem}_labels.csv")
    if not path.is_file():
        raise FileNotFoundError(f"no labels {path}")
    head, *lines = path.read_text(errors="replace").splitlines() or [""]
    if head.replace(" ", "") != "class,startTime_usec,endTime_usec":
        raise ValueError(f"{path}: line 1 is {head[:60]!r}, not class,startTime_usec,endTime_usec")
    found = []
    for i, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        try:
            gesture, start, stop = (int(field) for field in line.split(","))
        except ValueError:
            raise ValueError(f"{path}: line {i} is {line[:60]!r}, not three numbers") from None
        if not (1 <= gesture <= len(GESTURES) and 0 <= start < stop < 1 << 62):
            what = f"a class of 1 to {len(GESTURES)}, a start and a later end"
            raise ValueError(f"{path}: line {i}, {line[:60]!r}, is not {what}")
        found.append((GESTURES[gesture - 1], (start, stop)))
    return found


def read_own(
    item: Item,
    T: int,
    size: int,
    rgb: int,
    by: Slicing,
    sensor: str | tuple[int, int] | list[int] | None = None,
    cut: bool = False,
    labelled: bool = False,
    image: bool = True,
) -> tuple[Frames, Image | None]:
    """Event counts of a recording of any format, or of a window of it, and its image.

    `sensor` is the (H,W) of a file that does not tell it. With `cut` the item's number ends with
    its time since the recording's first event, "walk/0-300000"; `labelled` items are stretches
    (`estl.data.labels`), or windows of them.
    """
    path = item.events
    assert path is not None
    events, told = read_kept(path)
    if labelled:
        events = events_of(item, events)
    elif cut:
        between = [int(time) for time in item.number.rpartition("/")[2].split("-")]
        events = events[slice(*np.searchsorted(events["t"] - events["t"][0], between))]
    if (shape := told or sensor_shape(sensor)) is None:
        raise ValueError(
            f"{path}: the file does not tell the sensor's size: give height and width, such as "
            "--sensor 720x1280"
        )
    try:
        frames = to_frames(events, T, (size, size), by, sensor=shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return frames, read_rgb(item.image, rgb) if image and item.image is not None else None


def events_of(item: Item, events: np.ndarray) -> np.ndarray:
    """Those events of a recording that are in a labelled stretch."""
    times = events["t"] - events["t"][0]
    return events[slice(*np.searchsorted(times, span_of(item, events["t"])))]


def read_kept(path: Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """`read_recording`, which keeps the last file: do not change what it returns."""
    return _kept(path, _changed(path))


@lru_cache(maxsize=1)
def _kept(path: Path, changed: int) -> tuple[np.ndarray, tuple[int, int] | None]:
    """A recording, kept for its next window or its measures."""
    return read_recording(path)


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def measure(path: Path) -> tuple[int, int]:
    """How many microseconds a recording takes, and its number of events."""
    events, _ = read_kept(path)
    return int(events["t"][-1] - events["t"][0]), len(events)


def read_photograph(
    item: Item,
    T: int,
    size: int,
    rgb: int,
    amplitude: float,
    threshold: float,
    coding: Coding = "saccades",
    image: bool = True,
) -> tuple[Frames | Float[Tensor, "T 3 h w"], Image | None]:
    """Simulated event counts of a photograph, in cells of 2x2 pixels, and the photograph.

    With direct coding it is the photograph itself at each time step, and no image beside it.
    """
    assert item.image is not None
    if coding == "direct":
        return direct_code(read_rgb(item.image, size)[None], T)[0], None
    sensor = 2 * size
    photograph = read_rgb(item.image, sensor)[None]
    fine = simulate(photograph, T, threshold=threshold, amplitude=amplitude * sensor)[0]
    frames = (4 * F.avg_pool2d(fine, 2)).round()
    return frames, read_rgb(item.image, rgb) if image else None
