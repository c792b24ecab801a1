"""TRE: a scalar transcription of its docstring, limits, and what it may not touch."""

import copy
import math
import statistics
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.neurons import LIF
from estl.supervision import TRE, Schedule, tre_keep, tre_loss
from estl.supervision.steps import erased
from estl.supervision.tre import _past_contribution
from estl.types import Batch, Output


def scalar_contribution(head: nn.Module, past: Tensor, y: list[float]) -> list[float]:
    """c(d) of one sample's past (S,D): by the formula for a linear layer, else by one autograd call
    for each step, which sees that step's past alone.
    """
    S, D = past.shape
    if isinstance(head, nn.Linear):
        w = head.weight.tolist()
        return [
            sum(sum(y[k] * w[k][d] for k in range(len(y))) * past[s, d].item() for s in range(S))
            / S
            for d in range(D)
        ]
    c = [0.0] * D
    for s in range(S):
        upto = past[: s + 1].detach().clone().requires_grad_()
        z = head(upto.unsqueeze(0))[0, s]
        (slope,) = torch.autograd.grad(sum(y[k] * z[k] for k in range(len(y))), upto)
        for r in range(s + 1):
            for d in range(D):
                c[d] += slope[r, d].item() * past[r, d].item() / S
    return c


def scalar_tre(
    pooled: Tensor, head: nn.Module, labels: Tensor, theta0: float, lamb: float, K: int
) -> tuple[Tensor, list[bool]]:
    """The summed loss, and the mask in the order of its three dimensions."""
    B, T, D = pooled.shape
    total = torch.zeros((), dtype=torch.float64)
    mask: list[bool] = []
    for b in range(B):
        y = labels[b].tolist() if labels.ndim == 2 else [float(k == labels[b]) for k in range(K)]
        steps = []
        for t in range(T):
            keep = [True] * D
            if t > 0:
                c = [max(x, 0.0) for x in scalar_contribution(head, pooled[b, :t], y)]
                a = [x / max(c) for x in c]
                theta = max(theta0, statistics.mean(a) + lamb * statistics.stdev(a))
                keep = [not x >= theta for x in a]
            mask += keep
            steps.append(
                torch.stack(
                    [
                        pooled[b, t, d] * D / sum(keep) if keep[d] else torch.zeros(()).double()
                        for d in range(D)
                    ]
                )
            )
        for z in head(torch.stack(steps).unsqueeze(0))[0]:
            total = total + sum(y[k] * (z.exp().sum().log() - z[k]) for k in range(K))
    return total / B, mask


def linear_head(D: int, K: int) -> nn.Module:
    return nn.Linear(D, K).double()


def spiking_head(D: int, K: int) -> nn.Module:
    """The head of ResNet-19, small."""
    return nn.Sequential(nn.Linear(D, 6), LIF.tet(), nn.Linear(6, K)).double()


@pytest.mark.parametrize("make_head", [linear_head, spiking_head])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("theta0", "lamb"), [(0.5, 1.0), (0.1, 0.0), (0.9, 0.5)])
def test_loss_mask_and_gradients_equal_a_scalar_transcription(
    make_head: Any, mixed: bool, theta0: float, lamb: float
) -> None:
    B, T, D, K = 3, 4, 7, 3
    head = make_head(D, K)
    pooled = (2 * torch.randn(B, T, D, dtype=torch.float64)).requires_grad_()
    labels = torch.rand(B, K).double().softmax(-1) if mixed else torch.tensor([2, 0, 1])
    leaves = [pooled, *head.parameters()]
    expected, mask = scalar_tre(pooled, head, labels, theta0, lamb, K)
    keep = tre_keep(pooled, head, labels, theta0=theta0, lamb=lamb)
    assert keep.flatten().tolist() == mask
    assert 0 < (~keep).sum() < keep[:, 1:].numel()
    loss = tre_loss(pooled, head, labels, theta0=theta0, lamb=lamb)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for ours, oracle in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        assert oracle.abs().max() > 1e-3
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences() -> None:
    head = linear_head(6, 3)
    pooled = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return tre_loss(x, head, torch.tensor([2, 0]), theta0=0.3, lamb=0.5)

    assert torch.autograd.gradcheck(loss, (pooled,))


