"""Pictures of a data set: an image beside the event frames that belong to it."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn import functional as F

from estl.data.check import LAYOUTS, evenly
from estl.data.formats.images import SUFFIXES, read_rgb, read_size
from estl.data.formats.recording import read_recording
from estl.data.frames import to_frames
from estl.data.sets.ncaltech101 import extent, seen, sensor_size
from estl.data.sets.nmnist import read_digit
from estl.data.simulator import simulate_events

RECORDINGS = (".bin", ".aedat", ".npz")

_LARGEST = 240  # pixels, the longest side of a simulated sensor
_LEGEND = (("#ff0000", "ON: brighter"), ("#0000ff", "OFF: darker"), ("#000000", "both"))


@dataclass(frozen=True)
class View:
    """One row of a page.

    Args:
        title: where it is from.
        events: the recording.
        size: the sensor's (H,W).
        image: (3,h,w) of the same field of view, or None.
        simulated: whether the events were made from the image.
    """

    title: str
    events: np.ndarray
    size: tuple[int, int]
    image: Tensor | None = None
    simulated: bool = False


def show(path: Path, out: Path, *, steps: int = 6, rows: int = 6) -> int:
    """Draw a file, or several pairs of a folder, as a PNG; returns the number of rows.

    A recording is shown with its image and an image with its recording where they lie in one of the
    layouts of `estl.data.check`; an image that has none is shown with its simulated events.

    Args:
        path: a recording, an image, or a folder that holds any of them.
        out: the PNG to write.
        steps: T, windows of equal time.
        rows: at most this many of a folder, spread evenly.

    Raises:
        FileNotFoundError: nothing to show.
        ValueError: a broken file, or one of another kind.
    """
    if steps < 1 or rows < 1:
        raise ValueError(f"steps={steps}, rows={rows}: both at least 1")
    files = evenly(list_files(path), rows) if path.is_dir() else [path]
    views = [view(file) for file in files]
    draw(views, steps).savefig(out, dpi=110, metadata={"Software": None})
    return len(views)


def list_files(root: Path) -> list[Path]:
    """The recordings below `root`; if there are none, the images.

    Raises:
        FileNotFoundError: neither.
    """
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in (*RECORDINGS, *SUFFIXES))
    recordings = [p for p in files if p.suffix.lower() in RECORDINGS]
    if not files:
        raise FileNotFoundError(f"no recordings ({', '.join(RECORDINGS)}) and no images in {root}")
    return recordings or files


def view(path: Path) -> View:
    """A recording with its image, or an image with its recording or simulated events."""
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder {path}")
    other = partner(path)
    title = "/".join(path.parts[-2:])
    if path.suffix.lower() in SUFFIXES and other is None:
        image = shrink(read_rgb(path))
        H, W = image.shape[-2:]
        return View(title, simulate_events(image, amplitude=5 * W / 240), (H, W), image, True)
    recording, photograph = (other, path) if path.suffix.lower() in SUFFIXES else (path, other)
    assert recording is not None
    events, sensor = read_recording(recording)
    if sensor is None:
        sensor = extent(events)
    if photograph is None:
        return View(title, events, sensor)
    if "MNIST" in photograph.parts:
        return View(title, events, (34, 34), read_digit(photograph))
    whole = read_size(photograph)  # as the photographs of N-Caltech101 were shown
    H, W = (max(pair) for pair in zip(sensor, sensor_size(whole), strict=True))
    return View(title, events, (H, W), read_rgb(photograph, 2 * _LARGEST, seen(whole, (H, W))))


def partner(path: Path) -> Path | None:
    """The image of a recording, or the recording of an image; None if there is none.

    >>> partner(Path("no/Caltech101/chair/image_0001.bin"))
    """
    parts = path.with_suffix("").parts
    for pair in LAYOUTS:
        for here, there in (pair, pair[::-1]):
            folder = Path(here).parts
            at = len(parts) - 2 - len(folder)
            if at < 0 or parts[at:-2] != folder:
                continue
            stem = Path(*parts[:at], there, *parts[-2:])
            for suffix in chain(RECORDINGS, SUFFIXES):
                found = stem.with_name(stem.name + suffix)
                if found.is_file():
                    return found
    return None


def shrink(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
    """The image with its longest side at most 240 pixels, as on the sensor of N-Caltech101.

    >>> shrink(torch.rand(3, 300, 480)).shape
    torch.Size([3, 150, 240])
    """
    h, w = image.shape[-2:]
    share = min(1.0, _LARGEST / max(h, w))
    size = [max(1, round(h * share)), max(1, round(w * share))]
    if size == [h, w]:
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def colored(counts: Float[Tensor, "2 H W"], most: float) -> Float[Tensor, "H W 3"]:
    """Event counts as RGB on white: ON red, OFF blue, both black; full color from `most` on.

    >>> counts = torch.tensor([0.0, 4.0, 0.0, 4.0, 0.0, 0.0]).view(2, 1, 3)
    >>> colored(counts, most=4.0)[0]  # ON, OFF, nothing
    tensor([[1., 0., 0.],
            [0., 0., 1.],
            [1., 1., 1.]])
    """
    off, on = (counts / most).clamp(0, 1).sqrt()
    return torch.stack((1 - off, 1 - torch.maximum(on, off), 1 - on), dim=-1)


def draw(views: list[View], steps: int) -> Figure:
    """A page: one row a view, the image at the left, the frames in the order of time."""
    images = any(v.image is not None for v in views)
    columns = steps + images
    side = 1.7
    heights = [min(2.0, max(0.5, v.size[0] / v.size[1])) for v in views]
    figure = Figure(
        figsize=(side * columns, side * sum(heights) + 0.45 * len(views) + 0.5),
        layout="constrained",
    )
    grid = figure.subplots(len(views), columns, squeeze=False, height_ratios=heights)
    for axes, v in zip(grid, views, strict=True):
        H, W = v.size
        for ax in axes:
            ax.set(xticks=[], yticks=[], xlim=(0, W), ylim=(H, 0), aspect="equal")
        ms = (int(v.events["t"][-1]) - int(v.events["t"][0])) / 1000
        what = "simulated " if v.simulated else ""
        size = f"{len(v.events):,} {what}events\n{W} by {H} pixels, {ms:.0f} ms"
        if images:
            if v.image is None:
                axes[0].text(W / 2, H / 2, "no image", ha="center", va="center", color="#777777")
                axes[0].spines[:].set_visible(False)
            else:
                axes[0].imshow(v.image.movedim(0, -1), extent=(0, W, H, 0), aspect="equal")
            axes[0].set_title(_short(v.title), fontsize=7, loc="left")
        axes[0].set_xlabel(size, fontsize=7)
        frames = to_frames(v.events, steps, v.size, by="time")
        busy = frames[frames > 0]
        most = max(1.0, float(busy.quantile(0.98))) if len(busy) < 1 << 24 else float(busy.max())
        for t, ax in enumerate(axes[images:]):
            ax.imshow(colored(frames[t], most), extent=(0, W, H, 0), interpolation="nearest")
            window = f"{ms * t / steps:.0f}-{ms * (t + 1) / steps:.0f} ms"
            ax.set_title(f"t = {t + 1}   {window}", fontsize=7)
        if not images:
            axes[0].set_ylabel(_short(v.title), fontsize=7)
    figure.legend(
        handles=[Patch(color=color, label=label) for color, label in _LEGEND],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return figure


def _short(title: str, most: int = 26) -> str:
    return title if len(title) <= most else f"…{title[1 - most :]}"
