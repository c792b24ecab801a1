"""`estl compare`: plain, TET and TSE side by side."""

from pathlib import Path

from estl.commands.flags import ANY, Overrides, TrainingFlags
from estl.commands.sweep import Launcher, Names, PerRun, Seeds, run_sweep


def compare(
    *overrides: Overrides,
    flags: TrainingFlags = ANY,
    output_dir: Path,
    only: Names = (),
    seeds: Seeds = (0, 1, 2),
    jobs: int | None = None,
    launcher: Launcher = "local",
    per_run: PerRun = "",
    robust: bool = False,
    eps: str = "8/255",
) -> None:
    """Plain cross-entropy, TET, and TSE at three thresholds, on the same data, seeds and budget.

    The recipe's own supervision is replaced.

    Args:
        output_dir: the sweep's folder; an existing one is continued.
        only: some of plain, tet, tse, tse-aggressive, tse-conservative (default: these), tre,
            tse+tet, or your own: my_loss.yaml, a partial recipe with a supervision.
        seeds: comma-separated, e.g. 0,1,2.
        jobs: number of runs at a time.
        launcher: local, ray or slurm (--per-run: docs/scale.md).
        per_run: resources that a run asks of the cluster, e.g. num_gpus=1,num_cpus=4.
        robust: also test every run under attack and noise.
        eps: share of a sample's range.
    """
    from estl.evaluation.attacks import parse_eps
    from estl.experiments.compare import experiments, robustness
    from estl.report.comparison import robustness_table

    size, variants = parse_eps(eps), experiments(only)
    args = flags.spell_out(overrides)
    ran = run_sweep(
        "Comparison",
        args,
        lambda recipe: experiments(only, recipe),
        seeds,
        output_dir,
        jobs,
        launcher,
        per_run,
        ["supervision"],
    )
    if ran and robust:
        text = robustness_table(robustness(variants, seeds, output_dir, size), size)
        (output_dir / "robustness.md").write_text(text)
        print(text)
