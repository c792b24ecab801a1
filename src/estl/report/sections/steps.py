"""What happens over the time steps: accuracy, confidence, similarity, spikes, energy."""

from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np

from estl.report.intervals import estimate, pooled
from estl.report.parts import Figure, Line, Note, Part, Section, Table, heat, lines, plain
from estl.report.sections.overview import chance
from estl.report.sources import Run, Variant
from estl.report.words import joined, same, say

Found = Sequence[tuple[Variant, Sequence[Run]]]
"""Variants, each with the runs that have what a figure shows, which is their mean."""


def section(variants: Sequence[Variant]) -> Section | None:
    """Figures over t, and between t and t'."""
    parts: list[Part] = []
    measured = [v for v in variants if v.accuracies()]
    if measured:
        parts.append(accuracy(measured))
    collected = having(variants, lambda run: run.collected)
    if collected:
        parts += [confidence(collected), stopping(collected), reliability(collected)]
    diagnosed = having(variants, lambda run: run.diagnosis)
    parts += [similar(v, runs) for v, runs in diagnosed[:6] if len(runs[0].diagnosis["cka"]) > 1]
    apart = having(variants, lambda run: run.diagnosis.get("firing_rate_steps"))[:6]
    top = max((float(rates.max()) for _, runs in apart for _, rates in _rates(runs)), default=0.0)
    parts += [firing(v, runs, 110 * top) for v, runs in apart]
    if diagnosed:
        parts += spikeless(diagnosed)
        spiking = having(variants, lambda run: run.diagnosis.get("firing_rate"))
        if spiking and not apart:
            parts.append(layers(spiking))
        parts += [energy(diagnosed), *uncounted(diagnosed)]
    robust = having(variants, lambda run: run.robustness)
    if robust:
        parts.append(robustness(robust))
    if parts and any(len(variant.runs) > 1 for variant in variants):
        parts.insert(0, Note(say("over_seeds")))
    if not collected and parts:
        parts.append(Note(say("not_collected")))
    return Section("time", parts) if parts else None


def having(variants: Sequence[Variant], has: Callable[[Run], object]) -> Found:
    """The variants with runs of which `has` is true, and these runs."""
    return [(variant, runs) for variant in variants if (runs := variant.those(has))]


def accuracy(variants: Sequence[Variant]) -> Figure:
    """After each step, with intervals."""
    drawn = []
    for i, variant in enumerate(variants):
        found = variant.accuracies()
        steps = list(zip(*(a.per_step for a in found), strict=True))
        spread = [estimate(shares, found[0].samples) for shares in steps]
        shift = 0.06 * (i - (len(variants) - 1) / 2)
        x = [t + shift for t in range(1, len(spread) + 1)]
        y = [s.value for s in spread]
        drawn.append(Line(same(variant.label), variant.color, x, y, spread))
    caption = joined(say("steps_caption"), chance(variants))
    title = say("accuracy_after")
    figure = lines(
        "steps_accuracy", drawn, x=say("step"), y=title, caption=caption, whole=True, unit=" %"
    )
    figure.layout["hovermode"] = "closest"
    return figure


def confidence(found: Found) -> Figure:
    """The mean probability of the predicted class after each step."""
    drawn = []
    for variant, runs in found:
        y = 100 * _mean(runs, "confidence")
        drawn.append(Line(same(variant.label), variant.color, range(1, len(y) + 1), y))
    return lines(
        "steps_confidence", drawn, x=say("step"), y=say("confidence"),
        caption=say("confidence_caption"), whole=True, unit=" %",
    )  # fmt: skip


def _mean(runs: Sequence[Run], array: str) -> np.ndarray:
    return np.mean([run.collected[array] for run in runs], axis=0)


def stopping(found: Found) -> Figure:
    """Accuracy against mean steps, if a sample stops where it is confident enough."""
    drawn = []
    for variant, runs in found:
        shares = zip(*(run.collected["stop_accuracy"] for run in runs), strict=True)
        n = int(runs[0].collected["samples"])
        spread = [estimate([float(a) for a in seeds], n) for seeds in shares]
        y, steps = [s.value for s in spread], _mean(runs, "stop_steps")
        drawn.append(Line(same(variant.label), variant.color, steps, y, spread))
    figure = lines(
        "steps_stopping", drawn, x=say("mean_steps"), y=say("accuracy"),
        caption=say("stopping_caption"), unit=" %",
    )  # fmt: skip
    for trace, (_, runs) in zip(figure.data, found, strict=True):
        trace["mode"] = "lines+markers"
        trace["text"] = [f"{c:.3g}" for c in runs[0].collected["stop_threshold"]]
        trace["hovertemplate"] = "%{y:.4~g} %, %{x:.3f}, ≥ %{text}"
    figure.layout["hovermode"] = "closest"
    return figure


