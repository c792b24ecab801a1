"""What a section of a report is made of. Figures are dictionaries as plotly.js takes them."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from estl.report.intervals import Interval, axis
from estl.report.words import Text, joined, say

GRID = "#E3E6EA"
MAP = "Viridis"
"""Color scale of maps without a sign; readable by the color-blind, and in gray."""


@dataclass(frozen=True)
class Note:
    """A paragraph; a warning stands out."""

    text: Text
    warning: bool = False
    kind: Literal["note"] = "note"


@dataclass(frozen=True)
class Table:
    """Rows of cells; with `facts` the first column is a name, and long values wrap."""

    head: Sequence[Text]
    rows: Sequence[Sequence[Text]]
    caption: Text | None = None
    facts: bool = False
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Key:
    """A line of a legend, which hides and shows traces.

    Args:
        label: its text, and the traces' name where one hovers over them.
        color: of its mark.
        traces: their places in `Figure.data`.
        dash: of its mark.
    """

    label: Text
    color: str
    traces: list[int]
    dash: str = "solid"


@dataclass(frozen=True)
class Figure:
    """A plot.

    Args:
        name: unique on the page.
        data, layout: of plotly.js.
        caption: what is shown, and on which scale.
        texts: what is written in the plot, by the layout's key.
        keys: lines of its legend, none if a single trace needs none.
        frames: what the positions of its slider show, if it has one.
        steps: what the slider says at each.
        start: the position that `data` shows.
        height: in pixels.
        wide: whether it has a row of the page to itself.
        aspect: of pictures, the rows over the columns of their grid, which narrows with the screen.
        width: for pictures, in pixels, on a screen that is wide enough.
        least: a width in pixels; a narrower screen scrolls the figure sideways.
    """

    name: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: Text
    texts: dict[str, Text] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)
    steps: list[Text] = field(default_factory=list)
    start: int = 0
    height: int = 320
    wide: bool = False
    aspect: float = 0.0
    width: int = 720
    least: int = 0
    kind: Literal["figure"] = "figure"


Part = Note | Table | Figure


@dataclass(frozen=True)
class Section:
    """A chapter of the page.

    Args:
        name: of its heading in the catalogue, and of its anchor.
        parts: in their order.
    """

    name: str
    parts: list[Part]


@dataclass(frozen=True)
class Line:
    """A curve, or points with intervals.

    Args:
        label: lines with the same label share a line of the legend.
        color: of the line.
        x, y: its points.
        spread: their intervals, or none.
        dash: "solid", "dash", "dot"; None draws points alone.
        faint: drawn thin, beside others of its label.
    """

    label: Text
    color: str
    x: Sequence[Any] | np.ndarray
    y: Sequence[float] | np.ndarray
    spread: Sequence[Interval] = ()
    dash: str | None = "solid"
    faint: bool = False


def plain(text: object) -> str:
    """Text as plotly.js shows it: what looks like a tag is no tag.

    >>> plain("<b>")
    '&lt;b&gt;'
    """
    return html.escape(str(text), quote=False)


def numbers(values: Sequence[float] | np.ndarray, digits: int = 5) -> list[float | None]:
    """Plain numbers of `digits` significant digits, None where there is no number.

    >>> numbers([1 / 3, float("nan")])
    [0.33333, None]
    """
    return [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in np.asarray(values, float)]


def number(value: float) -> str:
    """Three digits, or all of a whole number's.

    >>> number(0.12345), number(1904.2), number(-0.0001)
    ('0.123', '1,904', '-0.0001')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def layout(**more: Any) -> dict[str, Any]:
    """What the layouts of all figures share, and `more`."""
    line = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": "#8C8C8C", "automargin": True}
    axes = {name: line | more.pop(name, {}) for name in [*more] if name[1:5] == "axis"}
    base: dict[str, Any] = {
        "font": {"family": "inherit", "size": 13, "color": "#22272E"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 14, "t": 10, "b": 46},
        "showlegend": False,
        "hoverlabel": {"namelength": -1},
    }
    return base | axes | more


