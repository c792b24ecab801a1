"""What happens over the time steps: accuracy, confidence, similarity, spikes, energy."""

from collections.abc import Sequence

from estl.report.intervals import Interval, estimate, share
from estl.report.parts import Figure, Line, Note, Part, Section, Table, heat, lines
from estl.report.sections.overview import chance
from estl.report.sources import Run, Variant
from estl.report.words import joined, same, say


def section(variants: Sequence[Variant]) -> Section | None:
    """Figures over t, and between t and t'."""
    parts: list[Part] = []
    measured = [v for v in variants if v.accuracies()]
    if measured:
        parts.append(accuracy(measured))
    collected = [(v, run) for v in variants if (run := v.first(lambda run: run.collected))]
    if collected:
        parts += [confidence(collected), stopping(collected), reliability(collected)]
    diagnosed = [(v, run) for v in variants if (run := v.first(lambda run: run.diagnosis))]
    parts += [similar(v, run) for v, run in diagnosed[:6] if len(run.diagnosis["cka"]) > 1]
    firings = [(v, run) for v, run in diagnosed[:6] if run.diagnosis.get("firing_rate_steps")]
    rates = [
        r for _, run in firings for row in run.diagnosis["firing_rate_steps"].values() for r in row
    ]
    parts += [firing(v, run, 110 * max(rates)) for v, run in firings]
    if diagnosed:
        if not any(run.diagnosis.get("firing_rate_steps") for _, run in diagnosed):
            parts.append(layers(diagnosed))
        parts.append(energy(diagnosed))
    robust = [(v, run) for v in variants if (run := v.first(lambda run: run.robustness))]
    if robust:
        parts.append(robustness(robust))
    if not collected and parts:
        parts.append(Note(say("not_collected")))
    return Section("time", parts) if parts else None


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


Found = Sequence[tuple[Variant, Run]]


def confidence(found: Found) -> Figure:
    """The mean probability of the predicted class after each step."""
    drawn = []
    for variant, run in found:
        y = 100 * run.collected["confidence"]
        drawn.append(Line(same(variant.label), variant.color, range(1, len(y) + 1), y))
    return lines(
        "steps_confidence", drawn, x=say("step"), y=say("confidence"),
        caption=say("confidence_caption"), whole=True, unit=" %",
    )  # fmt: skip


def stopping(found: Found) -> Figure:
    """Accuracy against mean steps, if a sample stops where it is confident enough."""
    drawn = []
    for variant, run in found:
        right, steps = run.collected["stop_accuracy"], run.collected["stop_steps"]
        n = int(run.collected["samples"])
        spread = [share(a * n, n) for a in right]
        y = [s.value for s in spread]
        drawn.append(Line(same(variant.label), variant.color, steps, y, spread))
    figure = lines(
        "steps_stopping", drawn, x=say("mean_steps"), y=say("accuracy"),
        caption=say("stopping_caption"), unit=" %",
    )  # fmt: skip
    for trace, (_, run) in zip(figure.data, found, strict=True):
        trace["mode"] = "lines+markers"
        trace["text"] = [f"{c:.2f}" for c in run.collected["stop_threshold"]]
        trace["hovertemplate"] = "%{y:.4~g} %, %{x:.3f}, ≥ %{text}"
    figure.layout["hovermode"] = "closest"
    return figure


def reliability(found: Found) -> Figure:
    """Accuracy by confidence after the last step; the diagonal is what it should be."""
    label = say("calibrated")
    drawn = [Line(label, "#8C8C8C", [0, 100], [0, 100], dash="dash")]
    for variant, run in found:
        count, right = run.collected["bin_count"], run.collected["bin_right"]
        some = count > 0
        spread = [share(r, n) for r, n in zip(right[some], count[some], strict=True)]
        x = 100 * run.collected["bin_confidence"][some]
        y = [s.value for s in spread]
        drawn.append(Line(same(variant.label), variant.color, x, y, spread))
    errors = ", ".join(f"{v.name} {100 * float(r.collected['ece']):.1f} %" for v, r in found)
    figure = lines(
        "steps_reliability", drawn, x=say("confidence"), y=say("accuracy"), unit=" %",
        caption=say("reliability_caption", errors=errors), span=(-4.0, 104.0),
    )  # fmt: skip
    figure.layout["xaxis"] |= {"range": [-4, 104], "ticksuffix": " %"}
    figure.layout["hovermode"] = "closest"
    for trace in figure.data[1:]:
        trace["mode"] = "lines+markers"
    return figure


