"""Whether accuracies are above chance: what a table says where they are not."""

from collections.abc import Sequence

from scipy.stats import binomtest

LEVEL = 0.05
"""Significance level of the test, over all accuracies together."""


def chance_warning(accuracies: Sequence[float], samples: int, classes: int | None) -> str:
    """A line that warns if the best accuracy is not above chance, or "".

    With n samples and K classes, the best accuracy a is at chance if guessing, Binomial(n, 1/K),
    gives round(a n) or more right answers with a probability above 5 % / m: the best of m rows that
    all guess is better than one guess (Bonferroni). A mean over seeds counts as n samples, which
    the seeds share. If classes are not equally large, always naming the largest may pass.

    Args:
        accuracies: in [0,1], one a row; m of them.
        samples: n, of the split.
        classes: K; None, in files that do not say, never warns.

    >>> chance_warning([0.13, 0.09], samples=100, classes=10)
    'AT CHANCE: 13.00 % of 100 samples is no more than guessing one of 10 classes (10.00 %) may give
    (binomial test at 5 %, the best of 2): differences mean nothing.'
    >>> chance_warning([0.3, 0.09], samples=100, classes=10)
    ''
    """
    best, m = max(accuracies), len(accuracies)
    if classes is None or not samples:
        return ""
    right = round(best * samples)
    if binomtest(right, samples, 1 / classes, alternative="greater").pvalue <= LEVEL / m:
        return ""
    test = f"binomial test at {100 * LEVEL:.0f} %" + (f", the best of {m}" if m > 1 else "")
    return (
        f"AT CHANCE: {100 * best:.2f} % of {samples} samples is no more than guessing one of "
        f"{classes} classes ({100 / classes:.2f} %) may give ({test}): "
        + ("differences mean nothing." if m > 1 else "nothing was learned.")
    )