def lines(
    name: str,
    drawn: Sequence[Line],
    *,
    x: Text,
    y: Text,
    caption: Text,
    span: tuple[float, float] | None = None,
    log: bool = False,
    whole: bool = False,
    unit: str = "",
    wide: bool = False,
) -> Figure:
    """Curves over a common axis.

    Args:
        name: unique on the page.
        drawn: the curves.
        x, y: titles of the axes.
        caption: of the figure; the range of y is added to it.
        span: of y; by default it is `axis` of all that is drawn.
        log: whether y is logarithmic.
        whole: whether x counts steps, one tick each.
        unit: of y, after the numbers.
        wide: as `Figure`.
    """
    data, keys = [], dict[Text, Key]()
    for i, line in enumerate(drawn):
        dots = whole or len(line.x) < 20
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers" if line.dash is None else "lines+markers" if dots else "lines",
            "x": [plain(v) if isinstance(v, str) else float(v) for v in line.x],
            "y": numbers(line.y),
            "line": {"color": line.color, "dash": line.dash or "solid"},
            "marker": {"color": line.color, "size": 7},
            "hovertemplate": f"%{{y:.4~g}}{unit}",
        }
        if line.faint:
            trace |= {"opacity": 0.45}
            trace["line"] |= {"width": 1}
        if line.spread:
            trace["error_y"] = error_bars(line.spread, line.color)
        data.append(trace)
        key = keys.setdefault(line.label, Key(line.label, line.color, [], line.dash or "solid"))
        key.traces.append(i)
    seen = [v for line in drawn for v in (line.spread or line.y) if np.isfinite(np.ravel(v)).all()]
    low, high = span or axis(seen, 1.0 if unit == " %" else 1e-9)
    if unit == " %" and span is None and not any(line.spread for line in drawn):
        low, high = max(low, -2.0), min(high, 102.0)
    if span is None and min(np.min(v) for v in seen) >= 0:
        low = max(low, -0.02 * high)
    vertical: dict[str, Any] = {"ticksuffix": unit}
    if log:
        few = np.max(seen) < 100 * np.min(seen)  # two decades, with 2 and 5 between
        vertical |= {"type": "log", "exponentformat": "power", "dtick": "D2" if few else 1}
    else:
        vertical |= {"range": [low, high]}
        caption = joined(caption, say("axis", low=number(low), high=f"{number(high)}{unit}"))
    across: dict[str, Any] = {"dtick": 1} if whole else {}
    return Figure(
        name,
        data,
        layout(xaxis=across, yaxis=vertical, hovermode="x unified", hoverdistance=-1),
        caption,
        {"xaxis.title.text": x, "yaxis.title.text": y},
        list(keys.values()),
        wide=wide,
    )


def error_bars(spread: Sequence[Interval], color: str) -> dict[str, Any]:
    """Bars from the lower to the upper end of each interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": numbers([s.high - s.value for s in spread]),
        "arrayminus": numbers([s.value - s.low for s in spread]),
        "color": color,
        "thickness": 1.5,
        "width": 4,
    }


def heat(
    name: str,
    values: Sequence[Sequence[float | None]] | np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
    *,
    x: Text,
    y: Text,
    caption: Text,
    span: tuple[float, float],
    written: Sequence[Sequence[object]] | None = None,
    hover: str = "%{y}, %{x}: %{z:.3g}<extra></extra>",
    unit: str = "",
) -> Figure:
    """A matrix in colors from `span`, its first row on top; `written` stands in its cells."""
    z = [numbers([np.nan if v is None else v for v in row]) for row in values]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": z,
        "x": [plain(c) for c in columns],
        "y": [plain(r) for r in rows],
        "zmin": span[0],
        "zmax": span[1],
        "colorscale": MAP,
        "hovertemplate": hover,
        "colorbar": {"thickness": 12, "ticksuffix": unit},
        "xgap": 1,
        "ygap": 1,
    }
    if written is not None:
        trace |= {"text": [[str(c) for c in row] for row in written], "texttemplate": "%{text}"}
    kind = {"type": "category", "showgrid": False}
    return Figure(
        name,
        [trace],
        layout(xaxis=kind, yaxis=kind | {"autorange": "reversed"}),
        joined(caption, say("scale", low=number(span[0]), high=f"{number(span[1])}{unit}")),
        {"xaxis.title.text": x, "yaxis.title.text": y},
        height=max(300, min(900, 110 + 24 * len(rows))),
    )
