"""What the data are: classes, events a recording and a step, samples."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from estl.report.drawing import picture_grid, short
from estl.report.parts import (
    Figure,
    Line,
    Note,
    Part,
    Section,
    Table,
    layout,
    lines,
    numbers,
    plain,
)
from estl.report.sources import COLORS, Run, Variant
from estl.report.words import same, say

SPLITS = ("train", "val", "test")


def section(variants: Sequence[Variant]) -> Section | None:
    """The data of the first run that has kept them; all runs of a sweep have the same."""
    run = next((r for v in variants for r in v.runs if r.collected), None)
    if run is None:
        return None
    parts: list[Part] = []
    found = json.loads(str(run.collected["check"])) if "check" in run.collected else None
    if found and found["wrong"]:
        parts.append(Note(say("check_wrong"), warning=True))
    if any(f"balance_{split}" in run.collected for split in SPLITS):
        parts.append(balance(run))
    if "events_count" in run.collected:
        parts += [recordings(run), rate(run)]
    if "sample_events" in run.collected:
        parts.append(samples(run))
    if found:
        parts.append(checked(found))
    return Section("data_section", parts) if parts else None


def checked(facts: dict[str, Any]) -> Table:
    """What `estl data check` found."""
    rows = [[say("check_decoded"), same(f"{facts['decoded']} / {facts['total']}")]]
    for name, (count, *told) in facts["found"].items():
        more = ["…"] if count > len(told) else []
        shown = f": {'; '.join([*told, *more])}" if told else ""
        rows.append([say(f"check_{name}"), same(f"{count}{shown}")])
    return Table([], rows, say("check_caption"), facts=True)


def balance(run: Run) -> Figure:
    """Items of each class in each split."""
    names = [plain(name) for name in run.collected["classes"]]
    drawn = [
        Line(say(f"split_{split}"), color, names, run.collected[f"balance_{split}"], dash=None)
        for split, color in zip(SPLITS, COLORS, strict=False)
        if f"balance_{split}" in run.collected and run.collected[f"balance_{split}"].any()
    ]
    top = max(float(np.max(line.y)) for line in drawn)
    figure = lines(
        "data_balance", drawn, x=say("class"), y=say("items"), caption=say("balance_caption"),
        span=(0.0, 1.1 * top), wide=len(names) > 20,
    )  # fmt: skip
    for trace, line in zip(figure.data, drawn, strict=True):
        trace |= {"x": list(line.x)}
    figure.layout["xaxis"] |= {"type": "category"}
    return figure


def recordings(run: Run) -> Figure:
    """How many events the recordings of the test split have."""
    count, edges = run.collected["events_count"], run.collected["events_edges"]
    bars = {
        "type": "bar",
        "x": numbers((edges[1:] + edges[:-1]) / 2),
        "y": count.tolist(),
        "width": numbers(np.diff(edges)),
        "marker": {"color": COLORS[0]},
        "hovertemplate": "%{x:.4~g}: %{y}<extra></extra>",
    }
    texts = {"xaxis.title.text": say("events"), "yaxis.title.text": say("recordings")}
    shape = layout(xaxis={}, yaxis={"rangemode": "tozero"}, bargap=0)
    return Figure("data_events", [bars], shape, say("events_caption"), texts)


def rate(run: Run) -> Figure:
    """Events at each step, by polarity."""
    off, on = run.collected["events_rate"].T
    steps = range(1, len(on) + 1)
    drawn = [
        Line(say("on"), COLORS[1], steps, on),
        Line(say("off"), COLORS[0], steps, off, dash="dash"),
    ]
    top = float(max(on.max(), off.max()))
    return lines(
        "data_rate", drawn, x=say("step"), y=say("events"), caption=say("rate_caption"),
        whole=True, span=(0.0, max(1.0, 1.1 * top)),
    )  # fmt: skip


def samples(run: Run) -> Figure:
    """Events of all steps put together as pictures in their order, and the image."""
    held = run.collected
    events = held["sample_events"]
    picked = events[:, events.shape[1] // 2]
    rows = [picked] + ([held["sample_image"]] if "sample_image" in held else [])
    titles = [short(held["classes"][label]) for label in held["sample_label"]]
    return picture_grid(
        "data_samples", rows, titles, say("samples_caption", t=events.shape[1] // 2 + 1)
    )
