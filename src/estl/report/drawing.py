"""Pictures and maps side by side, as one figure that a slider may change."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from estl.report.parts import MAP, Figure, layout, plain
from estl.report.words import Text

CELL = 140  # pixels, the height of a row
VEIL = [[0, "rgba(0,158,115,0)"], [1, "rgba(0,158,115,0.82)"]]
"""Color scale of maps over pictures: transparent at 0."""


def png(picture: np.ndarray) -> str:
    """Bytes (H,W,3) as the `data:` address of a PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def picture(shown: np.ndarray, cell: int) -> dict[str, Any]:
    """A trace with a picture in the unit square of a cell, counted from 1."""
    H, W = shown.shape[:2]
    place = {"x0": 0.5 / W, "dx": 1 / W, "y0": 0.5 / H, "dy": 1 / H}
    return {"type": "image", "source": png(shown), "hoverinfo": "skip", **place, **axes(cell)}


def heat_map(
    values: np.ndarray, cell: int, *, over: bool = False, bar: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A trace with a map from 0 to 1 in the same square, `over` a picture or instead of one.

    Args:
        values: (h,w).
        cell: of the square, counted from 1.
        over: show the picture below, the more so the nearer a value is to 0.
        bar: options of a color bar below all squares; without, there is none.
    """
    h, w = values.shape
    return {
        "type": "heatmap",
        "z": rounded(values),
        **{"x0": 0.5 / w, "dx": 1 / w, "y0": 0.5 / h, "dy": 1 / h},
        "zmin": 0,
        "zmax": 1,
        "colorscale": VEIL if over else MAP,
        "opacity": 1.0,
        "showscale": bar is not None,
        "colorbar": {"orientation": "h", "thickness": 10, "y": -0.02, "yanchor": "top"}
        | (bar or {}),
        "hovertemplate": "%{z:.3f}<extra></extra>",
        **axes(cell),
    }


def times_even(
    values: np.ndarray, cell: int, octaves: int, bar: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The same for an attention map in multiples of even attention, the middle of the scale.

    The scale is logarithmic from 2^-octaves to 2^octaves, so that a map that is almost even and one
    that is all on a few places can be read side by side; smaller values are drawn as the smallest.
    """
    least = 2.0**-octaves
    trace = heat_map(np.log2(np.maximum(values, least)), cell, bar=bar)
    marks = {-octaves: f"1/{2**octaves}", 0: "1", octaves: f"{2**octaves}"}
    trace["colorbar"] |= {"tickvals": list(marks), "ticktext": list(marks.values())}
    return trace | {
        "zmin": -octaves,
        "zmax": octaves,
        "customdata": rounded(values),
        "hovertemplate": "%{customdata:.3g} times even<extra></extra>",
    }


def rounded(values: np.ndarray) -> list[list[float]]:
    """Plain numbers with three decimals."""
    return [[round(float(v), 3) for v in row] for row in values]


def erased(keep: np.ndarray, cell: int) -> dict[str, Any]:
    """A trace that covers the places that are not kept."""
    h, w = keep.shape
    return {
        "type": "heatmap",
        "z": [[None if kept else 1 for kept in row] for row in keep.tolist()],
        **{"x0": 0.5 / w, "dx": 1 / w, "y0": 0.5 / h, "dy": 1 / h},
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "#22272E"], [1, "#22272E"]],
        "opacity": 0.75,
        "showscale": False,
        "hoverinfo": "skip",
        **axes(cell),
    }


def axes(cell: int) -> dict[str, str]:
    """The axes of a cell, counted from 1."""
    number = "" if cell == 1 else str(cell)
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


