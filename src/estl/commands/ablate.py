"""`estl ablate`: what each part of the guided distillation adds."""

from pathlib import Path

from estl.commands.flags import ANY, Overrides, TrainingFlags
from estl.commands.sweep import Launcher, Names, PerRun, Seeds, run_sweep


def ablate(
    *overrides: Overrides,
    flags: TrainingFlags = ANY,
    output_dir: Path,
    rungs: Names = (),
    seeds: Seeds = (0, 1, 2),
    jobs: int | None = None,
    launcher: Launcher = "local",
    per_run: PerRun = "",
) -> None:
    """Train every rung of the guided distillation on the same data, seeds and budget.

    Args:
        output_dir: the sweep's folder; an existing one is continued.
        rungs: some of 1,1t,2,2b,2k,2kt,2bk,2bkt,2s,2w,3,4,5,6
            (default: all); for controls see docs/supervision.md.
        seeds: comma-separated, e.g. 0,1,2.
        jobs: number of runs at a time.
        launcher: local, ray or slurm (--per-run: docs/scale.md).
        per_run: resources that a run asks of the cluster, e.g. num_gpus=1,num_cpus=4.
    """
    from estl.experiments.ablate import rungs as variants

    args = flags.spell_out(overrides)
    run_sweep(
        "Ablation",
        args,
        lambda recipe: variants(recipe, rungs),
        seeds,
        output_dir,
        jobs,
        launcher,
        per_run,
        bases=("1", "2"),
    )
