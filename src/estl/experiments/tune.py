"""`estl tune`: the thresholds of TSE, chosen on the validation split by Optuna.

A trial is a training run of its own below the study's folder. The test split is not read: what is
reported is validation, and the best thresholds are then trained and tested by `estl fit`.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import OptunaError, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from estl.experiments.jobs import Job
from estl.experiments.launch import launch
from estl.experiments.sweep import rates_of_the_student
from estl.supervision import TSE
from estl.training.names import public_path
from estl.training.recipe import merge, parse_recipe
from estl.training.rehearsal import duration, rehearse
from estl.training.results import without_password
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


class ByTrial(optuna.samplers.BaseSampler):
    """TPE that draws a trial's values from the seed and the trial's number.

    Processes that begin together on one study draw different values, and a study that is continued
    draws what it would have drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Begin anew."""
        self.tpe = optuna.samplers.TPESampler(seed=self.seed + trial.number, constant_liar=True)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, Any]:
        """No values are drawn together."""
        return {}

    def sample_relative(self, *args: Any) -> dict[str, Any]:
        """None of them."""
        return {}

    def sample_independent(self, *args: Any) -> Any:
        """A value, as TPE draws it."""
        return self.tpe.sample_independent(*args)


def tune(
    study: optuna.Study,
    recipe: dict[str, Any],
    folder: Path,
    *,
    trials: int = 20,
    grid: dict[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> None:
    """Search tau_f and kappa; a study that has trials is continued up to `trials` of them in all.

    Several processes may work on one study, even on different machines: give each the same storage
    and `folder`. A trial that is under way when the others have done `trials` is still finished.

    Args:
        study: from `open_study`; at the end `study.best_trial` is the best.
        recipe: plain values; its supervision becomes TSE.
        folder: holds the run folders.
        trials: finished or pruned trials after which the search ends.
        grid: values of `tau_f` and `kappa` to try, every pair once; None searches `RANGES` by TPE.
        seed: seed of the sampler. Every trial trains with the seed of the recipe.

    Raises:
        ValueError: `trials` below 1, a grid without values, a study that has tried others, or data
            without a validation split.
    """
    if trials < 1:
        raise ValueError(f"trials={trials}: at least 1")
    if grid is not None and not all(grid.get(name) for name in RANGES):
        raise ValueError(f"grid={grid}: give values for both of {', '.join(RANGES)}")
    values = {name: sorted(set(listed)) for name, listed in (grid or {}).items()}
    _refuse_other_values(study, values)
    if grid is None:
        study.sampler = ByTrial(seed)
    else:
        study.sampler = optuna.samplers.GridSampler(values, seed)
        trials = min(trials, math.prod(len(values[name]) for name in RANGES))

    known = recipe.get("supervision", {}).get("class_path") == public_path(TSE)
    parts = {} if known else rates_of_the_student(recipe)  # others are of a supervision that goes

    def overlay(chosen: dict[str, Any]) -> dict[str, Any]:
        return {"supervision": {"class_path": public_path(TSE), "init_args": chosen}} | parts

    if not ended(study):
        rehearsal = rehearse(*parse_recipe(merge(recipe, overlay({}))))
        if not rehearsal.parts.data.sizes["val"]:
            raise ValueError("tune ranks by validation: give a val_fraction above 0")
        print(f"trials in all: {trials}, each about {duration(rehearsal.seconds)}", flush=True)

    def objective(trial: optuna.Trial) -> float:
        if grid is None:
            chosen = {name: trial.suggest_float(name, *RANGES[name]) for name in RANGES}
        else:
            chosen = {name: trial.suggest_categorical(name, values[name]) for name in RANGES}
        run = folder / f"trial{trial.number:03d}"
        report, values_of = Report(trial), overlay(chosen) | {"output_dir": str(run)}
        try:
            finished = fit(*parse_recipe(merge(recipe, values_of)), callbacks=[report], test=False)
        except (KeyboardInterrupt, OSError):
            if grid is not None:
                _again(study, trial.number)
            raise
        assert finished is not None, "trials run in one process"
        if (best := finished[1].val.get("best_on_validation")) is None:
            raise ValueError(f"{run}: no epoch was validated: correct the keys of the trainer")
        trial.set_user_attr("accuracy", best.final)
        trial.set_user_attr("samples", best.samples)
        trial.set_user_attr("classes", finished[1].of.data.classes)
        return report.best

    def show(study: optuna.Study, last: optuna.trial.FrozenTrial) -> None:
        left = max(0, trials - len(ended(study)))
        print(f"trial {last.number} {last.state.name.lower()}: {last.params}, {left} left")

    while len(ended(study)) < trials:
        study.optimize(objective, n_trials=1, callbacks=[show])


def _refuse_other_values(study: optuna.Study, grid: dict[str, list[float]]) -> None:
    """Raise ValueError where the trials of a study were drawn of other values than these."""
    kinds: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(grid[name]) if grid else FloatDistribution(*RANGES[name])
        for name in RANGES
    }
    for trial in study.get_trials(deepcopy=False):
        if any(kinds[name] != kind for name, kind in trial.distributions.items()):
            raise ValueError(
                f"the study {study.study_name} has tried other values of tau_f and kappa (a grid "
                "is continued with the same one): choose another --output-dir"
            )


def _again(study: optuna.Study, number: int) -> None:
    """Queue the pair of an interrupted trial again: its sampler counts a failed trial as done."""
    kept = study.get_trials(deepcopy=False)[number].system_attrs
    waiting = optuna.trial.TrialState.WAITING
    study.add_trial(optuna.create_trial(state=waiting, system_attrs=kept))


@contextmanager
def open_study(
    folder: Path, storage: str | None = None, prune: bool = True
) -> Iterator[optuna.Study]:
    """The study of a folder, made if it is not there, open until the end of the block.

    Args:
        folder: holds the study (SQLite), unless `storage` is given, and names it.
        storage: any Optuna storage URL.
        prune: stop trials that are worse than the median of the others at the same epoch.

    Raises:
        ValueError: it cannot be opened, or within the block not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage or f"sqlite:///{folder.resolve() / 'study.db'}"
    shown = without_password(url)
    with ExitStack() as after:
        try:
            database = optuna.storages.RDBStorage(url)
            after.callback(database.engine.dispose)  # Optuna leaves connections open
            after.callback(database.remove_session)
            study = optuna.create_study(
                study_name=folder.resolve().name,
                storage=database,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3)
                if prune
                else optuna.pruners.NopPruner(),
                direction="maximize",
                load_if_exists=True,
            )
        # RuntimeError for a study of another version of Optuna, KeyError for a table that lacks
        # rows.
        except (SQLAlchemyError, OptunaError, ImportError, RuntimeError, KeyError) as error:
            raise ValueError(
                f"the study in {shown} cannot be opened ({_reason(error)}): give another "
                "--storage, or another --output-dir"
            ) from None
        try:
            yield study
        except StorageInternalError as error:
            raise ValueError(
                f"the study in {shown} cannot be written ({_reason(error)}): mend that, and go on "
                "with the same command"
            ) from None