def similar(variant: Variant, run: Run) -> Figure:
    """Linear CKA between steps, all of them on one scale."""
    cka = run.diagnosis["cka"]
    steps = range(1, len(cka) + 1)
    return heat(
        f"cka_{variant.name}", cka, steps, steps, x=say("step"), y=say("step"),
        caption=say("cka_caption", name=variant.name), span=(0.0, 1.0),
        written=[["" if v is None else f"{v:.2f}" for v in row] for row in cka],
    )  # fmt: skip


def firing(variant: Variant, run: Run, top: float) -> Figure:
    """The firing rate of each layer at each step, on a scale up to `top` percent."""
    rates = run.diagnosis["firing_rate_steps"]
    percent = [[100 * rate for rate in row] for row in rates.values()]
    names = [f"{i}" for i in range(1, len(rates) + 1)]
    steps = range(1, len(percent[0]) + 1)
    figure = heat(
        f"firing_{variant.name}", percent, names, steps, x=say("step"), y=say("spiking_layer"),
        caption=say("firing_caption", name=variant.name), span=(0.0, top),
        written=[[f"{v:.1f}" for v in row] for row in percent] if len(names) <= 24 else None,
        unit=" %",
    )  # fmt: skip
    figure.data[0]["customdata"] = [[name] * len(steps) for name in rates]
    figure.data[0]["hovertemplate"] = "%{customdata}, t = %{x}: %{z:.3g} %<extra></extra>"
    return figure


def layers(found: Found) -> Figure:
    """The firing rate of each layer, where the steps were not kept apart."""
    drawn = []
    for variant, run in found:
        rates = [100 * r for r in run.diagnosis["firing_rate"].values()]
        drawn.append(Line(same(variant.label), variant.color, range(1, len(rates) + 1), rates))
    top = max(max(line.y) for line in drawn)
    return lines(
        "steps_layers", drawn, x=say("spiking_layer"), y=say("firing_rate"),
        caption=say("layers_caption"), whole=True, unit=" %", span=(0.0, 1.1 * top),
    )  # fmt: skip


def energy(found: Found) -> Table:
    """Operations and energy of a sample, against the same network if it were dense."""
    rows = []
    for variant, run in found:
        d = run.diagnosis
        acs, macs = sum(d["acs"].values()), sum(d["macs"].values())
        total, dense = d["energy_uj_total"], d["energy_uj_dense"]
        cells = (variant.name, f"{acs:,.0f}", f"{macs:,.0f}", f"{total:.3g} µJ")
        saved = (f"{dense:.3g} µJ", f"{100 * total / dense:.1f} %" if dense else "-")
        rows.append([same(cell) for cell in (*cells, *saved)])
    head = [same(""), say("additions"), say("macs"), say("energy"), say("dense"), say("share")]
    return Table(head, rows, say("energy_caption"))


def robustness(found: Found) -> Figure:
    """Accuracy under attack and noise."""
    drawn = []
    for variant, run in found:
        assert run.robustness is not None
        n, rows = run.robustness.test.samples, run.robustness.robustness
        spread: list[Interval] = [share(a * n, n) for a in rows.values()]
        y = [s.value for s in spread]
        drawn.append(Line(same(variant.label), variant.color, list(rows), y, spread, None))
    eps = found[0][1].robustness
    assert eps is not None
    figure = lines(
        "robustness", drawn, x=same(""), y=say("accuracy"), unit=" %",
        caption=say("robustness_caption", eps=f"{eps.eps:.4f}"), wide=True,
    )  # fmt: skip
    figure.layout["hovermode"] = "closest"
    return figure
