"""What a person sees of one run, and of a sweep, when it is finished."""

import sys
from pathlib import Path

from estl.report.chance import chance_warning
from estl.report.collect import Collector
from estl.report.tables import table
from estl.training.results import Results

NAME = "report.html"


def finish(folder: Path, collector: Collector | None = None) -> Path | None:
    """Write what a run has collected, and the report of a run folder or of a sweep's.

    Returns:
        The report; None, and a line on standard error, where it could not be written: a finished
        run is not lost over it.
    """
    from estl.report.html import write

    try:
        if collector is not None:
            collector.write(folder)
        write([folder], folder / NAME)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"no report: {reason}; once more with estl report {folder}", file=sys.stderr)
        return None
    return folder / NAME


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
