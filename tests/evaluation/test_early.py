"""Early exit against a loop over samples and thresholds."""

import math

import pytest
import torch
from torch import Tensor

from estl.evaluation.early import at, calibrate, check_threshold


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


def lost(sureness: Tensor, right: Tensor, threshold: float) -> set[int]:
    """Samples that are right after all steps and wrong where they leave."""
    found = set()
    for i, (sure, hit) in enumerate(zip(sureness.tolist(), right.tolist(), strict=True)):
        first = next((t for t, x in enumerate(sure) if x >= threshold), len(sure) - 1)
        if hit[-1] and not hit[first]:
            found.add(i)
    return found


@pytest.mark.parametrize("tolerance", [0.003, 0.004, 0.01, 0.1])
def test_the_lowest_threshold_that_is_expected_to_lose_so_little(tolerance: float) -> None:
    sureness, right = drawn()
    chosen, gone = 1.01, set[int]()
    for threshold in sorted({int(x * 1e6) / 1e6 for x in sureness.double().flatten().tolist()})[
        ::-1
    ]:
        gone |= lost(sureness, right, threshold)
        if (len(gone) + 1) / (len(right) + 1) > tolerance:
            break
        chosen = threshold
    found = calibrate(sureness, right, tolerance)
    assert (chosen == 1.01) == (tolerance == 0.003)  # 300 samples cannot show it
    values = sureness.flatten().unique()
    between = (values >= chosen) & (values < found.threshold)
    assert found.threshold >= chosen - 1e-6
    assert between.sum() <= 2  # candidates are thinned to a thousand


def test_what_is_lost_on_others_is_within_the_tolerance_on_average() -> None:
    losses = []
    for seed in range(60):
        torch.manual_seed(seed)
        sureness, right = drawn(400)
        right[:, -1] |= right.any(1)  # or more steps would lose as much as they win
        found = calibrate(sureness[:200], right[:200], 0.02)
        losses.append(len(lost(sureness[200:], right[200:], found.threshold)) / 200)
    assert 0.005 < sum(losses) / len(losses) < 0.02


def test_a_student_that_only_knows_at_the_end_never_leaves_early() -> None:
    sureness, right = torch.rand(50, 4), torch.zeros(50, 4, dtype=torch.bool)
    right[:, -1] = True
    found = calibrate(sureness, right, 0.02)
    assert found.mean_steps == 4
    assert found.accuracy == 1.0


def test_a_student_that_knows_at_once_leaves_at_once() -> None:
    found = calibrate(torch.rand(50, 4), torch.ones(50, 4, dtype=torch.bool), 0.02)
    assert found.mean_steps < 1.2


def test_fewer_samples_than_the_tolerance_asks_for_let_nothing_leave_early() -> None:
    for n, steps in ((2, 4.0), (3, 1.0)):  # 1 / 0.25 - 1 samples are enough
        right = torch.ones(n, 4, dtype=torch.bool)
        assert calibrate(torch.full((n, 4), 0.5), right, 0.25).mean_steps == steps
    with pytest.raises(ValueError, match="nothing to calibrate on: no samples"):
        calibrate(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool))


@pytest.mark.parametrize("tolerance", [5.0, 1.0, 0.0, -0.1, math.nan])
def test_a_tolerance_is_a_share(tolerance: float) -> None:
    with pytest.raises(ValueError, match=f"tolerance={tolerance}: give a share above 0 and below"):
        calibrate(*drawn(), tolerance=tolerance)


@pytest.mark.parametrize("until_sure", [95.0, 1.001, 0.0, -1.0, math.nan])
def test_a_threshold_is_a_probability(until_sure: float) -> None:
    check_threshold(1.0)
    check_threshold(None)
    with pytest.raises(ValueError, match=f"until_sure={until_sure}: give a probability"):
        check_threshold(until_sure)
