"""What a guided run looks at: edges, attention, and how they change."""

import base64
from collections.abc import Sequence

import numpy as np
import torch

from estl.guidance.watch import BORDER, edge_trouble
from estl.report.collect import spread
from estl.report.parts import Line, Note, Pages, Part, Section, Table, lines
from estl.report.sections.learning import curve, over
from estl.report.sources import COLORS, Run, Variant
from estl.report.words import same, say

PAGES = 5
"""Of a run, at most: the first, the last, and between them."""

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
                name, title = f"guidance_{metric}", same(metric)
                span = whole(
                    [run.history[column] for v in some for run in v.runs if column in run.history]
                )
                parts.append(over(some, name, column, title, caption=say(metric), span=span))
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
            curve(run, f"watch/{m}", same(m), color)
            for m, color in zip(present, COLORS, strict=False)
        ]
        if drawn:
            caption, span = say(f"guidance_{group}_caption"), None
            if group == "border":  # with the limit in view
                span = (0.0, 1.1 * max(BORDER, *(float(np.max(line.y)) for line in drawn)))
            if group in ("edges", "attention"):
                span = whole([line.y for line in drawn])
            title = same(present[0] if len(present) == 1 else "")
            parts.append(
                lines(
                    f"guidance_{group}", drawn, x=say("epoch"), y=title, caption=caption, span=span,
                )
            )  # fmt: skip
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


def pages(variant: Variant, run: Run) -> Pages:
    """The pages of pictures that the run has written, some of many."""
    chosen = [run.pages[i] for i in spread(len(run.pages), PAGES)]
    pictures = [
        (
            "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
            say("after_epochs", n=int(path.stem.rpartition("_")[2])),
        )
        for path in chosen
    ]
    return Pages(f"pages_{variant.name}", pictures, say("pages_caption", name=variant.name))
