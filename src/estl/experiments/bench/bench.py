"""Run comparisons, and write their results beside a description of the machine."""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from estl.experiments.bench.comparisons import COMPARISONS
from estl.experiments.bench.race import Bound, Comparison, Timed, mebibytes, race
from estl.report.tables import table
from estl.training.results import command_line, processor

PACKAGES = ("estl", "torch", "transformers", "numpy", "spikingjelly", "snntorch")


@dataclass(frozen=True)
class Result:
    """The result of one comparison.

    Args:
        comparison: what was compared.
        timed: seconds by candidate.
        memory: MiB by candidate, where it was measured.
    """

    comparison: Comparison
    timed: Timed
    memory: dict[str, float | None]

    def ratio(self, bound: Bound) -> float | None:
        """The ratio that a bound limits; None if a candidate or its memory is missing."""
        if not bound.memory:
            return self.timed.ratio(bound.of, bound.over)
        names = bound.of, bound.over, *(bound.since or ())
        found = [m for m in map(self.memory.get, names) if m is not None]
        if len(found) < len(names):
            return None
        of, over, *since = found
        before = since or [0.0, 0.0]
        return (of - before[0]) / (over - before[1])

    @property
    def broken(self) -> list[str]:
        """The bounds that do not hold, each as a line."""
        lines = []
        for bound in self.comparison.bounds:
            ratio = self.ratio(bound)
            if ratio is not None and not bound.holds(ratio):
                lines.append(
                    f"{self.comparison.name}: {bound} takes {ratio:.2f} of {bound.over}, at "
                    f"most {bound.at_most:.2f}"
                )
        return lines

    def markdown(self) -> str:
        """A table of the candidates, and a line for each bound."""
        base = next(iter(self.timed.wall))
        rows = []
        for name, wall in self.timed.wall.items():
            ratio, memory = self.timed.ratio(name, base), self.memory.get(name)
            rows.append(
                [
                    name,
                    f"{1e3 * median(wall):.1f}",
                    f"{1e3 * median(self.timed.cpu[name]):.1f}",
                    f"{ratio:.2f}",
                    "" if memory is None else f"{memory:.0f}",
                ]
            )
        rows += [[name, why, "", "", ""] for name, why in self.timed.absent.items()]
        lines = [f"## {self.comparison.name}", "", f"{self.comparison.what[0].upper()}"]
        lines[-1] += f"{self.comparison.what[1:]}."
        lines += ["", table(["", "ms", "CPU ms", f"of {base}", "MiB"], rows), ""]
        for bound in self.comparison.bounds:
            found = self.ratio(bound)
            if found is not None:
                verdict = "holds" if bound.holds(found) else "**does not hold**"
                lines.append(
                    f"* {bound} over {bound.over}: {found:.2f}, at most {bound.at_most:.2f}: "
                    f"{verdict}"
                )
        return "\n".join(lines) + "\n"


def bench(names: Sequence[str], rounds: int, threads: int, folder: Path | None) -> list[Result]:
    """Run comparisons one after the other; print each when it is done.

    Args:
        names: keys of `COMPARISONS`; all if empty.
        rounds: number of turns of each candidate.
        threads: threads of every operation.
        folder: gets `bench.md` and `bench.json`, rewritten after each comparison; or None.

    Raises:
        ValueError: no such comparison, or numbers below 1.
    """
    unknown = set(names) - set(COMPARISONS)
    if unknown:
        raise ValueError(f"no comparison {min(unknown)}: choose from {', '.join(COMPARISONS)}")
    if threads < 1:
        raise ValueError(f"threads={threads}: give at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    results: list[Result] = []
    try:
        head = machine() | {"threads": threads, "rounds": rounds}
        print("\n".join(f"{key}: {value}" for key, value in head.items()), flush=True)
        for name in names or COMPARISONS:
            comparison = COMPARISONS[name]
            timed = race(comparison.candidates, rounds)
            memory = {}
            if comparison.memory:
                memory = {kind: mebibytes(name, kind, threads) for kind in timed.wall}
            results.append(Result(comparison, timed, memory))
            print(f"\n{results[-1].markdown()}", flush=True)
            if folder is not None:
                tables = "\n".join(result.markdown() for result in results)
                write(folder, head, tables, _found(results))
    finally:
        torch.set_num_threads(before)
    return results


def machine() -> dict[str, Any]:
    """What has to accompany figures: command, processor, load, versions, date."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": command_line(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()[:2]),
        "allocator": " ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith("MALLOC_")),
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{k} {v}" for k, v in versions.items())]
        ),
        "when": time.strftime("%Y-%m-%d"),
    }


def write(folder: Path, head: dict[str, Any], tables: str, found: dict[str, Any]) -> None:
    """Write `bench.md` and `bench.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = "\n".join(f"* {key}: {value}" for key, value in head.items())
    (folder / "bench.md").write_text(f"# Benchmarks\n\n{facts}\n\n{tables}")
    (folder / "bench.json").write_text(json.dumps({"machine": head, "found": found}, indent=2))


def _found(results: list[Result]) -> dict[str, Any]:
    return {
        result.comparison.name: {
            "what": result.comparison.what,
            "seconds": result.timed.wall,
            "cpu_seconds": result.timed.cpu,
            "absent": result.timed.absent,
            "mebibytes": result.memory,
            "broken": result.broken,
        }
        for result in results
    }