def cells(rows: int, columns: int, titles: Sequence[str], below: bool = False) -> dict[str, Any]:
    """A layout of `rows` by `columns` unit squares, row by row from the upper left.

    Args:
        rows, columns: numbers of squares.
        titles: of the columns, or with `below` of every cell, "" for none; lines end with "\\n".
        below: whether titles are those of cells.
    """
    found: dict[str, Any] = {}
    written = []
    heights = row_heights(rows, columns, titles if below else [])
    for i in range(rows * columns):
        row, column = divmod(i, columns)
        number = "" if i == 0 else str(i + 1)
        left, upper = column / columns, 1 - sum(heights[:row]) / sum(heights)
        hidden = {"visible": False, "fixedrange": True, "range": [0, 1], "constrain": "domain"}
        across, down = [left, left + 0.96 / columns], [upper - 1 / sum(heights), upper]
        found[f"xaxis{number}"] = hidden | {"domain": across, "anchor": f"y{number}"}
        found[f"yaxis{number}"] = hidden | {
            "domain": down, "anchor": f"x{number}", "range": [1, 0], "scaleanchor": f"x{number}",
        }  # fmt: skip
        if (below or row == 0) and i < len(titles) and titles[i]:
            where = {"x": left + 0.48 / columns, "y": down[0] if below else 1}
            written.append(
                {
                    "text": plain(titles[i]).replace("\n", "<br>"),
                    "xref": "paper",
                    "yref": "paper",
                    "showarrow": False,
                    "xanchor": "center",
                    "yanchor": "top" if below else "bottom",
                    "font": {"size": 12},
                    **where,
                }
            )
    margin = {"l": 26, "r": 4, "t": 24, "b": 30}
    return layout(annotations=written, margin=margin, hovermode="closest") | found


def row_heights(rows: int, columns: int, titles: Sequence[str]) -> list[float]:
    """The heights of rows with the lines of the titles below them; 1 is that of a picture.

    >>> row_heights(2, 1, ["", "a\\nb"])
    [1.03, 1.31]
    """
    of_row = [titles[row * columns : (row + 1) * columns] for row in range(rows)]
    lines = [max((t.count("\n") + 1 for t in found if t), default=0) for found in of_row]
    return [round(1.03 + 0.14 * n, 2) for n in lines]


def short(name: object) -> str:
    """A name that fits under a picture.

    >>> short("cougar_body"), short("electric_guitar")
    ('cougar_body', 'electric_gui…')
    """
    text = str(name)
    return text if len(text) <= 13 else f"{text[:12]}…"


def beside(names: Sequence[str]) -> list[dict[str, Any]]:
    """The names of rows, upright at their left, for the annotations of `cells`."""
    return [
        {
            "text": plain(name if len(name) <= 18 else f"{name[:17]}…"),
            "xref": "paper", "yref": "paper", "x": -0.005, "y": 1 - (i + 0.5) / len(names),
            "xanchor": "right", "yanchor": "middle", "showarrow": False, "textangle": -90,
            "font": {"size": 12},
        }
        for i, name in enumerate(names)
    ]  # fmt: skip


def moving(moments: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a slider shows at each position: the traces that are not always the same.

    >>> moving([[{"z": 1}, {"z": 2}], [{"z": 1}, {"z": 3}]])[1]
    {'name': '1', 'data': [{'z': 3}], 'traces': [1]}
    """
    first = moments[0]
    traces = [i for i in range(len(first)) if any(data[i] != first[i] for data in moments)]
    return [
        {"name": str(t), "data": [data[i] for i in traces], "traces": traces}
        for t, data in enumerate(moments)
    ]


def spread(classes: int, n: int) -> list[int]:
    """The numbers of at most `n` of `classes` classes, spread evenly.

    >>> spread(10, 4), spread(3, 8)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return sorted({round(x) for x in np.linspace(0, classes - 1, min(n, classes))})


def picture_grid(
    name: str, kinds: Sequence[np.ndarray], titles: Sequence[str], caption: Text
) -> Figure:
    """Pictures (n,H,W,3) of several kinds: one column per sample with its title, one row per kind.

    More than four samples take two rows of columns, so that a narrow screen shows them.
    """
    n = len(kinds[0])
    columns = min(4, n)
    blocks = -(-n // columns)
    rows = blocks * len(kinds)
    data, written = [], [""] * (rows * columns)
    for i in range(n):
        block, column = divmod(i, columns)
        for k, pictures in enumerate(kinds):
            cell = (block * len(kinds) + k) * columns + column
            data.append(picture(pictures[i], cell + 1))
        written[cell] = titles[i]
    tall = sum(row_heights(rows, columns, written))
    return Figure(
        name,
        data,
        cells(rows, columns, written, below=True),
        caption,
        height=round(54 + tall * CELL),
        wide=True,
        aspect=tall / columns,
        width=30 + 150 * columns,
    )
