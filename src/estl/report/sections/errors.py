"""Which classes are taken for which, and the mistakes that a student is surest of."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from estl.report.drawing import picture_grid, short
from estl.report.intervals import pooled
from estl.report.parts import Figure, Line, Part, Section, heat, lines, plain
from estl.report.sources import Run, Variant, seeded
from estl.report.words import same, say

TICKS = 24
"""Most class names shown on an axis; the others are shown on hover."""


def section(variants: Sequence[Variant]) -> Section | None:
    """Confusion and mistakes of each variant, accuracies by class of all of them."""
    found = [(v, runs) for v in variants if (runs := [r for r in v.runs if r.collected])]
    if not found:
        return None
    parts: list[Part] = [by_class(found)]
    parts += [confusion(variant, runs) for variant, runs in found[:6]]
    for variant, runs in found[:6]:
        if "mistake_events" in runs[0].collected:
            parts.append(mistakes(variant, runs[0]))
    return Section("errors", parts)


def total(runs: Sequence[Run]) -> np.ndarray:
    """Samples by class (rows) and prediction (columns), over the seeds."""
    return np.sum([run.collected["confusion"] for run in runs], axis=0)


def by_class(found: Sequence[tuple[Variant, Sequence[Run]]]) -> Figure:
    """A point a class and variant, with Wilson's interval of one seed's samples."""
    drawn = []
    names = [plain(c) for c in found[0][1][0].collected["classes"]]
    for i, (variant, runs) in enumerate(found):
        matrix = total(runs)
        samples = matrix.sum(1)
        shift = 0.7 / len(found) * (i - (len(found) - 1) / 2)
        places = [k for k, n in enumerate(samples) if n]
        spread = [pooled(matrix[k, k] / samples[k], samples[k] / len(runs)) for k in places]
        x = [k + shift for k in places]
        label = same(variant.label)
        drawn.append(Line(label, variant.color, x, [s.value for s in spread], spread, None))
    figure = lines(
        "errors_by_class", drawn, x=say("class"), y=say("accuracy"), unit=" %",
        caption=say("by_class_caption"), wide=True,
    )  # fmt: skip
    kept = range(0, len(names), -(-len(names) // TICKS))
    figure.layout["xaxis"] |= {"tickvals": list(kept), "ticktext": [names[k] for k in kept]}
    figure.layout["hovermode"] = "closest"
    for trace, (_, runs) in zip(figure.data, found, strict=True):
        trace["text"] = [f"{names[k]}: n = {n}" for k, n in enumerate(total(runs).sum(1)) if n]
        trace["hovertemplate"] = "%{text}, %{y:.4~g} %"
    return figure


def confusion(variant: Variant, runs: Sequence[Run]) -> Figure:
    """Shares of each class in color, numbers of samples in the cells."""
    matrix = total(runs)
    names = list(runs[0].collected["classes"])
    percent = 100 * matrix / matrix.sum(1, keepdims=True).clip(min=1)
    few = len(names) <= 20
    figure = heat(
        f"confusion_{variant.name}", percent, names, names, x=say("predicted"), y=say("true_class"),
        caption=say("confusion_caption", name=variant.name, n=int(matrix.sum()), seeds=len(runs)),
        span=(0.0, 100.0), unit=" %",
        written=[[n or "" for n in row] for row in matrix.tolist()] if few else None,
    )  # fmt: skip
    figure.data[0]["customdata"] = matrix.tolist()
    if not few:
        figure.data[0] |= {"xgap": 0, "ygap": 0}  # gaps would be as wide as the cells
        figure = replace(figure, wide=True)
    figure.data[0]["hovertemplate"] = "%{y} → %{x}: %{customdata} (%{z:.1f} %)<extra></extra>"
    return figure


def mistakes(variant: Variant, run: Run) -> Figure:
    """The most confident ones: events of all steps, and the image where there is one."""
    held = run.collected
    names = held["classes"]
    titles = [
        f"{short(names[label])}\n→ {short(names[predicted])}\n{100 * sure:.0f} %"
        for label, predicted, sure in zip(
            held["mistake_label"],
            held["mistake_predicted"],
            held["mistake_confidence"],
            strict=True,
        )
    ]
    rows = [held["mistake_events"]] + ([held["mistake_image"]] if "mistake_image" in held else [])
    caption = say("mistakes_caption", name=seeded(variant, run))
    return picture_grid(f"mistakes_{variant.name}", rows, titles, caption)
