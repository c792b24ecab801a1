"""`estl ablate`: what each part of the guided distillation adds."""

from pathlib import Path

from estl.commands.flags import ANY, Overrides, TrainingFlags
from estl.commands.sweep import Names, Seeds, run_sweep


def ablate(
    *overrides: Overrides,
    flags: TrainingFlags = ANY,
    output_dir: Path,
    rungs: Names = (),
    seeds: Seeds = (0, 1, 2),
    jobs: int = 1,
) -> None:
    """Every rung of the guided distillation, on the same data, seeds and budget.

    Args:
        output_dir: the sweep's folder; one that exists is continued.
        rungs: some of 1,2,2s,2w,3,4,5,6,6x,6s,6m,6j (default: all that the recipe can have).
        seeds: comma-separated, e.g. 0,1,2.
        jobs: runs at a time.
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
        bases=("1", "2"),
    )
