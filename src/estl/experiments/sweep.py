"""Several variants of one recipe, each with several seeds, under the same data and budget.

Every (variant, seed) is an `estl fit` of its own in a process of its own: its memory can be
measured, a failure stays with it, and an interrupted sweep goes on where it stopped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

DIAGNOSIS = {"cosine": 1.0, "cka": 1.0, "erased": 100.0, "firing_rate": 100.0, "energy_uj": 1.0}
"""What the second table shows of `diagnostics.summary`, and the factor it is shown with."""


@dataclass(frozen=True)
class Variant:
    """One row of the table: a name, what it is, and the words it adds to `estl fit`."""

    name: str
    what: str
    words: tuple[str, ...]


def sweep(
    base: Sequence[str],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Path,
    *,
    jobs: int = 1,
) -> dict[str, list[dict[str, Any]]]:
    """Run what has not finished yet; return the `results.json` of every run, by variant.

    Args:
        base: words of `estl fit` that all share.
        variants: what differs.
        seeds: of weights and batch order; the split stays the same.
        folder: one folder per variant and seed is made below it.
        jobs: how many runs at a time; each gets its share of the cores.

    Raises:
        ValueError: no seeds, a run failed (the text names its log), or runs saw different data.
    """
    if not seeds:
        raise ValueError("no seeds: give at least one, as --seeds 0,1,2")
    pairs = [(variant, seed) for seed in seeds for variant in variants]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(
            lambda pair: _run(base, pair[0], pair[1], folder, environment, jobs == 1), pairs
        )
        found: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
        for (variant, seed), results in zip(pairs, done, strict=True):
            found[variant.name].append(results)
            accuracy = 100 * results["test"]["final"]["accuracy"]
            print(f"{variant.name}, seed {seed}: {accuracy:.2f} %", flush=True)
    prints = {r["data"]["fingerprint"] for runs in found.values() for r in runs}
    if len(prints) > 1:
        raise ValueError(
            f"the runs in {folder} saw different data ({sorted(prints)}): start afresh"
        )
    return found


def _run(
    base: Sequence[str],
    variant: Variant,
    seed: int,
    folder: Path,
    environment: dict[str, str],
    watched: bool,
) -> dict[str, Any]:
    run = folder / variant.name / f"seed{seed}"
    if not (run / "results.json").exists():
        run.mkdir(parents=True, exist_ok=True)
        if (run / "config.yaml").exists():
            words = ["--resume", str(run)]
        else:
            words = [*base, *variant.words, f"--seed={seed}", f"--output-dir={run}"]
        command = [sys.executable, "-m", "estl.commands", "fit", *words]
        with (run / "log.txt").open("w") as log:
            shown = None if watched else log  # one at a time: its progress bar is on the screen
            status = subprocess.run(
                command, stdout=shown, stderr=log, env=environment, check=False
            ).returncode
        if status:
            last = (run / "log.txt").read_text().strip().splitlines()[-1:]
            raise ValueError(f"{variant.name}, seed {seed} failed ({run / 'log.txt'}): {last}")
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    return results


def rows(found: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Per variant mean and standard deviation over seeds, in points of accuracy.

    >>> run = {"test": {w: {"accuracy": 0.5, "per_step": [0.4, 0.5]} for w in
    ...        ("final", "best_on_validation")}, "train_seconds": 2.0, "peak_memory_mib": 10.0}
    >>> next(rows({"plain": [run, run]}))["final"]
    (50.0, 0.0)
    """
    for name, runs in found.items():
        per_step = zip(*(r["test"]["final"]["per_step"] for r in runs), strict=True)
        yield {
            "name": name,
            "seeds": len(runs),
            "final": spread([100 * r["test"]["final"]["accuracy"] for r in runs]),
            "best": spread([100 * r["test"]["best_on_validation"]["accuracy"] for r in runs]),
            "per_step": [spread([100 * a for a in step]) for step in per_step],
            "seconds": mean(r["train_seconds"] for r in runs),
            "memory": mean(r["peak_memory_mib"] for r in runs),
        }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 for one value)."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def write(
    found: dict[str, list[dict[str, Any]]],
    variants: Sequence[Variant],
    folder: Path,
    *,
    title: str,
    command: str,
) -> str:
    """Write `results.md`, `results.json` and `results.png` into `folder`; return the Markdown."""
    table = list(rows(found))
    text = markdown(table, variants, found, title=title, command=command)
    (folder / "results.md").write_text(text)
    (folder / "results.json").write_text(
        json.dumps({"command": command, "rows": table, "runs": found}, indent=2) + "\n"
    )
    plot(table, folder / "results.png", title=title)
    return text


