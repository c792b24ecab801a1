"""Pictures of a data set: an image beside the event frames that belong to it."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from estl.data.catalog import IMAGE_SUFFIXES, PAIRS, RECORDING_SUFFIXES, recognize
from estl.data.folders import naming
from estl.data.formats.images import read_rgb, read_size
from estl.data.formats.recording import read_recording
from estl.data.frames import to_frames
from estl.data.items import Item, evenly
from estl.data.reading import (
    NMNIST_SENSOR,
    events_of,
    extent,
    read_digit,
    read_kept,
    seen,
    sensor_size,
)
from estl.data.simulator import simulate_events

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST = 240  # pixels, the longest side of a simulated sensor
_LEGEND = (("#ff0000", "ON: brighter"), ("#0000ff", "OFF: darker"), ("#000000", "both"))
_CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Noto Sans CJK JP", "Source Han Sans SC"),
    *("Source Han Sans CN", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei", "SimHei"),
)
"""Fonts that have Chinese characters, on Linux, macOS and Windows."""


@contextmanager
def any_letters() -> Iterator[None]:
    """Let figures that are drawn and saved within show Chinese characters, if a font here has them.

    If none does, boxes stand for them, without matplotlib's warning for each.
    """
    import matplotlib as mpl

    families = [*mpl.rcParams["font.family"], *chinese_fonts()]
    log = logging.getLogger("matplotlib.font_manager")  # which tells of a font's other weight
    level = log.level
    with mpl.rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def chinese_fonts() -> list[str]:
    """The families of `_CHINESE` that are installed."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    if not {*_CHINESE} & {*fontManager.get_font_names()}:  # a list that may be older than a font
        for path in {*findSystemFonts()} - {font.fname for font in fontManager.ttflist}:
            with suppress(Exception):  # whatever FreeType does not read
                fontManager.addfont(path)
    return [name for name in _CHINESE if name in fontManager.get_font_names()]


@dataclass(frozen=True)
class View:
    """One row of a page: a recording by a sensor of (H,W), and its image (3,h,w) or None.

    Both share one field of view; `simulated` events were made from the image.
    """

    title: str
    events: np.ndarray
    size: tuple[int, int]
    image: Tensor | None = None
    simulated: bool = False


@any_letters()
def show(path: Path, out: Path, *, steps: int = 6, rows: int = 6) -> int:
    """Draw a file, or up to `rows` of a folder, as the PNG `out`; returns the number of rows.

    `path` is a recording, an image, a set's folder, or a folder that holds recordings or images. A
    recording is shown with its image and an image with its recording where the catalog of data sets
    pairs them; an image that has none is shown with its simulated events. The T = `steps` frames
    are windows of equal time.

    Raises:
        FileNotFoundError: nothing to show.
        ValueError: a broken file, or one of another kind.
    """
    if steps < 1 or rows < 1:
        raise ValueError(f"steps={steps}, rows={rows}: both at least 1")
    pictures = views(path, rows) if path.is_dir() else [view(path)]
    with naming(out):
        draw(pictures, steps).savefig(out, dpi=110, metadata={"Software": None})
    return len(pictures)


def views(root: Path, rows: int) -> list[View]:
    """At most `rows` of a folder: items of the set that lies there, or else any files below."""
    if (row := recognize(root)) is None:
        return [view(path) for path in evenly(list_files(root), rows)]
    from estl.data.module import with_items

    make = row.import_class()
    # `view` finds the partner of a file; images that are in no files are asked for.
    takes = "images" in inspect.signature(make).parameters
    options = {"images": all(f.images is None for f in row.files.values())} if takes else {}
    data = with_items(make(root, **row.init_args, **options))
    items = sorted(item for split in data.splits.values() for item in split)
    if getattr(data, "table", None):
        return [stretch(item) for item in evenly(items, rows)]
    if files := list(dict.fromkeys(path for i in items if (path := i.events or i.image))):
        return [view(path) for path in evenly(files, rows)]
    images = ((str(item), data.load(item)[1]) for item in evenly(items, rows))
    return [simulated(title, image) for title, image in images if image is not None]


def stretch(item: Item) -> View:
    """The part of a recording that is of one class."""
    assert item.events is not None
    events, sensor = read_kept(item.events)
    return View(str(item), events_of(item, events), sensor or extent(events))


def list_files(root: Path) -> list[Path]:
    """The recordings below `root`; if there are none, the images; or else FileNotFoundError."""
    paths = sorted(root.rglob("*"))
    for suffixes in (RECORDING_SUFFIXES, IMAGE_SUFFIXES):
        if files := [path for path in paths if path.suffix.lower() in suffixes]:
            return files
    raise FileNotFoundError(
        f"no recordings ({', '.join(RECORDING_SUFFIXES)}) and no images in {root}"
    )


def view(path: Path) -> View:
    """A recording with its image, or an image with its recording or simulated events."""
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder {path}: give a recording, an image or a set")
    title = "/".join(path.parts[-2:])
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    if (found := partner(path)) is None:
        if is_image:
            return simulated(title, read_rgb(path))
        events, sensor = read_recording(path)
        return View(title, events, sensor or extent(events))
    name, other = found
    recording, photograph = (other, path) if is_image else (path, other)
    events, sensor = read_recording(recording)
    if name == "recordings":
        return View(title, events, sensor or extent(events), read_rgb(photograph))
    if name == "nmnist":
        return View(title, events, NMNIST_SENSOR, read_digit(photograph))
    whole = read_size(photograph)  # as the photographs of N-Caltech101 were shown
    H, W = (max(pair) for pair in zip(extent(events), sensor_size(whole), strict=True))
    return View(title, events, (H, W), read_rgb(photograph, 2 * _LARGEST, seen(whole, (H, W))))


