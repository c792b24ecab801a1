"""What a student is sure of, against loops over samples and steps."""

import math

import torch

from estl.evaluation.confidence import confusion, predictions, reliability, stopping

LOGITS = 2 * torch.randn(40, 5, 4, generator=torch.Generator().manual_seed(3))
LABEL = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(4))


def by_hand(sample: int, t: int) -> tuple[float, int]:
    """Confidence and class of a sample after t steps."""
    means = [sum(LOGITS[sample, s, k].item() for s in range(t)) / t for k in range(4)]
    total = sum(math.exp(m) for m in means)
    return max(math.exp(m) / total for m in means), means.index(max(means))


def test_confidence_and_class_after_each_step() -> None:
    confidence, predicted = predictions(LOGITS)
    for i in range(40):
        for t in range(1, 6):
            sure, label = by_hand(i, t)
            assert math.isclose(confidence[i, t - 1].item(), sure, rel_tol=1e-5)
            assert predicted[i, t - 1] == label


def test_a_sample_stops_at_the_first_step_that_is_sure_enough_or_at_the_last() -> None:
    thresholds = [0.0, 0.5, 0.8, 1.1]
    confidence, predicted = predictions(LOGITS)
    found = stopping(confidence, predicted == LABEL[:, None], torch.tensor(thresholds))
    for m, threshold in enumerate(thresholds):
        steps, right = 0, 0
        for i in range(40):
            t = next((t for t in range(1, 5) if by_hand(i, t)[0] >= threshold), 5)
            steps += t
            right += by_hand(i, t)[1] == int(LABEL[i])
        assert math.isclose(found.steps[m].item(), steps / 40)
        assert math.isclose(found.accuracy[m].item(), right / 40)
    assert found.steps[0] == 1.0
    assert found.steps[-1] == 5.0


def test_confusion_and_calibration_count_every_sample_once() -> None:
    predicted = torch.tensor([by_hand(i, 5)[1] for i in range(40)])
    matrix = confusion(predicted, LABEL, 4)
    bins = reliability(LOGITS, LABEL)
    error = 0.0
    for true in range(4):
        for taken in range(4):
            n = sum(bool(LABEL[i] == true and predicted[i] == taken) for i in range(40))
            assert matrix[true, taken] == n
    for b in range(10):
        here = [i for i in range(40) if b / 10 <= by_hand(i, 5)[0] < (b + 1) / 10]
        assert bins.samples[b] == len(here)
        assert bins.right[b] == sum(bool(predicted[i] == LABEL[i]) for i in here)
        mean = sum(by_hand(i, 5)[0] for i in here) / max(1, len(here))
        assert math.isclose(bins.confidence[b].item(), mean, rel_tol=1e-5)
        error += abs(sum(by_hand(i, 5)[0] - float(predicted[i] == LABEL[i]) for i in here)) / 40
    assert math.isclose(bins.error, error, rel_tol=1e-5)


def test_certain_samples_and_classes_that_never_occur_have_their_place() -> None:
    certain = reliability(torch.tensor([[[0.0, 200.0]]]), torch.tensor([1]))
    assert certain.samples.tolist() == [0] * 9 + [1]
    assert confusion(torch.tensor([0]), torch.tensor([1]), 3).tolist() == [
        [0] * 3,
        [1, 0, 0],
        [0] * 3,
    ]
