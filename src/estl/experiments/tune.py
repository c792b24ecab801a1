"""`estl tune`: the thresholds of TSE, chosen on the validation split by Optuna.

A trial is a training run of its own below the study's folder. The test split is not read: what is
reported is validation, and the best thresholds are then trained and tested by `estl fit`.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import optuna
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure

from estl.training.recipe import parse
from estl.training.run import fit

RANGES = {"tau_f": (0.1, 0.9), "kappa": (0.0, 3.0)}
"""Where the TPE sampler looks."""


class Report(Callback):
    """Tells the trial each validation's score, and ends it where the study prunes it."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.best = float("-inf")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the epoch by validation accuracy; the validation loss decides between equals."""
        if trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics["val/rank"])
        self.best = max(self.best, score)
        self.trial.report(score, trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def tune(
    words: Sequence[str],
    folder: Path,
    *,
    trials: int = 20,
    grid: dict[str, list[float]] | None = None,
    storage: str | None = None,
    prune: bool = True,
    seed: int = 0,
) -> optuna.Study:
    """Search tau_f and kappa; a study that exists is continued up to `trials` trials in all.

    Several machines may work on one study: give each the same `storage` and `folder` name.

    Args:
        words: of `estl fit`; the supervision is TSE.
        folder: holds the run folders and, unless `storage` is given, the study (SQLite).
        trials: finished or pruned trials after which the search ends.
        grid: values of `tau_f` and `kappa` to try, every pair once; None searches `RANGES` by TPE.
        storage: any Optuna storage URL.
        prune: stop trials that are worse than the median of the others at the same epoch.
        seed: of the sampler. Every trial trains with the seed of the recipe.

    Returns:
        The study; `study.best_trial` is the best.

    Raises:
        ValueError: `trials` below 1, or a grid without values.
    """
    if trials < 1:
        raise ValueError(f"trials={trials}: at least 1")
    if grid is not None and not all(grid.get(name) for name in RANGES):
        raise ValueError(f"grid={grid}: give values for both of {', '.join(RANGES)}")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    values = {name: sorted(set(listed)) for name, listed in (grid or {}).items()}
    study = optuna.create_study(
        study_name=folder.name,
        storage=storage or f"sqlite:///{folder.resolve() / 'study.db'}",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3)
        if prune
        else optuna.pruners.NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )
    if grid is None:  # a continued study draws other values than it began with
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    else:
        study.sampler = optuna.samplers.GridSampler(values, seed)
        trials = min(trials, math.prod(len(values[name]) for name in RANGES))

    def objective(trial: optuna.Trial) -> float:
        if grid is None:
            chosen = {name: trial.suggest_float(name, *RANGES[name]) for name in RANGES}
        else:
            chosen = {name: trial.suggest_categorical(name, values[name]) for name in RANGES}
        options = [f"--supervision.init_args.{name}={value}" for name, value in chosen.items()]
        run = folder / f"trial{trial.number:03d}"
        config, given = parse([*words, "--tse", *options, f"--output-dir={run}"])
        report = Report(trial)
        found = fit(config, given, callbacks=[report], test=False)
        trial.set_user_attr("accuracy", found["val"]["best_on_validation"]["accuracy"])
        return report.best

    while (left := trials - len(ended(study))) > 0:
        study.optimize(objective, n_trials=1)
        last = study.trials[-1]
        print(f"trial {last.number} {last.state.name.lower()}: {last.params}, {left - 1} left")
    return study


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The finished and the pruned trials."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def write(study: optuna.Study, folder: Path, command: str) -> str:
    """Write `tune.md`, `tune.json` and `tune.png` into `folder`; return the Markdown.

    Raises:
        ValueError: every trial was pruned.
    """
    trials = ended(study)
    finished = [
        trial for trial in trials if trial.value is not None and "accuracy" in trial.user_attrs
    ]
    if not finished:
        raise ValueError(f"no trial in {folder} has finished: give more --trials, or --no-prune")
    finished.sort(key=lambda trial: -(trial.value or 0.0))
    lines = [
        f"### tau_f and kappa: {len(finished)} trials, {len(trials) - len(finished)} more pruned",
        "",
        "| trial | tau_f | kappa | best validation accuracy % |",
        "|---|---|---|---|",
        *(
            f"| {t.number} | {t.params['tau_f']:.3f} | {t.params['kappa']:.3f} "
            f"| {100 * t.user_attrs['accuracy']:.2f} |"
            for t in finished
        ),
        "",
        f"`{command}`  ",
        "Equal accuracies are ordered by validation loss. The test split was not read.",
        "",
    ]
    text = "\n".join(lines)
    (folder / "tune.md").write_text(text)
    record = [t.params | {"trial": t.number} | t.user_attrs for t in finished]
    (folder / "tune.json").write_text(json.dumps({"command": command, "trials": record}, indent=2))
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    shown = axes.scatter(
        [t.params["tau_f"] for t in finished],
        [t.params["kappa"] for t in finished],
        c=[100 * t.user_attrs["accuracy"] for t in finished],
    )
    figure.colorbar(shown, label="best validation accuracy, %")
    axes.set(xlabel="tau_f", ylabel="kappa")
    figure.savefig(folder / "tune.png", dpi=120)
    return text
