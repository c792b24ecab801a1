"""The table and the plot of a sweep."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from estl.report.chance import chance_warning
from estl.report.intervals import difference
from estl.report.tables import plus_minus, spread, table
from estl.training.results import CheckpointResults, Results, Weights

Found = Mapping[str, Sequence[Results]]
"""The results of every run, by variant."""

DIAGNOSIS = {"cosine": 1.0, "cka": 1.0, "erased": 100.0, "firing_rate": 100.0, "energy_uj": 1.0}
"""What the second table shows of `diagnostics.summary`, and the factor it is shown with."""


WEIGHTS: tuple[tuple[float, Weights, str], ...] = (
    (-0.1, "final", "C0"),
    (0.1, "best_on_validation", "C1"),
)
"""How the plot sets the two accuracies of a variant beside each other."""


def accuracies(runs: Sequence[Results], weights: Weights) -> list[float]:
    """Test accuracy of each run in percent; empty if nothing was selected on validation."""
    tests = [run.test for run in runs if run.test is not None]
    return [100 * test[weights].final for test in tests if weights in test]


def per_step(runs: Sequence[Results]) -> list[float]:
    """Test accuracy of the final weights after each time step in percent, mean over runs."""
    tests = [run.test["final"].per_step for run in runs if run.test is not None]
    return [100 * mean(step) for step in zip(*tests, strict=True)]


def write(
    found: Found,
    what: Mapping[str, str],
    folder: Path,
    *,
    title: str,
    command: str,
    bases: Sequence[str] = (),
) -> str:
    """Write `results.md`, `results.json` and `results.png` into `folder`; return the Markdown.

    Args:
        found: what a sweep returned.
        what: each variant is, by its name.
        folder: the sweep's.
        title: of table and plot.
        command: that makes them.
        bases: variants that the others are compared with, where they are there; else the first.
    """
    text = markdown(found, what, title=title, command=command, bases=bases)
    (folder / "results.md").write_text(text)
    runs = {name: [json.loads(run.to_json()) for run in runs] for name, runs in found.items()}
    (folder / "results.json").write_text(
        json.dumps({"command": command, "runs": runs}, indent=2) + "\n"
    )
    plot(found, folder / "results.png", title=title)
    return text


def markdown(
    found: Found, what: Mapping[str, str], *, title: str, command: str, bases: Sequence[str] = ()
) -> str:
    """The tables, with what their figures stand on; a warning if even the best row is at chance."""
    first = next(iter(found.values()))
    bases = [name for name in bases if name in found] or list(found)[:1]
    pairs = max(1, sum(len(found) - 1 - list(found).index(base) for base in bases))
    against = [f"against {name} [95 %]" for name in bases]
    head = ["", "variant", "final %", *against, "best on validation %", "train s", "MiB"]
    rows = [
        [
            name,
            what[name],
            plus_minus(accuracies(runs, "final")),
            *(_against(found, name, base, pairs) for base in bases),
            plus_minus(best) if (best := accuracies(runs, "best_on_validation")) else "-",
            f"{mean(run.train_seconds for run in runs):.0f}",
            f"{mean(run.peak_memory_mib for run in runs):.0f}",
        ]
        for name, runs in found.items()
    ]
    steps = {name: per_step(runs) for name, runs in found.items()}
    times = [f"t={t}" for t in range(1, len(per_step(first)) + 1)]
    alike = ["", "cosine of maps", "linear CKA", "erased %", "firing rate %", "µJ a sample"]
    of = first[0].of
    final = [mean(accuracies(runs, "final")) / 100 for runs in found.values()]
    samples = first[0].test["final"].samples if first[0].test else 0
    warning = chance_warning(final, samples, of.data.classes)
    note = f"\n**{warning}**\n" if warning else ""
    sizes = ", ".join(f"{split} {n}" for split, n in of.data.sizes.items())
    versions = ", ".join(f"{name} {number}" for name, number in of.versions.items())
    together = f", and hold together for all {pairs} of the table" if pairs > 1 else ""
    seeds = ", ".join(str(run.of.seed) for run in first)
    return f"""### {title}
{note}
{table(head, rows)}

Accuracy (%) after each time step, final weights:

{table(["", *times], [[name, *(f"{a:.1f}" for a in row)] for name, row in steps.items()])}

Final weights, test split: similarity of the features between time steps (mean over pairs of steps),
places that would be erased, spikes a neuron and step, estimated energy:

{table(alike, [[name, *_diagnoses(runs)] for name, runs in found.items()])}

    {command}

Seeds {seeds}; mean ± standard deviation over seeds. Differences are paired by seed and sample;
their intervals count the scatter of both{together}.
Data {of.data.name} {of.data.fingerprint}
({sizes}). {versions}. {of.machine}. Finished {of.finished[:10]}. Figures are on the test split,
read once per run.
"""


def _against(found: Found, name: str, base: str, pairs: int) -> str:
    """A cell: the difference of a variant from a base; empty for those before it, and itself."""
    names = list(found)
    if names.index(name) <= names.index(base):
        return ""
    a, b = ([run.test["final"] for run in found[n] if run.test] for n in (name, base))
    return difference(a, b, pairs) if a and b else "-"


def _diagnoses(runs: Sequence[Results]) -> list[str]:
    """A cell for each of `DIAGNOSIS`, "-" where a run has no figure."""
    cells = []
    for key, scale in DIAGNOSIS.items():
        values = [(run.diagnosis or {}).get(key) for run in runs]
        known = [scale * v for v in values if v is not None]
        cells.append(plus_minus(known, 3) if len(known) == len(values) else "-")
    return cells


def robustness_table(found: Mapping[str, Sequence[CheckpointResults]], eps: float) -> str:
    """Accuracy under attack and noise: mean and standard deviation over seeds, in percent."""
    conditions = list(next(iter(found.values()))[0].robustness)
    rows = [
        [
            name,
            *(plus_minus([100 * run.robustness[c] for run in runs], 1) for c in conditions),
        ]
        for name, runs in found.items()
    ]
    head = (
        f"Accuracy (%), final weights, under attack (eps {eps:.4f} of a sample's range) and noise:"
    )
    return f"{head}\n\n{table(['', *conditions], rows)}\n"


def plot(found: Found, path: Path, *, title: str) -> None:
    """Accuracy after each step, and the final one with its spread, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    over_time, last = figure.subplots(1, 2)
    if classes := next(iter(found.values()))[0].of.data.classes:
        over_time.axhline(100 / classes, color="gray", ls=":", label="chance")
        last.axhline(100 / classes, color="gray", ls=":")
    for place, (name, runs) in enumerate(found.items()):
        steps = per_step(runs)
        over_time.plot(range(1, len(steps) + 1), steps, marker="o", label=name)
        for shift, weights, color in WEIGHTS:
            if found_here := accuracies(runs, weights):
                m, s = spread(found_here)
                last.errorbar(place + shift, m, yerr=s, fmt="o", color=color, capsize=3)
    over_time.set(xlabel="time step t", ylabel="test accuracy after step t, %", title=title)
    over_time.set_xticks(range(1, len(steps) + 1))
    over_time.legend(fontsize=8)
    last.set_xticks(range(len(found)), list(found), rotation=30, ha="right")
    last.set(ylabel="test accuracy, %", title="blue: final weights; orange: best on validation")
    figure.savefig(path, dpi=120)
