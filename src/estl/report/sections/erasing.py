"""What TSE and TRE erase: places, or channels, over the training and over the steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from estl.report.drawing import CELL, beside, cells, erased, heat_map, moving, picture, spread
from estl.report.parts import Figure, Line, Part, Section, heat, lines
from estl.report.sections.changes import SHOWN, changes
from estl.report.sections.learning import over
from estl.report.sections.steps import Found, having
from estl.report.sources import Run, Variant, seeded
from estl.report.words import Text, joined, same, say


def section(variants: Sequence[Variant]) -> Section | None:
    """Shares erased, and for a few samples what is erased at each step and why."""
    parts: list[Part] = []
    for column, name in (("watch/erased", "erased"), ("watch/erased_channels", "erased_channels")):
        with_it = [v for v in variants if v.logs(column)]
        if with_it:
            shown = over(
                with_it, f"{name}_training", column, say(name), 100.0, " %", span_zero=True
            )
            parts.append(shown)
    diagnosed = having(variants, lambda run: run.diagnosis.get("erased"))
    if diagnosed:
        parts.append(shares(diagnosed))
    for variant in variants[:8]:
        run = variant.first(lambda run: "sample_activation" in run.collected)
        if run is not None:
            changed = changes(variant, run, variants)
            if changed is None or "sample_map" in run.collected:
                parts.append(slides(variant, run))
            if changed is not None:
                parts.append(changed)
        run = variant.first(lambda run: "sample_channels" in run.collected)
        if run is not None:
            parts.append(channels(variant, run))
    return Section("erasing", parts) if parts else None


def shares(found: Found) -> Figure:
    """Places that would be erased on the test split at each step, and samples that lose all."""
    drawn = []
    for variant, runs in found:
        for key, dash in (("erased", "solid"), ("erased_everywhere", "dot")):
            y = 100 * np.mean([run.diagnosis[key] for run in runs], axis=0)
            label = same(variant.label) if key == "erased" else say("lose_all", name=variant.name)
            drawn.append(Line(label, variant.color, range(1, len(y) + 1), y, dash=dash))
    top = max(max(line.y) for line in drawn)
    return lines(
        "erased_steps", drawn, x=say("step"), y=say("erased"), unit=" %", whole=True,
        caption=say("erased_steps_caption"), span=(0.0, max(1.0, 1.1 * top)),
    )  # fmt: skip


def slides(variant: Variant, run: Run) -> Figure:
    """A slider over t: events, the map of the true class, what is erased, the class activation.

    It shows the samples with the most erased, if any: often nothing is erased in most of them.
    """
    held, most = _most(run.collected), "most_keep" in run.collected
    erases = "sample_map" in held
    kinds = [say("events_at_t"), say("activation")]
    if erases:
        kinds[1:1] = [say("class_map"), say("erased_places")]
    columns, T = len(kinds), held["sample_activation"].shape[1]
    rows = spread(len(held["sample_label"]), SHOWN)
    moments = [_moment(held, rows, t, columns) for t in range(T)]
    gone = (~held["sample_keep"][rows]).sum((0, 2, 3)) if erases else np.zeros(1)
    start = int(gone.argmax()) if gone.any() else min(1, T - 1) if erases else 0
    layout = cells(len(rows), columns, [" "] * columns)
    layout["margin"]["t"] = 42  # titles of two lines
    layout["annotations"] += beside([str(held["classes"][held["sample_label"][r]]) for r in rows])
    texts = {f"annotations[{i}].text": kind for i, kind in enumerate(kinds)}
    caption = say("slides_caption" if erases else "activation_caption", name=seeded(variant, run))
    told = [caption, say("slides_most" if most else "slides_first", n=len(rows))]
    told += [_lowest(run)] if erases else []
    return Figure(
        f"slides_{variant.name}",
        moments[start],
        layout,
        joined(*told),
        texts,
        frames=moving(moments),
        steps=[_step(held, rows, t) for t in range(T)],
        start=start,
        height=78 + len(rows) * CELL,
        wide=True,
        aspect=len(rows) / columns,
        width=40 + 168 * columns,
    )


def _most(held: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with the samples of which most is erased in place of the first of each class."""
    if "most_keep" not in held:
        return dict(held)
    kept = {k.replace("most_", "sample_"): v for k, v in held.items() if k.startswith("most_")}
    return {"classes": held["classes"]} | kept


def _moment(
    held: dict[str, np.ndarray], rows: Sequence[int], t: int, columns: int
) -> list[dict[str, Any]]:
    """The traces of step t, counted from 0; the same number at every step."""
    data = []
    for i, row in enumerate(rows):
        events = held["sample_events"][row][t]
        cell = i * columns + 1
        data.append(picture(events, cell))
        if "sample_map" in held:
            seen = held["sample_map"][row]
            past = seen[t - 1] if t else np.zeros_like(seen[0])
            data.append(heat_map(past, cell + 1, bar=None if i else {}))
            data.append(picture(events, cell + 2))
            data.append(erased(held["sample_keep"][row][t], cell + 2))
        shown = held["sample_image"][row] if "sample_image" in held else events
        data.append(picture(shown, cell + columns - 1))
        data.append(heat_map(held["sample_activation"][row][t], cell + columns - 1, over=True))
    return data


def _step(held: dict[str, np.ndarray], rows: Sequence[int], t: int) -> Text:
    """What the slider says: the step, and the thresholds of the samples."""
    if t == 0 or "sample_threshold" not in held:
        return say("step_t", t=t + 1)
    thresholds = ", ".join(f"{held['sample_threshold'][row][t - 1]:.2f}" for row in rows)
    return say("step_threshold", t=t + 1, thresholds=thresholds)


def _lowest(run: Run) -> Text:
    """How much is erased of the whole test split."""
    shares = run.diagnosis.get("erased")
    if not shares or len(shares) < 2:
        return same("")
    return say("slides_erased", percent=f"{100 * float(np.mean(shares[1:])):.1f}")


def channels(variant: Variant, run: Run) -> Figure:
    """For TRE: at which steps each channel is erased, share of the samples that are kept here."""
    kept = run.collected["sample_channels"]
    gone = 100 * (1 - kept.mean(0))
    T, D = gone.shape
    figure = heat(
        f"channels_{variant.name}", gone, range(1, T + 1), range(1, D + 1),
        x=say("channel"), y=say("step"), span=(0.0, 100.0), unit=" %",
        caption=say("channels_caption", name=seeded(variant, run), n=len(kept)),
    )  # fmt: skip
    figure.data[0] |= {"xgap": 0}
    return figure
