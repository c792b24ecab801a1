"""Draw the pictures of the documents: python docs/make_pictures.py [runs/bench/bench.json].

From the embedded digits, and with a file, from what `estl bench` has measured (a few minutes more).
"""

import json
import sys
from pathlib import Path
from statistics import median

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from estl.commands.flags import find_recipe
from estl.data import Digits
from estl.data.simulator import saccade_path
from estl.experiments.bench.fake import FakeStep
from estl.training.recipe import parse

FOLDER = Path(__file__).parent / "pictures"
T, SIZE, CLASSES = 6, 32, 10
INK, GRAY, PALE = "#222222", "#777777", "#f1f3f5"
ON, OFF = np.array(mpl.colors.to_rgb("#e8590c")), np.array(mpl.colors.to_rgb("#1c6fd6"))
SACCADES = ("#2b8a3e", "#9c36b5", "#846000")
SIDE, FRAMES = 2.1, (5.5, 1.0)  # of the two images; left edge of the first frame, side of a frame


def event_colors(frame: np.ndarray, most: float) -> np.ndarray:
    """Counts (2,H,W) as an RGB picture (H,W,3) on white: OFF and ON take their color's share."""
    off, on = np.clip(frame / most, 0, 1)[..., None] ** 0.6
    return np.clip(1 - on * (1 - ON) - off * (1 - OFF), 0, 1)


def show(ax: Axes, picture: np.ndarray, x: float, y: float, side: float) -> None:
    """A framed picture with its lower left corner at (x,y)."""
    ax.imshow(picture, extent=(x, x + side, y, y + side), cmap="gray", vmin=0, vmax=1)
    ax.add_patch(Rectangle((x, y), side, side, fill=False, ec=GRAY, lw=0.8))


def arrow(ax: Axes, *path: tuple[float, float], color: str = INK, width: float = 1.6) -> None:
    """A line through the points of `path` with a head at its end."""
    if path[:-2]:
        ax.plot(*zip(*path[:-1], strict=True), color=color, lw=width, solid_capstyle="butt")
    options = {"arrowstyle": "-|>", "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(path[-2], path[-1], color=color, lw=width, **options))


def box(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    """A rounded box."""
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, fc=PALE, ec=INK, lw=1.2, zorder=1)
    )


def draw_recording(ax: Axes, image: np.ndarray, events: np.ndarray) -> None:
    """The upper row: image, saccades, event frames."""
    y = 3.95
    show(ax, image, 0.3, y, SIDE)
    ax.text(0.3 + SIDE / 2, y + SIDE + 0.16, "image", ha="center", weight="bold")
    arrow(ax, (2.47, y + SIDE / 2), (2.8, y + SIDE / 2))

    x = 2.87
    show(ax, 1 - 0.25 * image, x, y, SIDE)
    ax.text(x + SIDE / 2, y + SIDE + 0.16, "three saccades", ha="center", weight="bold")
    corners, _ = saccade_path(T)
    corners = 0.26 * corners * (1, -1) + (x + SIDE / 2, y + SIDE / 2)  # larger than it is
    for i, color in enumerate(SACCADES):
        start, end = corners[i], corners[(i + 1) % 3]
        arrow(ax, tuple(start), tuple(end), color=color, width=2.4)
        middle, center = (start + end) / 2, corners.mean(0)
        outside = middle + 0.24 * (middle - center) / np.linalg.norm(middle - center)
        ax.text(*outside, str(i + 1), color=color, weight="bold", ha="center", va="center")
    arrow(ax, (5.04, y + SIDE / 2), (5.37, y + SIDE / 2))

    left, side = FRAMES
    most = np.quantile(events[events > 0], 0.9)
    y += (SIDE - side) / 2
    for t in range(T):
        show(ax, event_colors(events[t], most), left + 1.06 * t, y, side)
        ax.text(left + 1.06 * t + side / 2, y - 0.24, f"t = {t + 1}", ha="center")
    for i, color in enumerate(SACCADES):
        ends = left + 2.12 * i, left + 2.12 * i + 1.06 + side
        ax.plot(ends, [y + side + 0.12] * 2, color=color, lw=3, solid_capstyle="butt")
        ax.text(sum(ends) / 2, y + side + 0.22, f"{i + 1}", color=color, ha="center", weight="bold")
    middle = left + 0.5 * (5 * 1.06 + side)
    ax.text(middle, 3.95 + SIDE + 0.16, "event frames (T, 2, H, W)", ha="center", weight="bold")
    ax.text(middle - 0.15, 3.95 + 0.03, "ON: brighter", ha="right", color=ON)
    ax.text(middle + 0.15, 3.95 + 0.03, "OFF: darker", ha="left", color=OFF)


