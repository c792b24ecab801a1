"""Accuracies and their differences between runs, and how much of them is chance."""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

from estl.evaluation.accuracy import Accuracy


class Interval(NamedTuple):
    """A value and the 95 % interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def share(right: float, samples: int) -> Interval:
    """A share of samples in percent, with Wilson's interval of a binomial proportion.

    >>> str(share(1, 10))
    '10.00 [1.79, 40.42]'
    """
    k = round(right)
    found = binomtest(k, samples).proportion_ci(method="wilson")
    value = 100 * right / samples
    return Interval(value, min(value, 100 * found.low), max(value, 100 * found.high))


def pooled(right: float, samples: float) -> Interval:
    """A share in [0,1] over all seeds, in percent, with Wilson's interval of one seed's samples.

    Seeds are tested on the same samples: three of them do not make these three times as many.

    >>> str(pooled(0.1, 10.4)), str(share(1, 10))
    ('10.00 [1.79, 40.42]', '10.00 [1.79, 40.42]')
    """
    n = max(1, round(samples))
    return share(right * n, n)


def estimate(shares: Sequence[float], samples: int) -> Interval:
    """Mean accuracy of several seeds in percent, or that of one run, with its interval.

    One run has the interval of `share`, of its samples. With S seeds, of standard deviation s over
    seeds, and p the mean of their shares in [0,1] of N samples, the interval is

        100 p ± t(0.975, df) sqrt(s^2 / S + v),    v = 100^2 q (1 - q) / (N + 4)

    in [0,100], with df by Welch and Satterthwaite: equal seeds do not make the samples certain. In
    v, q = (N p + 2) / (N + 4) (Agresti and Coull 1998), which is not certain at 0 and 100 % either.

    >>> str(estimate([0.5], 100)), str(estimate([0.5, 0.5, 0.5], 100))
    ('50.00 [40.38, 59.62]', '50.00 [40.27, 59.73]')
    """
    if len(shares) == 1:
        return share(shares[0] * samples, samples)
    seeds = 100 * np.array(shares)
    p = float(np.mean(shares))
    q = (samples * p + 2) / (samples + 4)
    parts = [
        (float(seeds.var(ddof=1)) / len(seeds), len(seeds) - 1),
        (1e4 * q * (1 - q) / (samples + 4), max(1, samples - 1)),
    ]
    half = _half(parts, 1)
    return Interval(100 * p, max(0.0, 100 * p - half), min(100.0, 100 * p + half))


def axis(intervals: Iterable[Interval | float], least: float = 1.0) -> tuple[float, float]:
    """The range of an axis such that no interval touches its ends.

    A tenth of the whole is left free on both sides, but at least `least`.

    >>> axis([Interval(90.0, 85.0, 94.0), Interval(96.0, 92.0, 105.0)])
    (83.0, 107.0)
    """
    ends: list[float] = []
    for x in intervals:
        ends += [x.low, x.high] if isinstance(x, Interval) else [float(x)]
    low, high = min(ends), max(ends)
    margin = max(least, 0.1 * (high - low))
    return low - margin, high + margin


def difference(values: Sequence[Accuracy], base: Sequence[Accuracy], comparisons: int = 1) -> str:
    """Mean difference of final accuracies in points, with its 95 % interval, as text.

    Runs are paired by their seed, and by sample where each says which samples it got right. With
    d_si the difference of seed s on sample i in points, and v_S and v_N the variances of its means
    over samples and over seeds, n - 1 in the denominator,

        mean(d) ± t(1 - 0.025 / m, df) sqrt(v_S / S + v_N / N)

    for m comparisons (Bonferroni) and df by Welch and Satterthwaite. The interval covers the
    scatter of both seeds and samples: the remainder of d_si counts in both, so that it is rather
    too wide. Without samples, v_N is left out; with one seed, v_N stands alone; with neither, there
    is no interval.

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
    shown = f"{by_seed.mean():+.2f}"
    if not parts:
        return shown
    half = _half([(part.var(ddof=1) / len(part), len(part) - 1) for part in parts], comparisons)
    return f"{shown} [{by_seed.mean() - half:+.2f}, {by_seed.mean() + half:+.2f}]"


def _half(parts: Sequence[tuple[float, int]], comparisons: int) -> float:
    """Half an interval, of the variances of means and their degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    lost = sum(variance**2 / freedom for variance, freedom in parts)
    freedom = total**2 / lost if lost else 1.0
    return float(student_t.ppf(1 - 0.025 / comparisons, freedom)) * sqrt(total)


def _right(accuracy: Accuracy) -> np.ndarray:
    """In points: 100 for each sample that is right."""
    return 100.0 * np.array([digit == "1" for digit in accuracy.right])
