"""What training changed: the same samples before it, after it, and under plain supervision."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from estl.report.drawing import beside, cells, erased, heat_map, moving, picture, spread
from estl.report.parts import Figure
from estl.report.sources import Run, Variant, seeded
from estl.report.words import joined, say

SHOWN = 4
"""Samples of a figure with a slider."""

KINDS = {"erased": "sample_keep", "activation": "sample_activation"}
"""What is drawn, and of which arrays."""

Held = Mapping[str, np.ndarray]


class State(NamedTuple):
    """A set of weights that is compared.

    Args:
        name: "before", "after" or "plain".
        held: its arrays.
        rows: rows of the samples in these arrays, by their row in those of "after".
    """

    name: str
    held: Held
    rows: dict[int, int]


def changes(variant: Variant, run: Run, variants: Sequence[Variant]) -> Figure | None:
    """A slider over t: what is erased, and where the true class is seen, for sets of weights.

    None where the run has no maps of its start, and no plain run of the same samples is beside it.
    """
    held, plain = run.collected, plain_run(variant, run, variants)
    states = [
        State("before", run.start, same_samples(held, run.start)),
        State("after", held, same_samples(held, held)),
    ]
    if plain is not None:
        states.append(State("plain", plain[1].collected, same_samples(held, plain[1].collected)))
    states = [state for state in states if state.rows]
    common = sorted(set.intersection(*(set(state.rows) for state in states)))
    if len(states) < 2 or not common:
        return None
    rows = [common[i] for i in spread(len(common), SHOWN)]
    columns = [
        (kind, state)
        for kind, key in KINDS.items()
        for state in states
        if key in state.held and key in held
    ]
    moments = [_moment(held, columns, rows, t) for t in range(held["sample_activation"].shape[1])]
    titles = [say("events_short"), *(say(f"{kind}_{state.name}") for kind, state in columns)]
    layout = cells(len(rows), len(titles), [" "] * len(titles))
    names = [str(held["classes"][held["sample_label"][row]]) for row in rows]
    layout["annotations"] += beside(names)
    layout["margin"]["t"] = 42  # titles of two lines
    keep = held.get("sample_keep")
    gone = np.zeros(1) if keep is None else (~keep[rows]).sum((0, 2, 3))
    start = int(gone.argmax()) if gone.any() else len(moments) - 1
    told = [say("changes_caption", name=seeded(variant, run))]
    told += [] if keep is None else [say("changes_erased")]
    told += [say("changes_plain", name=plain[0].label)] if plain else []
    return Figure(
        f"changes_{variant.name}",
        moments[start],
        layout,
        joined(*told),
        {f"annotations[{i}].text": title for i, title in enumerate(titles)},
        frames=moving(moments),
        steps=[say("step_t", t=t + 1) for t in range(len(moments))],
        start=start,
        height=80 + len(rows) * 130,
        wide=True,
        aspect=len(rows) / len(titles),
        width=40 + 136 * len(titles),
    )


def plain_run(
    variant: Variant, run: Run, variants: Sequence[Variant]
) -> tuple[Variant, Run] | None:
    """A run under plain supervision beside this one, of the same seed if there is one."""
    found = [
        (other, its)
        for other in variants
        for its in other.runs
        if other is not variant
        and its.kind("supervision") == "MeanCE"
        and "sample_activation" in its.collected
    ]
    return min(found, key=lambda pair: pair[1].seed != run.seed, default=None)


def same_samples(held: Held, others: Held) -> dict[int, int]:
    """The row of each sample of `held` in other arrays: that with its label and its events."""
    if "sample_activation" not in others:
        return {}
    found = {}
    for i, label in enumerate(held["sample_label"]):
        for j in np.flatnonzero(others["sample_label"] == label):
            if np.array_equal(held["sample_events"][i], others["sample_events"][j]):
                found[i] = int(j)
    return found


def _moment(
    held: Held, columns: Sequence[tuple[str, State]], rows: Sequence[int], t: int
) -> list[dict[str, Any]]:
    """The traces of step t, counted from 0; the same number at every step."""
    data = []
    for i, row in enumerate(rows):
        events = held["sample_events"][row][t]
        cell = i * (len(columns) + 1) + 1
        data.append(picture(events, cell))
        for k, (kind, state) in enumerate(columns, 1):
            shown = state.held[KINDS[kind]][state.rows[row]][t]
            if kind == "erased":
                data += [picture(events, cell + k), erased(shown, cell + k)]
            else:
                under = held["sample_image"][row] if "sample_image" in held else events
                data += [picture(under, cell + k), heat_map(shown, cell + k, over=True)]
    return data
