"""The table and the plot of a search for thresholds."""

import json
from pathlib import Path

import optuna

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
    text = f"""### tau_f and kappa: {len(finished)} trials, {pruned} more pruned

{table(["trial", "tau_f", "kappa", "best validation accuracy %"], rows)}

    {command}

Equal accuracies are ordered by validation loss. The test split was not read.
"""
    (folder / "tune.md").write_text(text)
    record = [t.params | {"trial": t.number} | t.user_attrs for t in finished]
    (folder / "tune.json").write_text(json.dumps({"command": command, "trials": record}, indent=2))
    _plot(finished, accuracies, folder / "tune.png")
    return text


def _plot(trials: list[optuna.trial.FrozenTrial], accuracies: list[float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    shown = axes.scatter(
        [t.params["tau_f"] for t in trials], [t.params["kappa"] for t in trials], c=accuracies
    )
    figure.colorbar(shown, label="best validation accuracy, %")
    axes.set(xlabel="tau_f", ylabel="kappa")
    figure.savefig(path, dpi=120)