def test_a_linear_heads_contribution_is_its_weight_times_the_mean_of_the_past() -> None:
    head, labels = nn.Linear(6, 3), torch.tensor([2, 0])
    pooled = torch.rand(2, 4, 6)
    a = _past_contribution(pooled, head, labels)
    for t in range(1, 4):
        c = (head.weight[labels] * pooled[:, :t].mean(1)).clamp(min=0)
        torch.testing.assert_close(a[:, t - 1], c / c.amax(-1, keepdim=True))


def test_contributions_do_not_depend_on_the_scale_of_features_or_weights() -> None:
    head, labels, pooled = nn.Linear(6, 3), torch.tensor([2, 0]), torch.rand(2, 4, 6)
    a = _past_contribution(pooled, head, labels)
    head.weight.data *= 1e-9
    torch.testing.assert_close(_past_contribution(100 * pooled, head, labels), a)


def test_contributions_of_half_precision_are_summed_in_float32() -> None:
    head, labels = nn.Linear(6, 3).bfloat16(), torch.tensor([2, 0])
    pooled = torch.rand(2, 9, 6).bfloat16()
    a = _past_contribution(pooled, head, labels)
    assert a.dtype == torch.float32
    exact = _past_contribution(pooled.float(), copy.deepcopy(head).float(), labels)
    torch.testing.assert_close(a, exact, atol=0.02, rtol=0)


def test_theta0_above_one_leaves_the_sum_of_cross_entropies() -> None:
    pooled, head, labels = torch.randn(3, 4, 5), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    logits = head(pooled)
    plain = sum(F.cross_entropy(logits[:, t], labels) for t in range(4))
    torch.testing.assert_close(tre_loss(pooled, head, labels, theta0=1.01, lamb=0.0), plain)
    torch.testing.assert_close(tre_loss(pooled, head, labels, theta0=1e9), plain)
    torch.testing.assert_close(
        tre_loss(pooled, head, labels, theta0=1.01, reduction="mean"), plain / 4
    )


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 4, 1)])
def test_one_step_or_one_channel_is_kept(shape: tuple[int, int, int]) -> None:
    head = nn.Sequential(nn.Linear(shape[2], 4), LIF.tet(), nn.Linear(4, 3))
    keep = tre_keep(torch.rand(shape), head, torch.tensor([0, 2]), theta0=0.1, lamb=0.0)
    assert keep.all()
    assert [share.item() for share in erased(keep)] == [0.0, 0.0]


def test_where_nothing_speaks_for_the_class_everything_is_kept() -> None:
    head = nn.Linear(4, 2)
    head.weight.data[0] = -1.0
    labels = torch.tensor([0])
    assert tre_keep(torch.rand(1, 3, 4), head, labels, theta0=0.1, lamb=0.0).all()
    assert tre_keep(torch.zeros(1, 3, 4), head, labels, theta0=0.1, lamb=0.0).all()


def test_a_sample_that_loses_all_channels_is_left_with_the_heads_answer_to_zeros() -> None:
    head, labels = nn.Linear(2, 2), torch.tensor([0])
    head.weight.data[0] = 1.0
    pooled = torch.ones(1, 2, 2)  # all channels say the same
    assert not tre_keep(pooled, head, labels, theta0=0.5, lamb=0.0)[:, 1].any()
    loss = tre_loss(pooled, head, labels, theta0=0.5, lamb=0.0)
    expected = F.cross_entropy(head(pooled[:, 0]), labels) + F.cross_entropy(
        head.bias.unsqueeze(0), labels
    )
    torch.testing.assert_close(loss, expected)


def test_a_step_sees_only_the_steps_before_it_though_the_head_is_asked_once() -> None:
    head = spiking_head(6, 3)
    calls: list[tuple[int, ...]] = []
    head.register_forward_hook(lambda *args: calls.append(tuple(args[2].shape)))
    pooled, labels = 2 * torch.randn(2, 5, 6).double(), torch.tensor([1, 0])
    keep = tre_keep(pooled, head, labels, theta0=0.2, lamb=0.0)
    assert calls == [(2 * 4, 4, 3)]
    changed = pooled.clone()
    changed[:, 3:] = torch.randn_like(changed[:, 3:])
    now = tre_keep(changed, head, labels, theta0=0.2, lamb=0.0)
    assert torch.equal(now[:, :4], keep[:, :4])
    assert not torch.equal(now[:, 4], keep[:, 4])