def _reason(error: Exception) -> str:
    """What a database said, in one line."""
    return without_password(" ".join(str(error.__cause__ or error).split())[:200])


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The finished and the pruned trials."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def work_together(
    launcher: str,
    folder: Path,
    workers: int,
    trials: int,
    grid: dict[str, Sequence[float]] | None,
    storage: str | None,
    prune: bool,
    per_run: str,
) -> None:
    """Run the trials of a study in processes of `estl tune`, `workers` at a time.

    They read the recipe that is kept in the folder. The other arguments are those of `tune`,
    `open_study` and `experiments.launch.launch`.
    """
    args = ["tune", f"--config={folder.resolve() / 'recipe.yaml'}", f"--trials={trials}"]
    args += [f"--output-dir={folder.resolve()}"]
    args += [] if storage is None else [f"--storage={storage}"]
    args += [] if prune else ["--no-prune"]
    for name, values in (grid or {}).items():
        args += [f"--grid-{name.replace('_', '-')}={','.join(map(str, values))}"]
    jobs = [
        Job(f"worker {i}", folder.resolve() / f"worker{i}", tuple(args), os.getcwd())
        for i in range(min(workers, trials))
    ]
    for job in launch(launcher, jobs, folder, 0 if launcher != "local" else len(jobs), per_run):
        print(f"{job.name} has ended", flush=True)
