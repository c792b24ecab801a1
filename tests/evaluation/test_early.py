"""Early exit against a loop over samples and thresholds."""

import pytest
import torch
from torch import Tensor

from estl.evaluation.early import at, calibrate


def looped(sureness: Tensor, right: Tensor, threshold: float) -> tuple[float, float]:
    """Accuracy and mean steps of a threshold, sample by sample."""
    good, steps = 0, 0
    for sure, hit in zip(sureness.tolist(), right.tolist(), strict=True):
        t = 0
        while t < len(sure) - 1 and sure[t] < threshold:
            t += 1
        good, steps = good + hit[t], steps + t + 1
    return good / len(right), steps / len(right)


def drawn(n: int = 300, T: int = 5) -> tuple[Tensor, Tensor]:
    """Samples that get surer and better with time, surer ones better."""
    sureness = (torch.rand(n, 1) * torch.linspace(0.3, 1, T) + 0.2 * torch.rand(n, T)).clamp(0, 1)
    return sureness, torch.rand(n, T) < 0.3 + 0.7 * sureness


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.7, 0.9, 1.01])
def test_a_threshold_gives_what_a_loop_finds(threshold: float) -> None:
    sureness, right = drawn()
    found = at(sureness, right, threshold)
    assert (found.accuracy, found.mean_steps) == pytest.approx(looped(sureness, right, threshold))
    assert found.all_steps == pytest.approx(right[:, -1].double().mean().item())


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.1])
def test_the_lowest_threshold_above_which_all_are_good_enough_is_chosen(tolerance: float) -> None:
    sureness, right = drawn()
    found = calibrate(sureness, right, tolerance)
    least = found.all_steps - tolerance - 1e-12
    # Thresholds that tell samples apart lie at their values; the search rounds to millionths.
    grid = [x for x in sureness.flatten().sort().values.tolist() if x > found.threshold + 1e-6]
    assert all(looped(sureness, right, x)[0] >= least for x in [found.threshold, *grid[::7]])
    assert found.accuracy >= least
    below = [x for x in sureness.flatten().unique().tolist() if x < found.threshold - 2e-6]
    near = below[-12:]  # candidates are thinned to a thousand
    assert not near or any(looped(sureness, right, x)[0] < least for x in near)


def test_a_student_that_only_knows_at_the_end_never_leaves_early() -> None:
    sureness, right = torch.rand(50, 4), torch.zeros(50, 4, dtype=torch.bool)
    right[:, -1] = True
    found = calibrate(sureness, right, 0.0)
    assert found.mean_steps == 4
    assert found.accuracy == 1.0


def test_a_student_that_knows_at_once_leaves_at_once() -> None:
    found = calibrate(torch.rand(50, 4), torch.ones(50, 4, dtype=torch.bool))
    assert found.mean_steps < 1.2


def test_a_tolerance_is_a_share() -> None:
    with pytest.raises(ValueError, match="tolerance=5"):
        calibrate(*drawn(), tolerance=5.0)