def draw_training(ax: Axes, label: int) -> None:
    """The lower row: student, features and logits, supervision."""
    y, height, middle = 0.65, 2.35, 1.5
    top = y + height
    end = FRAMES[0] + 6.38
    arrow(ax, (end, 5.0), (12.1, 5.0), (12.1, 3.48), (1.55, 3.48), (1.55, top + 0.03))

    box(ax, 0.3, y, 2.5, height)
    ax.text(1.55, top - 0.42, "student", ha="center", weight="bold")
    what = "a spiking network:\nconvolutions or tokens,\nLIF over time, a head"
    ax.text(1.55, middle + 0.05, what, ha="center", va="center", linespacing=1.4)

    arrow(ax, (2.85, top - 0.29), (6.4, top - 0.29))
    ax.text(4.6, top - 0.2, "features (T, D, H, W)", ha="center", weight="bold")
    arrow(ax, (2.85, middle), (3.25, middle))
    x, cell = 3.4, 0.148
    bottom = middle - CLASSES * cell / 2
    ax.text(4.6, bottom + CLASSES * cell + 0.1, "logits (T, K)", ha="center", weight="bold")
    for t in range(T):
        for k in range(CLASSES):
            place = (x + 0.42 * t, bottom + k * cell)
            ax.add_patch(Rectangle(place, 0.3, cell, fc="white", ec=GRAY, lw=0.7))
        ax.text(x + 0.42 * t + 0.15, bottom - 0.27, f"$z_{t + 1}$", ha="center")
    arrow(ax, (6.0, middle), (6.4, middle))

    box(ax, 6.5, y, 4.45, height)
    ax.text(8.72, top - 0.42, "supervision", ha="center", weight="bold")
    for i, (name, what) in enumerate(
        (
            ("plain", "the mean over t"),
            ("TET", "every step"),
            ("TSE", "every step; what earlier steps\nrecognised is erased"),
            ("guided", "the mean, and a frozen CLIP"),
        )
    ):
        line = top - 0.7 - 0.32 * i - (0.24 if i == 3 else 0)
        ax.text(6.72, line, name, style="italic", va="top")
        ax.text(7.62, line, what, va="top")
    arrow(ax, (11.0, middle), (11.4, middle))
    ax.text(11.47, middle, "Loss", va="center", weight="bold")

    ax.plot([0.3, 0.12, 0.12, 8.72, 8.72], [5.0, 5.0, 0.2, 0.2, y - 0.14], color=GRAY, ls="--")
    arrow(ax, (8.72, y - 0.14), (8.72, y - 0.02), color=GRAY, width=1.2)
    ax.text(4.6, -0.06, f"image and label ({label}), in training only", color=GRAY, ha="center")


def data_path() -> None:
    """Image to events to student to supervision, with one digit of the embedded set."""
    events, label, image = Digits(T=T, size=SIZE).dataset("train")[460]
    assert image is not None
    figure = plt.figure(figsize=(12, 6.54))
    ax = figure.add_axes((0, 0, 1, 1))
    draw_recording(ax, image[0].numpy(), events.numpy())
    draw_training(ax, label)
    ax.set(xlim=(0, 12.3), ylim=(-0.15, 6.55), aspect="equal")
    ax.axis("off")
    figure.savefig(FOLDER / "data_path.png", dpi=150, metadata={"Software": None})
    plt.close(figure)


def peak(T: int, recompute: bool) -> float:
    """MiB of the tensors of a ResNet-19's training step on 32x32, batch of 4, computed."""
    words = [f"--data.init_args.T={T}", f"--learner.recompute={recompute}"]
    step = FakeStep(*parse(["--config", str(find_recipe("cifar10_plain")), *words]))
    return step.peak(4) / 2**20


def steps(bench: Path) -> None:
    """Time and memory of a training step by the number of steps T, kept and recomputed."""
    found = json.loads(bench.read_text())["found"]["steps"]
    seconds = {name: median(turns) for name, turns in found["seconds"].items()}
    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    T = [1, 2, 4, 8, 16, 32]
    for label, color in zip(("kept", "recomputed"), SACCADES[:2], strict=True):
        way = "" if label == "kept" else ", recomputed"
        times.plot(T, [1e3 * seconds[f"T = {t}{way}"] for t in T], "o-", color=color, label=label)
        process = [found["mebibytes"][f"T = {t}{way}"] for t in T]
        memory.plot(T, process, "o-", color=color, label=f"{label}, process")
        tensors = [peak(t, label == "recomputed") for t in T]
        memory.plot(T, tensors, "o--", color=color, mfc="white", label=f"{label}, tensors")
    for ax, unit in ((times, "ms"), (memory, "MiB")):
        ax.set(xlabel="T", ylabel=unit, xlim=(0, None), ylim=(0, None), xticks=[1, 8, 16, 32])
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=10)
    figure.savefig(FOLDER / "steps.png", dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 12.5, "text.color": INK, "lines.linewidth": 1.2})
    FOLDER.mkdir(exist_ok=True)
    data_path()
    for bench in sys.argv[1:]:
        steps(Path(bench))
