"""What run folders hold, for a report: each file is read, or the reason it could not be is kept."""

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from estl.evaluation.accuracy import Accuracy
from estl.training.results import CheckpointResults, Results

T = TypeVar("T")

COLLECTED, START = "report.npz", "start.npz"
"""What `report.collect` and `report.start` write."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
"""Okabe and Ito's, which can be told apart by the color-blind, the dark ones first; and a gray."""


@dataclass
class Run:
    """A run folder. What could not be read is None, or empty, and `missing` says why.

    Args:
        folder: the run's.
        results: of `results.json`.
        config: of `config.yaml`.
        history: the columns of `history.csv` by name, NaN where a cell is empty.
        diagnosis: of `diagnostics.json`.
        robustness: accuracies under attack and noise, of `robustness.json` or `test.json`.
        collected: the arrays of `report.npz` (`report.collect`).
        start: those of `start.npz` (`report.start`), of the weights before training.
        pages: arrays of guided runs (`report.pictures`) by their epoch, in its order.
        missing: a file, and what is wrong with it.
    """

    folder: Path
    results: Results | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[str, np.ndarray] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    robustness: CheckpointResults | None = None
    collected: dict[str, np.ndarray] = field(default_factory=dict)
    start: dict[str, np.ndarray] = field(default_factory=dict)
    pages: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, part: str) -> dict[str, Any]:
        """What the recipe gives a part, such as "data"; nothing where it does not say."""
        spec = self.config.get(part)
        given = spec.get("init_args") if isinstance(spec, dict) else None
        return given if isinstance(given, dict) else {}

    def kind(self, part: str) -> str:
        """The name of a part's class, or ""."""
        spec = self.config.get(part)
        path = spec.get("class_path") if isinstance(spec, dict) else None
        return str(path or "").rpartition(".")[2]

    @property
    def seed(self) -> int | None:
        """The run's seed, if it is known."""
        return self.config.get("seed") if self.results is None else self.results.of.seed

    def accuracy(self, weights: Any = "final") -> Accuracy | None:
        """Accuracy on the test split, or else on validation; None if neither was read."""
        if self.results is None:
            return None
        return (self.results.test or self.results.val).get(weights)


@dataclass
class Variant:
    """Runs that differ in their seed alone: a row of a table, and one color everywhere.

    Args:
        name: of the row.
        what: what it is, in a few words, or "".
        color: its color in every figure.
        runs: one a seed, at least one.
    """

    name: str
    what: str
    color: str
    runs: list[Run]

    @property
    def label(self) -> str:
        """Name and what it is, for a legend."""
        return f"{self.name}: {self.what}" if self.what else self.name

    def accuracies(self, weights: str = "final") -> list[Accuracy]:
        """Accuracies of the runs that have one."""
        found = (run.accuracy(weights) for run in self.runs)
        return [accuracy for accuracy in found if accuracy is not None]

    def logs(self, column: str) -> bool:
        """Whether a run has a column in its history."""
        return any(column in run.history for run in self.runs)

    def those(self, has: Callable[[Run], object]) -> list[Run]:
        """The runs of which `has` is true."""
        return [run for run in self.runs if has(run)]

    def first(self, has: Callable[[Run], object]) -> Run | None:
        """The first run of which `has` is true."""
        return next(iter(self.those(has)), None)


def seeded(variant: Variant, run: Run) -> str:
    """The name of a variant, and the seed where this is one of several."""
    return f"{variant.name}, seed {run.seed}" if len(variant.runs) > 1 else variant.name


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what is left of one; a teacher's has a history too."""
    if (folder / "teacher.json").exists():
        return False
    return any((folder / name).exists() for name in ("config.yaml", "history.csv")) or (
        (folder / "results.json").exists() and not (folder / "results.md").exists()
    )


def runs_in(path: Path) -> list[Path]:
    """The folder itself if it holds a run, or those that do up to two levels below: a sweep's."""
    if is_run(path):
        return [path]
    return sorted(filter(is_run, [*path.glob("*"), *path.glob("*/*")]))


