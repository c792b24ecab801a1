"""TET: golden figures, a scalar loop, and the limits in which it is plain cross-entropy."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from estl.supervision import TET, tet_loss
from estl.types import Batch, Output


def scalar_tet(
    logits: Tensor, weights: Tensor, means: float, lamb: float, smoothing: float = 0.0
) -> float:
    """The loss of the paper, in Python floats, of class weights (B,K)."""
    z, y = logits.tolist(), weights.tolist()
    B, T, K = logits.shape
    ce = mse = 0.0
    for b in range(B):
        for t in range(T):
            log_sum = math.log(sum(math.exp(z[b][t][k]) for k in range(K)))
            for k in range(K):
                ce += (smoothing / K + (1 - smoothing) * y[b][k]) * (log_sum - z[b][t][k])
            mse += sum((z[b][t][k] - means) ** 2 for k in range(K))
    return (1 - lamb) * ce / (B * T) + lamb * mse / (B * T * K)


@pytest.mark.parametrize("entry", range(4))
def test_tet_gives_the_golden_figures(golden: dict[str, Any], entry: int) -> None:
    figure = golden["tet"][entry]
    torch.manual_seed(3)
    logits, labels = torch.randn(5, 4, 10), torch.randint(0, 10, (5,))
    loss = tet_loss(logits, labels, means=figure["means"], lamb=figure["lamb"])
    assert loss.item() == pytest.approx(figure["loss"], abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("lamb", [0.0, 0.3, 1.0])
def test_tet_equals_a_scalar_loop(lamb: float, smoothing: float) -> None:
    logits, labels = torch.randn(3, 5, 4, dtype=torch.float64), torch.tensor([3, 0, 3])
    mixed = torch.randn(3, 4, dtype=torch.float64).softmax(1)
    for given, weights in ((labels, F.one_hot(labels, 4)), (mixed, mixed)):
        loss = tet_loss(logits, given, means=0.7, lamb=lamb, label_smoothing=smoothing)
        expected = scalar_tet(logits, weights, 0.7, lamb, smoothing)
        assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_of_tet_agrees_with_finite_differences() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    for labels in (torch.tensor([1, 2]), torch.randn(2, 4, dtype=torch.float64).softmax(1)):

        def loss(z: Tensor, labels: Tensor = labels) -> Tensor:
            return tet_loss(z, labels, means=0.5, lamb=0.3, label_smoothing=0.1)

        assert torch.autograd.gradcheck(loss, logits)


def test_tet_of_one_step_without_the_second_part_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 1, 10), torch.randint(0, 10, (6,))
    loss = tet_loss(logits, labels, means=1.0, lamb=0.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, 0], labels))


def test_the_module_reports_the_two_weighted_parts() -> None:
    logits, labels = torch.randn(5, 4, 10), torch.randint(0, 10, (5,))
    output = Output(logits, torch.zeros(5, 4, 2, 3, 3), torch.nn.Identity(), torch.zeros(5, 4, 2))
    options = {"means": 0.5, "label_smoothing": 0.2}
    loss = TET(lamb=0.3, **options)(output, Batch(torch.zeros(5, 4, 2, 8, 8), labels))
    ce, mse = (tet_loss(logits, labels, lamb=lamb, **options) for lamb in (0.0, 1.0))
    torch.testing.assert_close(loss.total, 0.7 * ce + 0.3 * mse)
    torch.testing.assert_close(loss.terms["tet_ce"], 0.7 * ce)
    torch.testing.assert_close(loss.terms["tet_mse"], 0.3 * mse)
    assert loss.terms.keys() == {"tet_ce", "tet_mse"}


@pytest.mark.parametrize("lamb", [-0.1, 1.1, math.nan])
def test_a_share_outside_zero_to_one_is_refused(lamb: float) -> None:
    with pytest.raises(ValueError, match=rf"^lamb must be in \[0,1\], not {lamb}$"):
        TET(lamb=lamb)
    with pytest.raises(ValueError, match="lamb"):
        tet_loss(torch.zeros(1, 1, 2), torch.tensor([0]), means=1.0, lamb=lamb)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, math.nan])
def test_a_label_smoothing_outside_zero_to_one_is_refused(smoothing: float) -> None:
    TET(label_smoothing=1.0)
    with pytest.raises(ValueError, match=rf"^label_smoothing must be .*, not {smoothing}$"):
        TET(label_smoothing=smoothing)