def simulated(title: str, image: Float[Tensor, "3 h w"]) -> View:
    """An image with its simulated events; its longest side is at most that of N-Caltech101."""
    h, w = image.shape[-2:]
    share = min(1.0, _LARGEST / max(h, w))
    H, W = max(1, round(h * share)), max(1, round(w * share))
    if (h, w) != (H, W):
        small = F.interpolate(image[None], (H, W), mode="bilinear", antialias=True)
        image = small[0].clamp(0, 1)
    events = simulate_events(image, amplitude=5 * W / _LARGEST)
    return View(title, events, (H, W), image, simulated=True)


def partner(path: Path) -> tuple[str, Path] | None:
    """The set of a recording or an image, by name, and the image or recording that it goes with."""
    for name, recordings, images in PAIRS:
        for here, there in ((recordings, images), (images, recordings)):
            for root, place in product(here.roots(path), there.places):
                for twin in (root / place / path.parent.name).glob(f"{escape(path.stem)}.*"):
                    if any(twin.match(pattern) for pattern in there.patterns):
                        return name, twin
    return None


def event_picture(
    counts: Float[Tensor, "*B C H W"], most: float | None = None
) -> Float[Tensor, "*B 3 H W"]:
    """Event counts (C = 2) as RGB on white: ON red, OFF blue, both black.

    Color is full from `most` events on, by default the most at one place of the picture.

    Direct-coded events are pictures x themselves (C = 3, or 1 for gray). With l = min(0, min x) and
    h = max(1, max x) of all that are given, a page's, they become (x - l) / (h - l): the same where
    x is in [0,1]; a standardized x is as bright as it was, its colors shifted a little.

    >>> counts = torch.tensor([0.0, 4.0, 0.0, 4.0, 0.0, 0.0]).view(2, 1, 3)
    >>> event_picture(counts, most=4.0)[:, 0].T  # ON, OFF, nothing
    tensor([[1., 0., 0.],
            [0., 0., 1.],
            [1., 1., 1.]])
    """
    if counts.shape[-3] != 2:
        low, high = counts.min().clamp(max=0.0), counts.max().clamp(min=1.0)
        return ((counts - low) / (high - low)).expand(*counts.shape[:-3], 3, *counts.shape[-2:])
    full = counts.amax((-3, -2, -1), keepdim=True).clamp(min=1.0) if most is None else most
    off, on = (counts / full).clamp(0, 1).sqrt().unbind(-3)
    return torch.stack((1 - off, 1 - torch.maximum(on, off), 1 - on), dim=-3)


def draw(views: list[View], steps: int) -> "Figure":
    """A page: one row a view, the image at the left, the frames in the order of time."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    images = any(v.image is not None for v in views)
    columns, side = steps + images, 1.7
    heights = [min(2.0, max(0.5, v.size[0] / v.size[1])) for v in views]
    inches = side * columns, side * sum(heights) + 0.45 * len(views) + 0.5
    figure = Figure(figsize=inches, layout="constrained")
    grid = figure.subplots(len(views), columns, squeeze=False, height_ratios=heights)
    for axes, v in zip(grid, views, strict=True):
        H, W = v.size
        for ax in axes:
            ax.set(xticks=[], yticks=[], xlim=(0, W), ylim=(H, 0), aspect="equal")
        ms = int(np.ptp(v.events["t"])) / 1000 if len(v.events) else 0.0  # of a plain image none
        what = "simulated events" if v.simulated else "events"
        size = f"{len(v.events):,} {what}\n{W} by {H} pixels, {ms:.0f} ms"
        axes[0].set_xlabel(size, fontsize=7)
        title = v.title if len(v.title) <= 26 else f"…{v.title[-25:]}"
        if not images:
            axes[0].set_ylabel(title, fontsize=7)
        else:
            axes[0].set_title(title, fontsize=7, loc="left")
        if v.image is not None:
            axes[0].imshow(v.image.movedim(0, -1).numpy(), extent=(0, W, H, 0), aspect="equal")
        elif images:
            axes[0].text(W / 2, H / 2, "no image", ha="center", va="center", color="#777777")
            axes[0].spines[:].set_visible(False)
        frames = to_frames(v.events, steps, v.size, by="time")
        counts = frames[frames > 0].numpy()
        most = max(1.0, float(np.quantile(counts, 0.98))) if len(counts) else 1.0
        for t, ax in enumerate(axes[images:]):
            picture = event_picture(frames[t], most).movedim(0, -1)
            ax.imshow(picture.numpy(), extent=(0, W, H, 0), interpolation="nearest")
            window = f"{ms * t / steps:.0f}-{ms * (t + 1) / steps:.0f} ms"
            ax.set_title(f"t = {t + 1}   {window}", fontsize=7)
    handles = [Patch(color=color, label=label) for color, label in _LEGEND]
    how: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(handles=handles, fontsize=8, **how)
    return figure
