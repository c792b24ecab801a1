"""The table and the plot of a search for thresholds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from estl.report.chance import chance_warning
from estl.report.tables import table


def write(study: optuna.Study, folder: Path, command: str) -> str:
    """Write `tune.md`, `tune.json` and `tune.png` into `folder`; return the Markdown.

    Raises:
        ValueError: every trial was pruned.
    """
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    trials = study.get_trials(deepcopy=False, states=states)
    finished = [t for t in trials if t.value is not None and "accuracy" in t.user_attrs]
    if not finished:
        raise ValueError(f"no trial in {folder} has finished: give more --trials, or --no-prune")
    finished.sort(key=lambda t: -(t.value or 0.0))
    accuracies = [100 * t.user_attrs["accuracy"] for t in finished]
    rows = [
        [str(t.number), f"{t.params['tau_f']:.3f}", f"{t.params['kappa']:.3f}", f"{accuracy:.2f}"]
        for t, accuracy in zip(finished, accuracies, strict=True)
    ]
    pruned = len(trials) - len(finished)
    about = finished[0].user_attrs
    best = [accuracy / 100 for accuracy in accuracies]
    warning = chance_warning(best, about.get("samples", 0), about.get("classes"))
    note = f"\n**{warning}**\n" if warning else ""
    text = f"""### tau_f and kappa: {len(finished)} trials, {pruned} more pruned
{note}
{table(["trial", "tau_f", "kappa", "best validation accuracy %"], rows)}

    {command}

Equal accuracies are ordered by validation loss. The test split was not read.
"""
    (folder / "tune.md").write_text(text)
    record = [t.params | {"trial": t.number} | t.user_attrs for t in finished]
    (folder / "tune.json").write_text(json.dumps({"command": command, "trials": record}, indent=2))
    _plot(finished, accuracies, bool(warning), folder / "tune.png")
    return text


def searched(trials: Sequence[FrozenTrial], name: str) -> tuple[float, float]:
    """The least and the greatest value of a threshold that these trials could draw."""
    values: list[float] = []
    for trial in trials:
        match trial.distributions[name]:
            case CategoricalDistribution(choices=choices):
                values += [float(str(choice)) for choice in choices]
            case FloatDistribution(low=low, high=high):
                values += [low, high]
    return min(values), max(values)


def _plot(
    trials: Sequence[FrozenTrial], accuracies: list[float], at_chance: bool, path: Path
) -> None:
    """Every trial inside of what was searched, colored by accuracy unless all are at chance."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    (left, right), (low, high) = (searched(trials, name) for name in ("tau_f", "kappa"))
    edge: dict[str, Any] = {"fill": False, "ls": "--", "ec": "gray", "label": "searched"}
    axes.add_patch(Rectangle((left, low), right - left, high - low, **edge))
    x, y = ([t.params[name] for t in trials] for name in ("tau_f", "kappa"))
    shown = axes.scatter(x, y, c="gray" if at_chance else accuracies, zorder=2)
    if at_chance:
        axes.set_title("all trials are at chance", color="C3")
    else:
        figure.colorbar(shown, label="best validation accuracy, %")
    axes.autoscale_view()
    axes.set(xlabel="tau_f", ylabel="kappa")
    figure.legend(loc="outside lower right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
