"""What a person sees of one run."""

import json
from pathlib import Path

from estl.report.chance import chance_warning
from estl.report.diagnostics import plot
from estl.report.tables import table
from estl.training.results import Results


def draw(folder: Path) -> None:
    """Draw the diagnostics of a run folder as `diagnostics.png`, if it has any."""
    path = folder / "diagnostics.json"
    if path.is_file():
        plot(json.loads(path.read_text()), folder / "diagnostics.png")


def accuracy_table(results: Results) -> str:
    """Test accuracy after each step, in percent, of both weights; a warning if it is at chance."""
    test = results.test or results.val
    final = test["final"]
    head = ["", *(f"t={t}" for t in range(1, len(final.per_step) + 1))]
    rows = [
        [weights.replace("_", " "), *(f"{100 * a:.1f}" for a in accuracy.per_step)]
        for weights, accuracy in test.items()
    ]
    warning = chance_warning([final.final], final.samples, results.of.data.classes)
    return (
        f"Test accuracy, % of {final.samples} samples, after t time steps:\n\n"
        f"{table(head, rows)}\n\ntest accuracy: {100 * final.final:.2f} %"
    ) + (f"\n{warning}" if warning else "")
