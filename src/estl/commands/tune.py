"""`estl tune`: search the thresholds of TSE on the validation split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from estl.commands.flags import ANY, Overrides, TrainingFlags
from estl.commands.sweep import Floats, Launcher, PerRun, check_jobs


def tune(
    *overrides: Overrides,
    flags: TrainingFlags = ANY,
    output_dir: Path,
    trials: int = 20,
    grid_tau_f: Floats = (),
    grid_kappa: Floats = (),
    storage: str | None = None,
    jobs: int | None = None,
    launcher: Launcher = "local",
    per_run: PerRun = "",
    prune: Annotated[bool, Parameter(negative="--no-prune")] = True,
) -> None:
    """Search tau_f and kappa of TSE on the validation split with Optuna.

    Args:
        output_dir: the study's folder; an existing one is continued.
        trials: total trials, counting earlier ones.
        grid_tau_f: grid of values, all pairs, no TPE: 0.3,0.5,0.7.
        grid_kappa: likewise, e.g. 0.5,1,2.
        storage: Optuna storage URL (default: SQLite there).
        jobs: number of trials at a time.
        launcher: local, ray or slurm (--per-run: docs/scale.md).
        per_run: resources that a trial asks of the cluster, e.g. num_gpus=1,num_cpus=4.
        prune: end trials below the median.
    """
    from estl.experiments.sweep import keep_recipe
    from estl.experiments.tune import open_study, work_together
    from estl.experiments.tune import tune as search
    from estl.report.search import write
    from estl.training.processes import take_over
    from estl.training.results import command_line

    if trials < 1:
        raise ValueError(f"--trials is {trials}: give a number at least 1")
    if bool(grid_tau_f) != bool(grid_kappa):
        raise ValueError("a grid needs both: give --grid-tau-f and --grid-kappa, or neither")
    if launcher != "local" and (storage is None or storage.startswith("sqlite")):
        raise ValueError(
            f"--launcher {launcher} needs a --storage that all machines reach, as "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME: SQLite is for one"
        )
    at_once = check_jobs(jobs) or 1
    if not take_over():
        return
    recipe = keep_recipe(flags.spell_out(overrides), output_dir)
    grid: dict[str, Sequence[float]] | None = None
    if grid_tau_f:
        grid = {"tau_f": grid_tau_f, "kappa": grid_kappa}
    if launcher != "local" or at_once > 1:
        with open_study(output_dir, storage, prune):
            pass  # it is there, or those that begin together would each make it
        work_together(launcher, output_dir, at_once, trials, grid, storage, prune, per_run)
    with open_study(output_dir, storage, prune) as study:
        search(study, recipe, output_dir, trials=trials, grid=grid)
        print(write(study, output_dir, command_line()))
    print(f"table, figure and run folders: {output_dir}")
