"""What a guided run looks at: edges, attention, and how they change."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from estl.guidance.watch import BORDER, edge_trouble
from estl.report.drawing import (
    beside,
    cells,
    heat_map,
    moving,
    picture,
    rounded,
    spread,
    times_even,
)
from estl.report.parts import Figure, Line, Note, Part, Section, Table, lines
from estl.report.sections.learning import curve, over
from estl.report.sources import COLORS, Run, Variant, seeded
from estl.report.words import joined, same, say

PAGES = 5
"""Most pages shown of a run: the first, the last, and some between them."""

ATTENTION = ("teacher", "student")
OF_THE_LARGEST = ("counts", "added")
"""Maps in shares of the largest value of all pages."""
MAPS = ("edges", "sobel", "counts", "gate", "added", *ATTENTION)
LOOKS = ("image", *MAPS, "events")
"""What a page may have, in the order of its columns."""

GROUPS = {
    "edges": ("edge_counts", "edge_sobel", "edge_spread", "edge_mean"),
    "border": ("edge_border",),
    "attention": ("attention_overlap", "attention_sharp", "gate_mean", "target_spread"),
}
"""Metrics that share an axis."""


def section(variants: Sequence[Variant]) -> Section | None:
    """Warnings on top, then how edges and attention went, and the pages of pictures."""
    guided = [v for v in variants if v.first(lambda run: run.pages or _watched(run))]
    if not guided:
        return None
    parts: list[Part] = []
    for variant in guided:
        for run in variant.runs:
            last = {k: torch.tensor(v[-1]) for k, v in run.history.items() if k in _watched(run)}
            if trouble := edge_trouble(last):
                parts.append(Note(same(f"{variant.name}, seed {run.seed}: {trouble}"), True))
    if len(guided) == 1 and len(guided[0].runs) == 1:
        parts += _watched_curves(guided[0].runs[0])
    else:
        for metric in ("edge_counts", "edge_sobel", "attention_overlap", "gate_mean"):
            column = f"watch/{metric}"
            some = [v for v in guided if v.logs(column)]
            if some:
                name, title = f"guidance_{metric}", say(f"watch_{metric}")
                span = whole(
                    [run.history[column] for v in some for run in v.runs if column in run.history]
                )
                parts.append(
                    over(some, name, column, title, caption=say(f"{metric}_caption"), span=span)
                )
    if (weights := _weights(guided)) is not None:
        parts.append(weights)
    for variant in guided[:4]:
        drawn = variant.first(lambda run: run.pages)
        if drawn is not None:
            parts.append(pages(variant, drawn))
    return Section("guidance", parts)


def whole(columns: Sequence[Sequence[float] | np.ndarray]) -> tuple[float, float]:
    """An axis of shares and correlations: from 0, or from -1 where any is below, to 1.

    >>> whole([np.array([0.971, 0.972])]), whole([np.array([-0.1, 0.9])])
    ((-0.02, 1.02), (-1.02, 1.02))
    """
    below = any((np.asarray(column) < 0).any() for column in columns)
    return (-1.02 if below else -0.02), 1.02


def _watched(run: Run) -> list[str]:
    """Columns about edges and attention."""
    metrics = {f"watch/{name}" for names in GROUPS.values() for name in names}
    return [name for name in run.history if name in metrics]


def _watched_curves(run: Run) -> list[Part]:
    """Those of one run, by group."""
    parts: list[Part] = []
    for group, metrics in GROUPS.items():
        present = [m for m in metrics if f"watch/{m}" in run.history]
        drawn: list[Line] = [
            curve(run, f"watch/{m}", say(f"watch_{m}"), color)
            for m, color in zip(present, COLORS, strict=False)
        ]
        if not drawn:
            continue
        title = drawn[0].label if len(drawn) == 1 else same("")
        caption = joined(*(say(f"{m}_caption") for m in present))
        if group == "border":  # with the limit in view
            span = (0.0, 1.1 * max(BORDER, *(float(np.max(line.y)) for line in drawn)))
            ends = [drawn[0].x[0], drawn[0].x[-1]]
            drawn.append(Line(say("limit"), "#8C8C8C", ends, [BORDER, BORDER], dash="dash"))
        else:
            span = whole([line.y for line in drawn])
        parts.append(
            lines(f"guidance_{group}", drawn, x=say("epoch"), y=title, caption=caption, span=span)
        )
    return parts


def _weights(variants: Sequence[Variant]) -> Table | None:
    """The weights of the terms."""
    found = {}
    for variant in variants:
        run = variant.first(lambda run: run.config)
        weights = run.arguments("supervision").get("weights") if run else None
        if isinstance(weights, dict):
            found[variant.name] = weights
    if not found:
        return None
    terms = list(dict.fromkeys(term for weights in found.values() for term in weights))
    rows = [[name, *(f"{weights.get(t) or 0:g}" for t in terms)] for name, weights in found.items()]
    head = [same(""), *map(same, terms)]
    return Table(head, [[same(cell) for cell in row] for row in rows], say("weights_caption"))


def pages(variant: Variant, run: Run) -> Figure:
    """A slider over the epochs: what teacher, detector and student see of a few samples."""
    epochs = list(run.pages)
    shown = [epochs[i] for i in spread(len(epochs), PAGES)]
    first = run.pages[shown[0]]
    kinds = [kind for kind in LOOKS if kind in first]
    held = [{k: np.asarray(v, float) for k, v in run.pages[e].items() if k in MAPS} for e in shown]
    tops = {kind: max(float(page[kind].max()) for page in held) for kind in MAPS if kind in first}
    most = max(tops["teacher"], tops["student"], 1.0)
    octaves = min(6, max(2, math.ceil(math.log2(most))))
    moments = [_looks(first, page, kinds, tops, octaves) for page in held]
    names = [str(name) for name in first["names"]]
    layout = cells(len(names), len(kinds), [" "] * len(kinds))
    layout["annotations"] += beside(names)
    layout["margin"] |= {"t": 42, "b": 44}  # titles of two lines; color bars
    told = [say("pages_caption", name=seeded(variant, run))]
    edged = "edges" in kinds
    told += [say("pages_edges" if edged else "pages_counts")] if "counts" in kinds else []
    told += [say("pages_gate")] if "gate" in kinds else []
    told += [say("pages_attention" if edged else "pages_bare", most=2**octaves)]
    return Figure(
        f"pages_{variant.name}",
        moments[-1],
        layout,
        joined(*told),
        {f"annotations[{i}].text": say(f"look_{kind}") for i, kind in enumerate(kinds)},
        frames=moving(moments),
        steps=[say("after_epochs", n=epoch) for epoch in shown],
        start=len(moments) - 1,
        height=100 + len(names) * 122,
        wide=True,
        aspect=len(names) / len(kinds),
        width=130 * len(kinds),
        least=96 * len(kinds),
    )


def _looks(
    first: Mapping[str, np.ndarray],
    page: Mapping[str, np.ndarray],
    kinds: Sequence[str],
    tops: Mapping[str, float],
    octaves: int,
) -> list[dict[str, Any]]:
    """The traces of one page; the same number for every page."""
    data = []
    n, attention = len(kinds), kinds.index("teacher")  # bars lie below the maps that they are of
    bars = {
        kinds[1]: {"x": 1 / n, "len": (attention - 1.2) / n, "xanchor": "left"},
        "teacher": {"x": attention / n, "len": 1.96 / n, "xanchor": "left"},
    }
    for i in range(len(first["names"])):
        for k, kind in enumerate(kinds):
            cell, bar = i * len(kinds) + k + 1, None if i else bars.get(kind)
            if kind in ATTENTION:
                data.append(times_even(page[kind][i], cell, octaves, bar))
            elif kind in MAPS:
                top = tops[kind] if kind in OF_THE_LARGEST else 1.0
                trace = heat_map(page[kind][i] / max(top, 1e-12), cell, bar=bar)
                if kind == "counts":
                    told = "%{z:.3f}, %{customdata:.0f}<extra></extra>"
                    trace |= {"customdata": rounded(page[kind][i]), "hovertemplate": told}
                data.append(trace)
            else:
                data.append(picture(first[kind][i], cell))
    return data
