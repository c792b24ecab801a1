"""What a report costs: collecting it 2 % of the training at most, the page 8 MB and 10 s.

    python benchmarks/report.py [--epochs 12]

Trains `digits_tse` (a minute) and times what is done for its report alone: the maps of the start,
the gradients' norms, and what is kept of the test split, with the check of the data. Then the
history is lengthened to 100 epochs, and the page of these and 8 samples is written by a process
of its own. Ends with an error where a bound is broken; the machine must be idle.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from estl.commands.flags import find_recipe
from estl.report.collect import Collector
from estl.report.start import Start
from estl.training.history import write
from estl.training.learner import Learner
from estl.training.recipe import parse
from estl.training.run import fit

PAID = ((Start, "on_train_start"), (Learner, "on_before_optimizer_step"), (Collector, "__call__"),
        (Collector, "write"))  # fmt: skip
"""What is done for the report alone."""


def timed(kind: type, name: str, spent: dict[str, float]) -> None:
    """Let a method note the seconds that it takes."""
    method = getattr(kind, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **options)
        finally:
            key = f"{kind.__name__}.{name}"
            spent[key] = spent.get(key, 0.0) + time.perf_counter() - start

    setattr(kind, name, wrapped)


def lengthen(history: Path, epochs: int) -> None:
    """Repeat the rows of a history until it has so many epochs."""
    with history.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    for epoch in range(len(rows) + 1, epochs + 1):
        write(rows[(epoch - 1) % len(rows)] | {"epoch": float(epoch)}, history)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    epochs = parser.parse_args().epochs
    spent: dict[str, float] = {}
    for kind, name in PAID:
        timed(kind, name, spent)
    with tempfile.TemporaryDirectory() as place:
        folder, collector = Path(place, "run"), Collector()
        args = [
            f"--config={find_recipe('digits_tse')}",
            f"--trainer.max_epochs={epochs}",
            f"--output_dir={folder}",
        ]
        finished = fit(*parse(args), callbacks=[Start()], see=collector)
        assert finished is not None
        collector.write(folder)
        lengthen(folder / "history.csv", 100)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "estl.commands", "report", str(folder)], check=True)
        seconds = time.perf_counter() - start
        megabytes = (folder / "report.html").stat().st_size / 1e6
    share = 100 * sum(spent.values()) / finished[1].train_seconds
    for name, found in spent.items():
        print(f"{name:36}{found:7.2f} s of {finished[1].train_seconds} s")
    figures = {  # what: (found, at most)
        "collecting, % of the training": (share, 2.0),
        "the page, s": (seconds, 10.0),
        "the page, MB": (megabytes, 8.0),
    }
    for name, (found, bound) in figures.items():
        print(f"{name:36}{found:7.2f}, at most {bound:g}")
    if broken := [name for name, (found, bound) in figures.items() if found > bound]:
        raise SystemExit(f"too much: {', '.join(broken)}")


if __name__ == "__main__":
    main()