def finished(path: Path) -> bool:
    """Whether a run has ended, or a sweep, which writes its own results after those of its runs."""
    of_runs = [folder / "results.json" for folder in runs_in(path)]
    own = path / "results.json"
    if not own.exists() or not all(file.exists() for file in of_runs):
        return False
    return all(file.stat().st_mtime_ns <= own.stat().st_mtime_ns for file in of_runs)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders of all paths (`runs_in`).

    Raises:
        ValueError: a path without any.
    """
    found: list[Path] = []
    for path in paths:
        below = runs_in(path)
        if not below:
            raise ValueError(f"no run in {path}: give a run folder, or that of an ablation")
        found += below
    return list(dict.fromkeys(found))


def read_variants(paths: Sequence[Path]) -> list[Variant]:
    """The runs of `find_runs`, those of different seeds together, in the order of a sweep.

    Raises:
        ValueError: as `find_runs`.
    """
    order = [name for path in paths for name in _order(path)]
    together: dict[Path, list[Run]] = {}
    for folder in find_runs(paths):
        together.setdefault(_stem(folder), []).append(read_run(folder))
    stems = list(together)
    names = {stem: stem.name or stem.resolve().name for stem in stems}
    for stem, name in names.items():
        if sum(other.name == stem.name for other in stems) > 1:
            names[stem] = f"{stem.parent.name}/{name}"
    place = {name: i for i, name in enumerate(order)}
    stems.sort(key=lambda stem: place.get(stem.name, len(place)))
    return [
        Variant(names[stem], _what(stem), COLORS[i % len(COLORS)], together[stem])
        for i, stem in enumerate(stems)
    ]


def _stem(folder: Path) -> Path:
    """What runs of several seeds share: `VARIANT/seed0` lies in it, `NAME-seed0` begins with it."""
    if re.fullmatch(r"seed\d+", folder.name) and folder.parent.name:
        return folder.parent
    return folder.with_name(re.sub(r"-seed\d+", "", folder.name)) if folder.name else folder


def _order(sweep: Path) -> list[str]:
    """The names of a sweep's variants as its `results.json` has them."""
    try:
        return list(json.loads((sweep / "results.json").read_text())["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def sweep_command(run: Run) -> str:
    """The command of the sweep that a run is part of, as its `results.json` has it; or ""."""
    if not re.fullmatch(r"seed\d+", run.folder.name) or len(run.folder.parents) < 2:
        return ""
    try:
        found = json.loads((run.folder.parents[1] / "results.json").read_text())
        return str(found["command"] if "runs" in found else "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _what(stem: Path) -> str:
    """What a variant is, as the first line of its `overlay.yaml` says."""
    try:
        first = (stem / "overlay.yaml").read_text().partition("\n")[0]
    except (OSError, ValueError):
        return ""
    return first.removeprefix("# ").partition(": ")[2]


def read_run(folder: Path) -> Run:
    """All that a run folder holds; see `Run`."""
    run = Run(folder)

    def read(name: str, how: Callable[[Path], T], default: T, needed: bool = True) -> T:
        path = folder / name
        if not path.is_file():
            if needed:
                run.missing.append((name, ""))
            return default
        try:
            return how(path)
        except (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, zlib.error,
                zipfile.BadZipFile, yaml.YAMLError) as error:  # fmt: skip
            run.missing.append((name, " ".join(str(error).split())[:160]))
            return default

    run.results = read("results.json", Results.read, None)
    run.config = read("config.yaml", _mapping, {})
    run.history = read("history.csv", _columns, {})
    run.diagnosis = read("diagnostics.json", _mapping, {})
    run.collected = read(COLLECTED, _arrays, {})
    run.start = read(START, _arrays, {}, needed=False)
    for name in ("robustness.json", "test.json"):
        found = read(name, CheckpointResults.read, None, needed=False)
        if found and run.results and not found.since(run.results):
            run.missing.append((name, "measured before the run was trained on"))
        else:
            run.robustness = run.robustness or found
    for path in sorted(folder.glob("pictures/epoch_*.npz")):
        page: dict[str, np.ndarray] = read(f"pictures/{path.name}", _arrays, {})
        if page:
            run.pages[int(path.stem.removeprefix("epoch_"))] = page
    return run


def _mapping(path: Path) -> dict[str, Any]:
    """The keys in a YAML or a JSON file; JSON is YAML too, but faster to read as JSON."""
    text = path.read_text()
    if path.suffix == ".yaml" and not text.endswith("\n"):  # half a YAML file is often one too
        raise ValueError("it is cut off")
    found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    if not isinstance(found, dict):
        raise ValueError("it holds no keys")
    return found


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table; a last line that is cut off is left out."""
    lines = path.read_text().splitlines(keepends=True)
    rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
    if not rows or "epoch" not in rows[0]:
        raise ValueError("it holds no epochs")
    return {
        name: np.array([float(row[name]) if row[name] else np.nan for row in rows])
        for name in rows[0]
    }


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        return dict(held)


def lacks(runs: Iterable[Run]) -> dict[tuple[tuple[Path, ...], str], list[str]]:
    """The files that are not as they should be, by their runs and what is wrong with them."""
    folders: dict[tuple[str, str], list[Path]] = {}
    for run in runs:
        for missing in run.missing:
            folders.setdefault(missing, []).append(run.folder)
    found: dict[tuple[tuple[Path, ...], str], list[str]] = {}
    for (name, why), of in folders.items():
        found.setdefault((tuple(of), why), []).append(name)
    return found
