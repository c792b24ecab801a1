"""`estl bench`: what ESTL costs, beside other frameworks and beside its lower bound."""

from pathlib import Path

from estl.commands.flags import RECIPES, TrainingFlags


def bench(
    *names: str,
    rounds: int = 7,
    threads: int | None = None,
    memory: bool = False,
    output_dir: Path | None = None,
) -> int:
    """Compare times and memory side by side in one run. The machine must be idle.

    Candidates take turns; a figure is the median over the rounds, either of their seconds or of the
    ratio within a round. Frameworks that are not installed are left out. The exit status is 1 if a
    bound that the package sets itself does not hold.

    Args:
        names: comparisons to run (default: all, about an hour on two cores);
            an unknown name lists them. With --memory: recipes
            (default: all of ESTL's own).
        rounds: number of turns of each candidate.
        threads: threads of every operation (default: one per core).
        memory: compute which batch sizes of recipes fit GPUs of 8, 24
            and 80 GiB. Runs nothing, and needs neither a GPU nor
            data nor much memory.
        output_dir: folder to write bench.md and bench.json to.
    """
    if memory:
        from estl.experiments.bench.memory import memory as fitting

        chosen = names or [path.stem for path in sorted(RECIPES.glob("*.yaml"))]
        recipes = {name: TrainingFlags(config=(name,)).spell_out() for name in chosen}
        print(f"\n{fitting(recipes, output_dir)}")
        return 0

    import torch

    from estl.experiments.bench.bench import bench as run

    results = run(names, rounds, threads or torch.get_num_threads(), output_dir)
    broken = [line for result in results for line in result.broken]
    if broken:
        print("does not hold: " + "; ".join(broken))
    return 1 if broken else 0