def markdown(
    table: Sequence[dict[str, Any]],
    variants: Sequence[Variant],
    found: dict[str, list[dict[str, Any]]],
    *,
    title: str,
    command: str,
) -> str:
    """The table, with what its figures stand on."""
    first = next(iter(found.values()))[0]
    base = table[0]["final"][0]
    lines = [
        f"### {title}",
        "",
        "| | variant | final % | against the first | best on validation % | train s | MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    what = {variant.name: variant.what for variant in variants}
    for row in table:
        final, best = row["final"], row["best"]
        lines.append(
            f"| {row['name']} | {what[row['name']]} | {final[0]:.2f} ± {final[1]:.2f} "
            f"| {final[0] - base:+.2f} | {best[0]:.2f} ± {best[1]:.2f} "
            f"| {row['seconds']:.0f} | {row['memory']:.0f} |"
        )
    steps = len(table[0]["per_step"])
    lines += [
        "",
        "Accuracy (%) after each time step, final weights:",
        "",
        "| |" + "|".join(f" t={t} " for t in range(1, steps + 1)) + "|",
        "|---|" + "---|" * steps,
    ]
    for row in table:
        lines.append(
            f"| {row['name']} |" + "|".join(f" {m:.1f} " for m, _ in row["per_step"]) + "|"
        )
    lines += [
        "",
        "Final weights, test split: similarity of the features between time steps (mean over pairs "
        "of steps), places that would be erased, spikes a neuron and step, estimated energy:",
        "",
        "| | cosine of maps | linear CKA | erased % | firing rate % | µJ a sample |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        cells = [
            _figure([r["diagnosis"][key] for r in runs], scale) for key, scale in DIAGNOSIS.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = [run["seed"] for run in next(iter(found.values()))]
    data, machine, sizes = first["data"], first["machine"], first["data"]["sizes"]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    lines += [
        "",
        f"`{command}`  ",
        f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation over seeds. "
        f"Data {data['name']} {data['fingerprint']} "
        f"({', '.join(f'{k} {v}' for k, v in sizes.items())}). {versions}. "
        f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores. "
        f"Finished {first['finished'][:10]}. Figures are on the test split, read once per run.",
        "",
    ]
    return "\n".join(lines)


def _figure(values: Sequence[float | None], scale: float) -> str:
    known = [scale * v for v in values if v is not None]
    return "{:.3f} ± {:.3f}".format(*spread(known)) if len(known) == len(values) else "-"


def plot(table: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Accuracy after each step, and the final one with its spread, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    over_time, last = figure.subplots(1, 2)
    for row in table:
        steps = range(1, len(row["per_step"]) + 1)
        over_time.plot(steps, [m for m, _ in row["per_step"]], marker="o", label=row["name"])
    over_time.set(xlabel="time step t", ylabel="test accuracy after step t, %", title=title)
    over_time.set_xticks(range(1, len(table[0]["per_step"]) + 1))
    over_time.legend(fontsize=8)
    for place, row in enumerate(table):
        for shift, key, color in ((-0.1, "final", "C0"), (0.1, "best", "C1")):
            m, s = row[key]
            last.errorbar(place + shift, m, yerr=s, fmt="o", color=color, capsize=3)
    last.set_xticks(range(len(table)), [row["name"] for row in table], rotation=30, ha="right")
    last.set(ylabel="test accuracy, %", title="blue: final weights; orange: best on validation")
    figure.savefig(path, dpi=120)