def reliability(found: Found) -> Figure:
    """Accuracy by confidence after the last step; the diagonal is what it should be.

    Bins of several seeds are put together; their samples are the same, so that the intervals are
    those of as many samples as one seed has in a bin on average.
    """
    label = say("calibrated")
    drawn = [Line(label, "#8C8C8C", [0, 100], [0, 100], dash="dash")]
    errors = []
    for variant, runs in found:
        counts = np.array([run.collected["bin_count"] for run in runs], float)
        right = np.sum([run.collected["bin_right"] for run in runs], axis=0)
        sure = np.array([run.collected["bin_confidence"] for run in runs], float)
        count, some = counts.sum(0), counts.sum(0) > 0
        x = 100 * np.where(counts > 0, sure * counts, 0.0).sum(0)[some] / count[some]
        spread = [
            pooled(r / n, n / len(runs)) for r, n in zip(right[some], count[some], strict=True)
        ]
        y = [s.value for s in spread]
        drawn.append(Line(same(variant.label), variant.color, x, y, spread))
        errors.append(f"{variant.name} {100 * float(_mean(runs, 'ece')):.1f} %")
    figure = lines(
        "steps_reliability", drawn, x=say("confidence"), y=say("accuracy"), unit=" %",
        caption=say("reliability_caption", errors=", ".join(errors)), span=(-4.0, 104.0),
    )  # fmt: skip
    figure.layout["xaxis"] |= {"range": [-4, 104], "ticksuffix": " %"}
    figure.layout["hovermode"] = "closest"
    for trace in figure.data[1:]:
        trace["mode"] = "lines+markers"
    return figure


def similar(variant: Variant, runs: Sequence[Run]) -> Figure:
    """Linear CKA between steps, all of them on one scale."""
    cka = np.mean([np.array(run.diagnosis["cka"], float) for run in runs], axis=0)
    steps = range(1, len(cka) + 1)
    return heat(
        f"cka_{variant.name}", cka, steps, steps, x=say("step"), y=say("step"),
        caption=say("cka_caption", name=variant.name), span=(0.0, 1.0),
        written=[["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in cka],
    )  # fmt: skip


def _rates(runs: Sequence[Run]) -> list[tuple[str, np.ndarray]]:
    """Spiking layers from the input on, and the firing rate of each at each step."""
    kept = [run.diagnosis["firing_rate_steps"] for run in runs]
    return [(name, np.mean([rates[name] for rates in kept], axis=0)) for name in kept[0]]


def firing(variant: Variant, runs: Sequence[Run], top: float) -> Figure:
    """The firing rate of each layer at each step, on a scale up to `top` percent."""
    layers = _rates(runs)
    percent = 100 * np.array([rates for _, rates in layers])
    names = [f"{i}" for i in range(1, len(layers) + 1)]
    steps = range(1, len(percent[0]) + 1)
    figure = heat(
        f"firing_{variant.name}", percent, names, steps, x=say("step"), y=say("spiking_layer"),
        caption=say("firing_caption", name=variant.name), span=(0.0, top),
        written=[[f"{v:.1f}" for v in row] for row in percent] if len(names) <= 24 else None,
        unit=" %",
    )  # fmt: skip
    figure.data[0]["customdata"] = [[plain(name)] * len(steps) for name, _ in layers]
    figure.data[0]["hovertemplate"] = "%{customdata}, t = %{x}: %{z:.3g} %<extra></extra>"
    return figure


def layers(found: Found) -> Figure:
    """The firing rate of each layer, where the steps were not kept apart."""
    drawn = []
    for variant, runs in found:
        rates = np.mean([list(run.diagnosis["firing_rate"].values()) for run in runs], axis=0)
        x = range(1, len(rates) + 1)
        drawn.append(Line(same(variant.label), variant.color, x, 100 * rates))
    top = max(max(line.y) for line in drawn)
    return lines(
        "steps_layers", drawn, x=say("spiking_layer"), y=say("firing_rate"),
        caption=say("layers_caption"), whole=True, unit=" %", span=(0.0, 1.1 * top),
    )  # fmt: skip


def spikeless(found: Found) -> list[Note]:
    """Which variants have no layer that spikes."""
    names = [v.name for v, runs in found if not any(run.diagnosis["firing_rate"] for run in runs)]
    return [Note(say("spikeless", names=", ".join(names)))] if names else []


def uncounted(found: Found) -> list[Note]:
    """Which layers are in no energy."""
    layers = [(v.name, runs[0].diagnosis.get("uncounted") or []) for v, runs in found]
    told = "; ".join(f"{name}: {', '.join(names)}" for name, names in layers if names)
    return [Note(say("uncounted", layers=told), warning=True)] if told else []


def energy(found: Found) -> Table:
    """Operations and energy of a sample, against the same network if it were dense."""
    rows = []
    for variant, runs in found:
        acs, macs = (mean(sum(r.diagnosis[k].values()) for r in runs) for k in ("acs", "macs"))
        total, dense = (
            mean(r.diagnosis[f"energy_uj_{k}"] for r in runs) for k in ("total", "dense")
        )
        cells = (variant.name, f"{acs:,.0f}", f"{macs:,.0f}", f"{total:.3g} µJ")
        saved = (f"{dense:.3g} µJ", f"{100 * total / dense:.1f} %" if dense else "-")
        rows.append([same(cell) for cell in (*cells, *saved)])
    head = [same(""), say("additions"), say("macs"), say("energy"), say("dense"), say("share")]
    return Table(head, rows, say("energy_caption"))


def robustness(found: Found) -> Figure:
    """Accuracy under attack and noise."""
    drawn, sizes = [], set()
    for variant, runs in found:
        measured = [run.robustness for run in runs if run.robustness]
        sizes |= {f"{one.eps:.4f}" for one in measured}
        names = [n for n in measured[0].robustness if all(n in one.robustness for one in measured)]
        n = measured[0].test.samples
        spread = [estimate([one.robustness[name] for one in measured], n) for name in names]
        y = [s.value for s in spread]
        drawn.append(Line(same(variant.label), variant.color, names, y, spread, None))
    figure = lines(
        "robustness", drawn, x=same(""), y=say("accuracy"), unit=" %",
        caption=say("robustness_caption", eps=", ".join(sorted(sizes))), wide=True,
    )  # fmt: skip
    figure.layout["hovermode"] = "closest"
    return figure
