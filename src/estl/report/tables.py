"""Tables and figures of several runs, as Markdown."""

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t as student_t


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["", "t=1"], [["plain", "90.1"]]))
    |       | t=1  |
    |-------|------|
    | plain | 90.1 |
    """
    cells = [list(head), *(list(row) for row in rows)]
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


def difference(values: Sequence[float], base: Sequence[float]) -> str:
    """Mean of the paired differences (same seed) with its 95 % interval, by Student's t.

    With n differences of mean d and standard deviation s: d ± t(0.975, n - 1) s / sqrt(n). It knows
    the scatter of seeds, not that of the test samples. One pair has no interval.

    >>> difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]), difference([2.0], [1.5])
    ('+2.00 [-0.48, +4.48]', '+0.50')
    """
    d = [a - b for a, b in zip(values, base, strict=True)]
    if len(d) == 1:
        return f"{d[0]:+.2f}"
    m, s = spread(d)
    half = float(student_t.ppf(0.975, len(d) - 1)) * s / sqrt(len(d))
    return f"{m:+.2f} [{m - half:+.2f}, {m + half:+.2f}]"
