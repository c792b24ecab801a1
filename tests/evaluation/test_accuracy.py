"""Accuracy and confidence over batches of unequal size, against a loop over samples."""

import pytest
import torch
from torch import Tensor, nn

from estl.evaluation.accuracy import evaluate
from estl.evaluation.early import confidences
from estl.types import Batch, Output


class Says(nn.Module):
    """Its logits are the frames' first three pixels; in training it says something else."""

    def forward(self, events: Tensor) -> Output:
        logits = events[:, :, 0, 0, :3] * (-1 if self.training else 1)
        return Output(logits, logits[..., None, None], nn.Identity(), logits)


def batches() -> list[Batch]:
    events, label = 3 * torch.randn(7, 4, 1, 1, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    return [Batch(events[part], label[part]) for part in (slice(5), slice(5, 7))]


def by_hand(given: list[Batch]) -> tuple[list[list[bool]], list[list[float]]]:
    """Of each sample after each step: whether the mean of its logits is right, and how sure."""
    right, sure = list[list[bool]](), list[list[float]]()
    for batch in given:
        for frames, label in zip(batch.events[:, :, 0, 0], batch.label.tolist(), strict=True):
            means = [frames[: t + 1].sum(0) / (t + 1) for t in range(4)]
            right.append([mean.tolist().index(max(mean.tolist())) == label for mean in means])
            sure.append([(mean.exp() / mean.exp().sum()).max().item() for mean in means])
    return right, sure


def test_accuracy_is_that_of_a_loop_over_samples_and_steps() -> None:
    given = batches()
    right, _ = by_hand(given)
    plain = [(batch.events, batch.label, batch.label) for batch in given]
    for found in (evaluate(Says().train(), given), evaluate(Says(), plain)):
        assert found.per_step == pytest.approx([sum(x) / 7 for x in zip(*right, strict=True)])
        assert found.final == found.per_step[3]
        assert found.samples == 7
        assert found.right == "".join("01"[sample[3]] for sample in right)
    assert len(set(found.per_step)) > 1


def test_confidences_are_in_the_order_of_the_samples() -> None:
    given = batches()
    right, sure = by_hand(given)
    confidence, hits = confidences(Says().train(), given, torch.device("cpu"))
    assert hits.tolist() == right
    torch.testing.assert_close(confidence, torch.tensor(sure))


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batches is empty: there is nothing to evaluate"):
        evaluate(Says(), [])
    with pytest.raises(ValueError, match="batches is empty: there is nothing to calibrate on"):
        confidences(Says(), [], torch.device("cpu"))
