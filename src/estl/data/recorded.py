"""Files turned into frames as a data set would do it: whole, or by windows of time.

For `estl predict`: what a checkpoint says about its data set decides T, the grid and the slicing;
the file's content decides its format. A set's own files give exactly the frames of its items.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from estl.data.catalog import CATALOG, IMAGE_SUFFIXES
from estl.data.formats.aedat import DVS128
from estl.data.formats.recording import read_recording
from estl.data.frames import Slicing, to_frames
from estl.data.items import Item
from estl.data.reading import NMNIST_SENSOR, extent, read_photograph
from estl.data.windows import Size, Span, sensor_shape, windows

_SENSORS: dict[str, Size | None] = {
    "NMNISTPairs": NMNIST_SENSOR,
    "NCaltech101Pairs": None,
    "CIFAR10DVS": DVS128,
    "DVSGesture": DVS128,
    "Recordings": None,
    "Digits": None,
    "ImageFolder": None,
}
"""Sets whose students see events, and the (H,W) of the sensor that all their recordings are of."""


@dataclass(frozen=True)
class View:
    """How a data set looks at the events of a recording.

    Args:
        T: number of frames.
        size: (H,W) of the frames.
        by: frames of equal event count or of equal time.
        sensor: (H,W) of recordings that do not state it; None if that is not known either.
    """

    T: int
    size: Size
    by: Slicing
    sensor: Size | None

    def frames(self, events: np.ndarray, sensor: Size) -> Float[Tensor, "T 2 H W"]:
        """Event counts, binned from the sensor straight into the grid."""
        return to_frames(events, self.T, self.size, self.by, sensor=sensor)


def view_of(
    what: str | Path,
    class_path: str,
    init_args: Mapping[str, Any],
    sensor: str | Size | None = None,
) -> View:
    """The view of the data set that a student was trained on.

    Args:
        what: the file or source, for the error's text.
        class_path: of the data set.
        init_args: its arguments.
        sensor: (H,W), "720x1280", in place of the set's own.

    Raises:
        ValueError: a set that is not of events, or a user's own.

    >>> view_of("x.bin", "estl.data.NMNISTPairs", {"T": 5, "by": "time"})
    View(T=5, size=(34, 34), by='time', sensor=(34, 34))
    """
    name = class_path.rpartition(".")[2]
    ours = class_path in {row.class_path for row in CATALOG}
    if not ours or name not in _SENSORS or init_args.get("coding") == "direct":
        raise ValueError(f"{what}: a student of {class_path} has no recordings to predict")
    side = init_args.get("size")
    size = NMNIST_SENSOR if side is None else (side, side)
    # Digits and photographs are simulated in steps of equal time.
    by = init_args.get("by", "time")
    given = sensor_shape(sensor) or sensor_shape(init_args.get("sensor")) or _SENSORS[name]
    return View(init_args["T"], size, by, given)


def has_files(class_path: str, init_args: Mapping[str, Any]) -> bool:
    """Whether `read_parts` can read files for a student of a data set.

    >>> has_files("estl.data.Shards", {}), has_files("estl.data.NMNISTPairs", {"T": 5})
    (False, True)
    """
    if class_path not in {row.class_path for row in CATALOG}:
        return True  # a set of one's own: its `read` is asked
    try:
        return class_path.endswith(".ImageFolder") or bool(view_of("", class_path, init_args))
    except ValueError:
        return False


def read_parts(
    path: Path,
    class_path: str,
    init_args: Mapping[str, Any],
    window: int | None = None,
    stride: int | None = None,
    sensor: str | Size | None = None,
) -> Iterator[tuple[Span | None, Tensor]]:
    """Frames (T,C,H,W) of a file or of each of its windows, and when they begin and end.

    The file is a recording of any format that is read. For a student of `ImageFolder` it may be an
    image, whose span is None. A data set that is not of the catalog is imported, and its own
    `read(path, **init_args)` called, for whole files.

    Args:
        path: the file.
        class_path: of the data set that the student was trained on.
        init_args: its arguments.
        window: length in microseconds; the whole file if None.
        stride: time from one window's start to the next one's; a window's length if None.
        sensor: (H,W), "720x1280", of a file that does not state it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken file, a sensor that is not known, or a set without event files.
    """
    name = class_path.rpartition(".")[2]
    if class_path not in {row.class_path for row in CATALOG}:
        module = import_module(class_path.rpartition(".")[0])
        read = getattr(getattr(module, name, None), "read", None)
        if read is None:
            raise ValueError(f"{path}: {class_path} has no function read(path, ...) for files")
        if window is not None:
            raise ValueError(f"{path}: {class_path} reads whole files: leave --window out")
        yield None, read(path, **init_args)
    elif name == "ImageFolder" and path.suffix.lower() in IMAGE_SUFFIXES:
        keys = inspect.signature(read_photograph).parameters
        options = {key: init_args[key] for key in keys if key in init_args}
        yield None, read_photograph(Item(path.parent.name, path.stem, image=path), **options)[0]
    else:
        view = view_of(path, class_path, init_args, sensor)
        yield from _recorded(path, view, name, window, stride or window)


def _recorded(
    path: Path, view: View, name: str, window: int | None, stride: int | None
) -> Iterator[tuple[Span, Tensor]]:
    """Frames of a recording, whole or by windows."""
    events, told = read_recording(path)
    if name == "CIFAR10DVS" and path.suffix.lower() == ".aedat":  # see `read_cifar10dvs`
        events["x"], events["y"] = events["y"], events["x"].copy()
    shape = told or view.sensor or (extent(events) if name == "NCaltech101Pairs" else None)
    if shape is None:
        raise ValueError(
            f"{path}: the file does not tell the sensor's size: give height and width, such as "
            "--sensor 720x1280"
        )
    times = events["t"] - events["t"][0]
    spans = [(0, int(times[-1]) + 1)]
    if window is not None and stride is not None:
        spans = windows(events["t"], window, stride)
    for span in spans:
        part = events[slice(*np.searchsorted(times, span))]
        try:
            yield span, view.frames(part, shape)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
