"""Differences between runs, and how much of them is chance."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy.stats import t as student_t

from estl.evaluation.accuracy import Accuracy


def difference(values: Sequence[Accuracy], base: Sequence[Accuracy], comparisons: int = 1) -> str:
    """Mean difference of final accuracies in points, with its 95 % interval, as text.

    Runs are paired by their seed, and by sample where each says which samples it got right. With
    d_si the difference of seed s on sample i in points, and v_S and v_N the variances of its means
    over samples and over seeds, n - 1 in the denominator,

        mean(d) ± t(1 - 0.025 / m, df) sqrt(v_S / S + v_N / N)

    for m comparisons (Bonferroni) and df by Welch and Satterthwaite. Both the scatter of seeds and
    that of the samples are in it: what is left of d_si counts in both, so that it is rather too
    wide. Without samples, v_N is left out; one seed has v_N alone, and neither has no interval.

    >>> a = [Accuracy((x,), 100) for x in (0.02, 0.04, 0.06)]
    >>> b = [Accuracy((x,), 100) for x in (0.01, 0.02, 0.03)]
    >>> difference(a, b), difference(a[:1], b[:1])
    ('+2.00 [-0.48, +4.48]', '+1.00')
    """
    pairs = list(zip(values, base, strict=True))
    by_seed = np.array([100 * (a.final - b.final) for a, b in pairs])
    parts = [by_seed] if len(by_seed) > 1 else []
    if all(run.right for run in [*values, *base]):
        parts.append(np.mean([_right(a) - _right(b) for a, b in pairs], axis=0))
    variances = [part.var(ddof=1) / len(part) for part in parts]
    shown = f"{by_seed.mean():+.2f}"
    if not variances:
        return shown
    lost = sum(v**2 / (len(part) - 1) for v, part in zip(variances, parts, strict=True))
    freedom = sum(variances) ** 2 / lost if lost else 1.0
    half = float(student_t.ppf(1 - 0.025 / comparisons, freedom)) * sqrt(sum(variances))
    low, high = by_seed.mean() - half, by_seed.mean() + half
    return f"{shown} [{low:+.2f}, {high:+.2f}]"


def _right(accuracy: Accuracy) -> np.ndarray:
    """In points: 100 for each sample that is right."""
    return 100.0 * np.array([digit == "1" for digit in accuracy.right])
