"""What is no better than guessing is called so, in every table."""

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from estl.evaluation.accuracy import Accuracy
from estl.report.chance import chance_warning
from estl.report.comparison import markdown, write
from estl.report.run import accuracy_table
from estl.report.search import searched
from estl.report.search import write as write_search
from estl.training.results import DataFacts, Provenance, Results


def run(accuracy: float, classes: int | None = 10) -> Results:
    data = DataFacts("Digits", "f", {}, classes)
    of = Provenance("estl", 0, data, "S", 1, "TSE", {}, "P", 2, None, "2026-01-01")
    return Results(of, 1, 3.0, 7, val={}, test={"final": Accuracy((0.1, accuracy), 100)})


@pytest.mark.parametrize(
    ("n", "K", "m"), [(100, 10, 1), (100, 10, 5), (57, 101, 1), (40, 2, 20), (98, 10, 1)]
)
def test_the_bound_is_that_of_the_binomial_distribution(n: int, K: int, m: int) -> None:
    def tail(k: int) -> float:
        """P(X >= k) of Binomial(n, 1/K), from its definition."""
        return sum(math.comb(n, i) * (K - 1) ** (n - i) for i in range(k, n + 1)) / K**n

    assert chance_warning([0.0], 0, K) == ""
    for k in range(n + 1):
        warned = bool(chance_warning([k / n, *[0.0] * (m - 1)], n, K))
        assert warned == (tail(k) > 0.05 / m)


def test_the_best_of_many_guesses_is_warned_of_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    tables = rng.binomial(200, 0.1, (400, 8)) / 200
    warned = np.mean([bool(chance_warning(list(table), 200, 10)) for table in tables])
    assert warned >= 0.93  # 0.95, less two standard errors


def test_a_run_says_so_after_its_table() -> None:
    text = accuracy_table(run(0.12))
    assert text.splitlines()[-1].startswith("AT CHANCE: 12.00 % of 100 samples")
    assert accuracy_table(run(0.3)).endswith("test accuracy: 30.00 %")
    assert "CHANCE" not in accuracy_table(run(0.12, None))


@pytest.mark.slow
def test_a_comparison_says_so_unless_its_best_row_is_above(tmp_path: Path) -> None:
    found = {"a": [run(0.12), run(0.08)], "b": [run(0.13), run(0.1)]}
    what = {"a": "x", "b": "y"}
    text = write(found, what, tmp_path, title="T", command="c")
    assert text.splitlines()[2].startswith("**AT CHANCE: 11.50 % of 100 samples")
    assert (tmp_path / "results.md").read_text() == text
    better = markdown(found | {"b": [run(0.5), run(0.4)]}, what, title="T", command="c")
    assert "CHANCE" not in better
    assert better.splitlines()[2].startswith("|")


def trial(number: int, accuracy: float, grid: bool) -> optuna.trial.FrozenTrial:
    values = {"tau_f": 0.3 + 0.1 * number, "kappa": 1.0}
    distributions = {
        "tau_f": CategoricalDistribution([0.3, 0.4]) if grid else FloatDistribution(0.1, 0.9),
        "kappa": CategoricalDistribution([1.0]) if grid else FloatDistribution(0.0, 3.0),
    }
    attrs = {"accuracy": accuracy, "samples": 100, "classes": 10}
    return optuna.trial.create_trial(
        value=accuracy, params=values, distributions=distributions, user_attrs=attrs
    )


@pytest.mark.slow
@pytest.mark.parametrize("grid", [True, False])
def test_a_search_says_so_and_draws_what_was_searched(grid: bool, tmp_path: Path) -> None:
    pages = []
    for best in (0.13, 0.6):
        study = optuna.create_study(direction="maximize")
        study.add_trials([trial(i, a, grid) for i, a in enumerate([0.1, best])])
        text = write_search(study, tmp_path, "c")
        assert ("**AT CHANCE: 13.00 % of 100 samples" in text) == (best < 0.2)
        assert (tmp_path / "tune.md").read_text() == text
        pages.append((tmp_path / "tune.png").read_bytes())
    assert pages[0] != pages[1]
    assert searched(study.trials, "tau_f") == ((0.3, 0.4) if grid else (0.1, 0.9))
    assert searched(study.trials, "kappa") == ((1.0, 1.0) if grid else (0.0, 3.0))
