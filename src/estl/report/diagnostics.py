"""A picture of what `evaluation.diagnostics.diagnose` found."""

import math
from pathlib import Path
from typing import Any


def plot(diagnosis: dict[str, Any], path: Path) -> None:
    """Draw what `diagnose` returned as one PNG."""
    from matplotlib.figure import Figure

    rows = max(len(diagnosis["energy_uj"]), len(diagnosis["firing_rate"]))
    figure = Figure(figsize=(11, 4 + max(3.0, 0.16 * rows)), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=[3.5, max(3.0, 0.16 * rows)])
    T = len(diagnosis["accuracy"])
    steps = range(1, T + 1)

    over_steps, alike, rates, energy = axes.flat
    over_steps.plot(steps, [100 * a for a in diagnosis["accuracy"]], "o-", color="C0")
    over_steps.set(xlabel="steps t", xticks=steps)
    over_steps.set_ylabel("accuracy after t steps, %", color="C0")
    entropy = over_steps.twinx()
    entropy.plot(steps, diagnosis["entropy"], "s--", color="C1")
    entropy.set_ylabel("entropy of the prediction, nats", color="C1")

    cka = [[math.nan if v is None else v for v in row] for row in diagnosis["cka"]]
    image = alike.imshow(cka, vmin=0, vmax=1, cmap="viridis", origin="lower")
    alike.set(title="linear CKA of pooled features", xlabel="step", ylabel="step")
    alike.set(xticks=range(T), xticklabels=steps, yticks=range(T), yticklabels=steps)
    figure.colorbar(image, ax=alike)

    _bars(rates, {name: 100 * rate for name, rate in diagnosis["firing_rate"].items()}, "C2")
    rates.set(title="firing rate", xlabel="neurons that fire at a step, %")
    macs = {name for name, count in diagnosis["macs"].items() if count > 0}
    colors = ["C3" if name in macs else "C0" for name in diagnosis["energy_uj"]]
    _bars(energy, diagnosis["energy_uj"], colors)
    total, dense = diagnosis["energy_uj_total"], diagnosis["energy_uj_dense"]
    energy.set_title(f"energy of a sample: {total:.3g} µJ ({dense:.3g} µJ if all were MACs)")
    energy.set_xlabel("µJ (blue: additions, red: multiplications and additions)")
    figure.savefig(path, dpi=90)


def _bars(axis: Any, values: dict[str, float], color: str | list[str]) -> None:
    """One bar per layer, the first on top."""
    axis.barh(range(len(values)), list(values.values()), color=color)
    axis.set_yticks(range(len(values)), list(values), fontsize=6)
    axis.invert_yaxis()