def test_asking_leaves_gradients_mode_and_random_numbers_alone() -> None:
    head = nn.Sequential(nn.Dropout(), nn.Linear(6, 3))
    pooled = torch.randn(2, 4, 6, requires_grad=True)
    random = torch.get_rng_state()
    keep = tre_keep(pooled, head, torch.tensor([1, 0]), theta0=0.2, lamb=0.0)
    assert torch.equal(random, torch.get_rng_state())
    assert head[0].training
    assert not keep.requires_grad
    assert pooled.grad is None
    assert head[1].weight.grad is None


Example = tuple[Output, Batch, nn.Linear]


def test_the_module_erases_in_training_only_and_reports_how_much(pooled_example: Example) -> None:
    output, batch, head = pooled_example
    tre = TRE(theta0=0.3, lamb=0.5)
    loss = tre(output, batch)
    pooled = output.class_token
    expected = tre_loss(pooled, head, batch.label, theta0=0.3, lamb=0.5)
    plain = tre_loss(pooled, head, batch.label, theta0=2.0)
    torch.testing.assert_close(loss.total, expected)
    assert (expected - plain).abs() > 1e-4
    keep = tre_keep(pooled, head, batch.label, theta0=0.3, lamb=0.5)
    share = (~keep[:, 1:]).double().mean().item()
    assert loss.metrics["erased_channels"].item() == pytest.approx(share)
    assert loss.metrics["erased_all_channels"].item() == 0.0
    assert loss.terms == {"tre": loss.total}
    validation = tre.eval()(output, batch)
    torch.testing.assert_close(validation.total, plain)
    assert validation.metrics == {}


def test_the_module_passes_its_options_and_mixed_labels_on(pooled_example: Example) -> None:
    output, batch, head = pooled_example
    mixed = torch.rand(3, 8).softmax(-1)
    batch = Batch(batch.events, batch.label, soft_label=mixed)
    options: dict[str, Any] = {"theta0": 0.2, "lamb": 0.1, "reduction": "mean"}
    expected = tre_loss(output.class_token, head, mixed, label_smoothing=0.1, **options)
    torch.testing.assert_close(TRE(label_smoothing=0.1, **options)(output, batch).total, expected)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(TRE(criterion=criterion, **options)(output, batch).total, expected)
    torch.testing.assert_close(
        tre_loss(output.class_token, head, mixed, criterion, **options), expected
    )
    loss = TRE(**options | {"theta0": Schedule(0.2)}, label_smoothing=0.1)(output, batch)
    torch.testing.assert_close(loss.total, expected)
    assert loss.metrics["theta0"].item() == pytest.approx(0.2)
    plain = tre_loss(output.class_token, head, mixed, theta0=2.0, reduction="mean")
    torch.testing.assert_close(TRE(reduction="mean").eval()(output, batch).total, plain)


def test_the_module_and_the_function_have_the_same_defaults(pooled_example: Example) -> None:
    output, batch, head = pooled_example
    expected = tre_loss(output.class_token, head, batch.label)
    torch.testing.assert_close(TRE()(output, batch).total, expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_head_that_reads_no_pooled_features_is_refused(
    training: bool, pooled_example: Example
) -> None:
    output, batch, _ = pooled_example
    flat = Output(
        output.logits, output.features, output.classify, output.class_token, pooled_head=False
    )
    with pytest.raises(ValueError, match=r"^TRE .* use VGGSNN\(pooled=True\)"):
        TRE().train(training)(flat, batch)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("theta0", 0.0),
        ("theta0", math.nan),
        ("lamb", -1.0),
        ("lamb", math.nan),
        ("reduction", "none"),
        ("label_smoothing", 1.5),
    ],
)
def test_an_option_outside_its_range_is_refused(
    option: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match=rf"^{option} must be .*, not {value!r}$"):
        TRE(**{option: value})
    with pytest.raises(ValueError, match=rf"^{option} must be"):
        tre_loss(torch.zeros(1, 2, 3), nn.Identity(), torch.tensor([0]), **{option: value})


@pytest.mark.parametrize("schedule", [Schedule(0.0), Schedule(0.9, 0.0, "linear")])
def test_a_schedule_that_reaches_zero_is_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=r"^theta0 must be > 0, not 0.0$"):
        TRE(theta0=schedule)
