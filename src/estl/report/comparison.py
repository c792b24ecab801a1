"""The table and the plot of a sweep."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from estl.report.chance import chance_warning
from estl.report.intervals import Interval, axis, difference, estimate
from estl.report.sources import COLORS
from estl.report.tables import plus_minus, table
from estl.training.results import CheckpointResults, Results, Weights

Found = Mapping[str, Sequence[Results]]
"""The results of every run, by variant."""

DIAGNOSIS = {"cosine": 1.0, "cka": 1.0, "erased": 100.0, "firing_rate": 100.0, "energy_uj": 1.0}
"""What the second table shows of `diagnostics.summary`, and the factor it is shown with."""


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
        what: what each variant is, by its name.
        folder: the sweep's.
        title: title of table and plot.
        command: the command that makes them.
        bases: variants that the others are compared with, if present; otherwise the first.
    """
    text = markdown(found, what, title=title, command=command, bases=bases)
    (folder / "results.md").write_text(text)
    runs = {name: [json.loads(run.to_json()) for run in runs] for name, runs in found.items()}
    (folder / "results.json").write_text(
        json.dumps({"command": command, "runs": runs}, indent=2) + "\n"
    )
    plot(found, what, folder / "results.png")
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
    longest = max(map(len, steps.values()))  # a variant may have fewer time steps
    times = [f"t={t}" for t in range(1, longest + 1)]
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

{table(["", *times], [[name, *_filled(row, longest)] for name, row in steps.items()])}

Final weights, test split: similarity of the features between time steps (mean over pairs of steps),
places that would be erased, spikes a neuron and step, estimated energy:

{table(alike, [[name, *_diagnoses(runs)] for name, runs in found.items()])}
{_uncounted(found)}
    {command}

Seeds {seeds}; mean ± standard deviation over seeds. Differences are paired by seed and sample;
their intervals count the scatter of both{together}.
Data {of.data.name} {of.data.fingerprint}
({sizes}). {versions}. {of.machine}. Finished {of.finished[:10]}. Figures are on the test split,
read once per run.
"""


def _filled(row: Sequence[float], length: int) -> list[str]:
    """Cells of a row, with empty ones at its end."""
    return [*(f"{a:.1f}" for a in row), *[""] * (length - len(row))]


def _against(found: Found, name: str, base: str, pairs: int) -> str:
    """A cell: the difference of a variant from a base; empty for those before it, and itself."""
    names = list(found)
    if names.index(name) <= names.index(base):
        return ""
    a, b = ([run.test["final"] for run in found[n] if run.test] for n in (name, base))
    return difference(a, b, pairs) if a and b else "-"


def _diagnoses(runs: Sequence[Results]) -> list[str]:
    """A cell for each of `DIAGNOSIS`, "-" where a run has no figure; `*` at an energy too low."""
    cells = []
    for key, scale in DIAGNOSIS.items():
        values = [(run.diagnosis or {}).get(key) for run in runs]
        known = [scale * v for v in values if v is not None]
        mark = "*" if key == "energy_uj" and any(run.uncounted for run in runs) else ""
        cells.append(plus_minus(known, 3) + mark if len(known) == len(values) else "-")
    return cells


def _uncounted(found: Found) -> str:
    """The line that says which layers an energy with `*` leaves out, empty if there is none."""
    rows: dict[str, list[str]] = {}
    for name, runs in found.items():
        if layers := dict.fromkeys(layer for run in runs for layer in run.uncounted):
            rows.setdefault(", ".join(layers), []).append(name)
    if not rows:
        return ""
    told = "; ".join(f"{layers} (in {', '.join(names)})" for layers, names in rows.items())
    return f"\nµJ with * are too low: these layers have weights and are not counted: {told}\n"


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


def plot(found: Found, what: Mapping[str, str], path: Path) -> None:
    """Accuracy after each step and the final one, with 95 % intervals (`estimate`), as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    over_time, last = figure.subplots(1, 2, sharey=True)
    seen: list[Interval] = []
    longest = 0
    for place, (name, runs) in enumerate(found.items()):
        tests = [run.test["final"] for run in runs if run.test is not None]
        steps = zip(*(test.per_step for test in tests), strict=True)
        spread = [estimate(shares, tests[0].samples) for shares in steps]
        longest = max(longest, len(spread))
        seen += spread
        color = COLORS[place % len(COLORS)]
        t = [i + 1 + 0.05 * place for i in range(len(spread))]
        label = f"{name}: {what[name]}".replace("$", r"\$")  # it is text and no formula
        shape = {"color": color, "marker": "o", "capsize": 3, "label": label}
        over_time.errorbar(t, [s.value for s in spread], yerr=_bars(spread), **shape)
        end = spread[-1:]
        last.errorbar([place], [s.value for s in end], yerr=_bars(end), **shape)
    over_time.set_ylim(axis(seen))
    over_time.set(xlabel="time step t", ylabel="test accuracy after step t, %")
    over_time.set_xticks(range(1, longest + 1))
    last.set_xticks(range(len(found)), list(found))
    last.set(xlabel="after the last step, with 95 % intervals")
    figure.legend(*over_time.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    figure.savefig(path, dpi=120)


def _bars(spread: Sequence[Interval]) -> list[list[float]]:
    """Lengths of error bars, downwards and upwards."""
    return [[s.value - s.low for s in spread], [s.high - s.value for s in spread]]
