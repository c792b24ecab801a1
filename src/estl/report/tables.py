"""Tables and figures of several runs, as Markdown."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a `|` in a cell is escaped.

    >>> print(table(["", "t=1"], [["plain", "90.1"]]))
    |       | t=1  |
    |-------|------|
    | plain | 90.1 |
    """
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 for one value)."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def plus_minus(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation as text; one value has no deviation.

    >>> plus_minus([1.0, 3.0]), plus_minus([2.0])
    ('2.00 ± 1.41', '2.00')
    """
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return " ± ".join(f"{x:.{digits}f}" for x in spread(values))
