"""Intervals of accuracies and differences, against loops and against many simulated experiments."""

import re
from math import sqrt
from statistics import mean, variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t

from estl.evaluation.accuracy import Accuracy
from estl.report.intervals import Interval, axis, difference, estimate, pooled, share


def run(right: np.ndarray) -> Accuracy:
    return Accuracy((float(right.mean()),), len(right), "".join("01"[int(x)] for x in right))


def numbers(text: str) -> tuple[float, float, float]:
    found = [float(x) for x in re.findall(r"[+-]\d+\.\d+", text)]
    assert len(found) == 3
    return found[0], found[1], found[2]


def test_an_interval_over_seeds_and_samples_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 4, 30))
    S, N = 4, 30
    d = [[100.0 * (a[s][i] - b[s][i]) for i in range(N)] for s in range(S)]
    over_seeds = variance([mean(row) for row in d]) / S
    over_samples = variance([mean(d[s][i] for s in range(S)) for i in range(N)]) / N
    total = over_seeds + over_samples
    freedom = total**2 / (over_seeds**2 / (S - 1) + over_samples**2 / (N - 1))
    for m in (1, 7):
        half = student_t.ppf(1 - 0.025 / m, freedom) * sqrt(total)
        middle, low, high = numbers(difference([run(x) for x in a], [run(x) for x in b], m))
        assert middle == pytest.approx(mean(mean(row) for row in d), abs=0.006)
        assert (middle - low, high - middle) == pytest.approx((half, half), abs=0.012)


def test_one_seed_has_the_interval_of_its_samples() -> None:
    a, b = np.ones(50, int), np.repeat([1, 0], [40, 10])
    half = student_t.ppf(0.975, 49) * 100 * sqrt(0.2 * 0.8 / 49)
    assert numbers(difference([run(a)], [run(b)])) == pytest.approx(
        (20.0, 20.0 - half, 20.0 + half), abs=0.006
    )
    assert difference([run(a)], [run(a)]) == "+0.00 [+0.00, +0.00]"


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    """Four seeds, each with its own skill, on 60 samples, each of its own difficulty."""
    rng, held, n = np.random.default_rng(1), 0, 400
    for _ in range(n):
        difficulty = rng.normal(0, 1, 60)
        scores = []
        for skill in (1.0, 1.0):  # the true difference is 0
            seeds = skill + rng.normal(0, 0.3, (4, 1))
            own = difficulty + rng.normal(0, 0.5, 60)  # what a variant finds hard of itself
            chance = 1 / (1 + np.exp(-(seeds + own)))
            scores.append([run(x) for x in rng.random((4, 60)) < chance])
        _, low, high = numbers(difference(scores[0], scores[1]))
        held += low <= 0 <= high
    assert 0.93 <= held / n <= 1.0


def test_a_share_has_wilsons_interval() -> None:
    z = 1.959963984540054
    for right, n in ((0, 10), (7, 10), (346, 359), (100, 100)):
        p = right / n
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        found = share(right, n)
        assert found.value == pytest.approx(100 * p)
        assert found.low == pytest.approx(max(0.0, 100 * (middle - half)), abs=1e-9)
        assert found.high == pytest.approx(min(100.0, 100 * (middle + half)), abs=1e-9)


def test_a_mean_over_seeds_has_the_interval_of_whole_samples_around_it() -> None:
    found, whole = share(28.6, 100), share(29, 100)
    assert found.value == pytest.approx(28.6)
    assert (found.low, found.high) == (whole.low, whole.high)
    assert pooled(0.5, 10.7) == share(5.5, 11)
    assert pooled(1.0, 0.2) == share(1, 1)


@pytest.mark.parametrize("shares", [[0.9, 0.8], [0.95, 1.0, 0.9]])
def test_the_interval_over_seeds_equals_a_loop(shares: list[float]) -> None:
    S, N, p = len(shares), 40, mean(shares)
    q = (N * p + 2) / (N + 4)
    of_seeds, of_samples = variance([100 * x for x in shares]) / S, 1e4 * q * (1 - q) / (N + 4)
    total = of_seeds + of_samples
    freedom = total**2 / (of_seeds**2 / (S - 1) + of_samples**2 / (N - 1))
    half = student_t.ppf(0.975, freedom) * sqrt(total)
    found = estimate(shares, N)
    assert found == pytest.approx((100 * p, 100 * p - half, min(100.0, 100 * p + half)))


def test_an_interval_over_seeds_ends_at_none_and_all() -> None:
    assert estimate([0.0, 0.0], 5).low == 0.0
    assert estimate([1.0, 1.0], 5).high == estimate([1.0, 1.0], 1).high == 100.0


def test_without_the_samples_of_every_run_a_difference_has_the_interval_of_its_seeds() -> None:
    draw = np.random.default_rng(0)
    a, b = ([run(x) for x in draw.integers(0, 2, (2, 30))] for _ in "ab")
    without = [[Accuracy(x.per_step, 30) for x in runs] for runs in (a, b)]
    expected = difference(*without)
    _, low, high = numbers(expected)
    d = [100 * (x.final - y.final) for x, y in zip(a, b, strict=True)]
    half = student_t.ppf(0.975, 1) * sqrt(variance(d) / 2)
    assert high - low == pytest.approx(2 * half, abs=0.02)
    assert difference(a, without[1]) == difference(without[0], b) == expected


def test_the_interval_of_seeds_holds_what_new_seeds_and_samples_give() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        truth = 0.9
        seeds = draw.normal(truth, 0.01, 3)  # what each seed's network would get of all samples
        found = estimate(list(draw.binomial(300, seeds) / 300), 300)
        inside += found.low <= 100 * truth <= found.high
    assert inside / 2000 > 0.93


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 3).map(sorted), min_size=1))
def test_an_axis_ends_outside_of_all_intervals(spread: list[list[float]]) -> None:
    low, high = axis([Interval(value, least, most) for least, value, most in spread])
    assert all(low < least and most < high for least, _, most in spread)
    assert axis([5.0]) == (4.0, 6.0)
