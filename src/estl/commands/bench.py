"""`estl bench`: what ESTL costs, beside other frameworks and beside what it cannot go below."""

from pathlib import Path


def bench(
    *names: str, rounds: int = 7, threads: int | None = None, output_dir: Path | None = None
) -> int:
    """Compare times and memory side by side in one run. The machine must be idle.

    Candidates take turns; a figure is the median over the rounds, of their seconds or of the ratio
    in a round. Frameworks that are not installed are left out. The exit status is 1 if a bound that
    the package sets itself does not hold.

    Args:
        names: some of the comparisons (default: all, about an hour on two cores); an unknown one
            lists them.
        rounds: turns of each candidate.
        threads: of every operation (default: one for each core).
        output_dir: gets bench.md and bench.json.
    """
    import torch

    from estl.experiments.bench.bench import bench as run

    results = run(names, rounds, threads or torch.get_num_threads(), output_dir)
    broken = [line for result in results for line in result.broken]
    if broken:
        print("does not hold: " + "; ".join(broken))
    return 1 if broken else 0
