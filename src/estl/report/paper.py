"""The figures of a report for a paper: PNG and SVG, one and two columns wide, without titles."""

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from estl.data.show import any_letters
from estl.report.parts import Figure, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

WIDTHS = {"column": 3.3, "page": 6.9}
"""In inches."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.grid": True,
    "grid.color": "#E3E6EA",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",  # letters as outlines: no font is needed to show them
    "svg.hashsalt": "estl",  # the same figure gives the same file
}

DASHES = {"solid": "-", "dash": "--", "dot": ":"}


@any_letters()
def write(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Draw every figure of a report into `folder`, as NAME-column.png, NAME-page.svg and so on."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in (part for s in sections for part in s.parts if isinstance(part, Figure)):
        stem = re.sub(r"[^\w+-]+", "-", figure.name)
        for kind, width in WIDTHS.items():
            with mpl.rc_context(STYLE):
                cells = max(1, sum(key.startswith("xaxis") for key in figure.layout))
                height = width * figure.aspect + 0.6 if cells > 1 else 0.45 * min(width, 4.5) + 1.1
                drawing = Drawing(
                    figsize=(width, height), layout=None if cells > 1 else "constrained"
                )
                if cells > 1:
                    _grid(drawing, figure)
                elif figure.data[0]["type"] == "heatmap":
                    _matrix(drawing.subplots(), figure)
                else:
                    _curves(drawing.subplots(), figure)
                for ending in ("png", "svg"):
                    path = folder / f"{stem}-{kind}.{ending}"
                    metadata = {"Date": None} if ending == "svg" else {"Software": None}
                    drawing.savefig(path, dpi=300, metadata=metadata)
                    written.append(path)
    return written


def _text(text: str) -> str:
    """Text that was meant for plotly.js; matplotlib reads mathematics between dollars."""
    return html.unescape(text).replace("$", r"\$").replace("<br>", "\n")


def _label(axes: "Axes", figure: Figure) -> None:
    for way, name in (("x", "xaxis"), ("y", "yaxis")):
        title = figure.texts.get(f"{name}.title.text")
        unit = figure.layout[name].get("ticksuffix", "").strip()
        said = _text(title.en) if title else ""
        axes.set(**{f"{way}label": f"{said} ({unit})" if unit and said else said})


def _curves(axes: "Axes", figure: Figure) -> None:
    """Lines, points with intervals, and bars, on the report's own range."""
    from matplotlib.ticker import MaxNLocator

    for trace in figure.data:
        x, y = trace["x"], np.array(trace["y"], float)
        color = (trace.get("line") or trace["marker"])["color"]
        if trace["type"] == "bar":
            axes.bar(x, y, trace["width"], color=color)
            continue
        style = {
            "color": color,
            "alpha": trace.get("opacity", 1.0),
            "lw": 0.6 if "opacity" in trace else 1.2,
            "ls": DASHES[trace["line"]["dash"]] if "lines" in trace["mode"] else "",
            "marker": "o" if "markers" in trace["mode"] else "",
            "ms": 3,
        }
        bars = trace.get("error_y")
        spread = None if bars is None else np.array([bars["arrayminus"], bars["array"]], float)
        axes.errorbar(x, y, yerr=spread, capsize=2, elinewidth=0.8, **style)
    vertical, across = figure.layout["yaxis"], figure.layout["xaxis"]
    if vertical.get("type") == "log":
        axes.set_yscale("log")
    elif "range" in vertical:
        axes.set_ylim(vertical["range"])
    if "range" in across:
        axes.set_xlim(across["range"])
    if "tickvals" in across:
        _ticks(axes, across["tickvals"], across["ticktext"])
    elif across.get("type") == "category":
        names = list(dict.fromkeys(x for trace in figure.data for x in trace["x"]))
        kept = range(0, len(names), -(-len(names) // 20))
        _ticks(axes, kept, [names[k] for k in kept])
    elif all(isinstance(v, float) and v == round(v) for t in figure.data for v in t["x"]):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(axes, figure)
    if len(figure.keys) > 1:
        first: list[Any] = [axes.containers[key.traces[0]] for key in figure.keys]
        names = [_text(key.label.en) for key in figure.keys]
        columns = 1 if max(map(len, names)) > 24 else 2
        axes.figure.legend(first, names, loc="outside upper left", ncols=columns, frameon=False)


def _ticks(axes: "Axes", places: Sequence[float], names: Sequence[str]) -> None:
    """Names below an axis, upright where they would not fit beside each other."""
    upright = len(names) * max(map(len, names)) > 45
    axes.set_xticks(places, [_text(name) for name in names], rotation=90 if upright else 0)


def _matrix(axes: "Axes", figure: Figure) -> None:
    """A matrix with its color bar."""
    (trace,) = figure.data
    shape = {"vmin": trace["zmin"], "vmax": trace["zmax"], "cmap": "viridis", "aspect": "auto"}
    shown = axes.imshow(np.array(trace["z"], float), **shape)
    for way, names in (("x", trace["x"]), ("y", trace["y"])):
        kept = range(0, len(names), -(-len(names) // 20))
        if way == "x":
            _ticks(axes, kept, [names[k] for k in kept])
        else:
            axes.set_yticks(kept, [_text(names[k]) for k in kept])
    axes.grid(visible=False)
    _label(axes, figure)
    axes.figure.colorbar(shown, ax=axes, label=trace["colorbar"]["ticksuffix"].strip())


def _colors(scale: str | list[list[Any]]) -> "Colormap":
    """Matplotlib's name for one of plotly.js, or what a list of places and colors says."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if isinstance(scale, str):
        return colormaps[scale.lower()]
    colors = [(x, _color(color)) for x, color in scale]
    return LinearSegmentedColormap.from_list("report", colors)


def _color(name: str) -> str | tuple[float, ...]:
    """A color for matplotlib, which does not know `rgba(...)`.

    >>> _color("rgba(255,0,51,0.5)"), _color("#22272E")
    ((1.0, 0.0, 0.2, 0.5), '#22272E')
    """
    if not name.startswith("rgba("):
        return name
    *rgb, alpha = map(float, name.removeprefix("rgba(").removesuffix(")").split(","))
    return (*(x / 255 for x in rgb), alpha)


def _grid(drawing: Any, figure: Figure) -> None:
    """Pictures and maps, where the report has them, and color bars below."""
    axes: dict[str, Any] = {}
    tall = drawing.get_figheight()
    left, high = 0.2 / drawing.get_figwidth(), 1 - 0.3 / tall  # names of rows; titles of two lines
    low = 0.3 / tall if any(trace.get("showscale") for trace in figure.data) else 0.08
    for trace in figure.data:
        name = trace["xaxis"]
        if name not in axes:
            number = name[1:]
            across = figure.layout[f"xaxis{number}"]["domain"]
            down = figure.layout[f"yaxis{number}"]["domain"]
            place = (left + (1 - left) * across[0], low + (high - low) * down[0])
            size = ((1 - left) * (across[1] - across[0]), (high - low) * (down[1] - down[0]))
            axes[name] = drawing.add_axes((*place, *size))
            axes[name].set_axis_off()
        extent = (0, 1, 1, 0)
        if trace["type"] == "image":
            packed = base64.b64decode(trace["source"].partition(",")[2])
            with Image.open(io.BytesIO(packed)) as picture:
                axes[name].imshow(np.asarray(picture), extent=extent)
            continue
        z = np.ma.masked_invalid(np.array(trace["z"], float))
        shape = {"vmin": trace["zmin"], "vmax": trace["zmax"], "alpha": trace["opacity"]}
        shown = axes[name].imshow(z, extent=extent, cmap=_colors(trace["colorscale"]), **shape)
        if trace["showscale"]:
            bar = trace["colorbar"]
            length = (1 - left) * bar.get("len", 0.97)
            start = left + (1 - left) * bar.get("x", 0)
            below = drawing.add_axes((start, low - 0.09 / tall, length, 0.06 / tall))
            drawing.colorbar(shown, below, orientation="horizontal", ticks=bar.get("tickvals"))
            below.tick_params(labelsize=6, pad=1, length=2)
            if "ticktext" in bar:
                below.set_xticklabels(bar["ticktext"])
    across = [figure.layout[f"x{name[1:]}".replace("x", "xaxis")]["domain"] for name in axes]
    size = min(7.0, 11 * drawing.get_figwidth() * min(b - a for a, b in across))
    for i, note in enumerate(figure.layout["annotations"]):
        said = (
            figure.texts[key].en
            if (key := f"annotations[{i}].text") in figure.texts
            else note["text"]
        )
        x, y = left + (1 - left) * note["x"], low + (high - low) * note["y"]
        anchors = {"top": "top", "bottom": "bottom", "middle": "center"}
        upright = {"rotation": 90, "ha": "right"} if "textangle" in note else {"ha": "center"}
        drawing.text(x, y, _text(said), size=size, va=anchors[note["yanchor"]], **upright)
