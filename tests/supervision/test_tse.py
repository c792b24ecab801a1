"""TSE: golden figures, a scalar transcription of Eq. 7 to 12, limits, and what it may not touch."""

import math
import statistics
import warnings
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.neurons import LIF
from estl.supervision import TET, TSE, Sum, tse_keep, tse_loss
from estl.supervision.steps import erasing_threshold
from estl.supervision.tse import _past_prediction, relaxed_keep
from estl.types import Batch, Classify, Loss, Output, Supervision

# The oracle: equations 7 to 12 in loops over scalars. Scalars are 0-d tensors, for their gradients.

Vector = list[Tensor]


def scalar_linear(fc: nn.Linear, x: Vector) -> Vector:
    K, D = fc.weight.shape
    return [sum((fc.weight[k, d] * x[d] for d in range(D)), fc.bias[k]) for k in range(K)]


def scalar_lif(currents: list[Vector]) -> list[Vector]:
    """TET's neuron over a list of steps, its triangular surrogate by a straight-through sum."""
    potentials = [torch.zeros((), dtype=torch.float64) for _ in currents[0]]
    spikes = []
    for step in currents:
        fired = []
        for i, current in enumerate(step):
            v = 0.5 * potentials[i] + current
            slope = max(0.0, 1.0 - abs(v.item() - 1.0))
            s = float(v.item() > 1.0) + slope * (v - v.detach())
            potentials[i] = v * (1.0 - s)
            fired.append(s)
        spikes.append(fired)
    return spikes


def scalar_head(head: nn.Module, steps: list[Vector]) -> list[Vector]:
    """Logits of every step, of one linear layer or of fc, LIF, fc."""
    if isinstance(head, nn.Linear):
        return [scalar_linear(head, x) for x in steps]
    assert isinstance(head, nn.Sequential)
    fc1, _, fc2 = head
    assert isinstance(fc1, nn.Linear)
    assert isinstance(fc2, nn.Linear)
    return [scalar_linear(fc2, s) for s in scalar_lif([scalar_linear(fc1, x) for x in steps])]


def scalar_tse(
    features: Tensor,
    head: nn.Module,
    labels: Tensor,
    tau_f: float,
    kappa: float,
    temperature: float | None = None,
) -> tuple[Tensor, list[float]]:
    """The summed loss, and the mask in the order of its four dimensions; relaxed if `temperature`.

    `labels` are class numbers (B,) or class weights (B,K).
    """
    B, T, D, H, W = features.shape
    total = torch.zeros((), dtype=torch.float64)
    mask: list[float] = []
    for b in range(B):
        at_place = {  # logits of each place at each step, in floats: no gradient
            (i, j): [
                [z.item() for z in step]
                for step in scalar_head(
                    head, [[features[b, t, d, i, j] for d in range(D)] for t in range(T)]
                )
            ]
            for i in range(H)
            for j in range(W)
        }
        K = len(at_place[0, 0][0])
        y = labels[b].tolist() if labels.ndim == 2 else [float(k == labels[b]) for k in range(K)]
        pooled = []
        for t in range(T):
            keep = dict.fromkeys(at_place, 1.0)
            if t > 0:
                p = {}
                for place, z in at_place.items():
                    mean = [sum(z[s][k] for s in range(t)) / t for k in range(K)]
                    of_class = sum(y[k] * math.exp(mean[k]) for k in range(K))
                    p[place] = of_class / sum(math.exp(m) for m in mean)
                tau_d = statistics.mean(p.values()) + kappa * statistics.stdev(p.values())
                tau = max(tau_f, tau_d)
                keep = {place: float(not p[place] >= tau) for place in p}
                if temperature is not None:
                    keep = {q: 1 - 1 / (1 + math.exp(-(p[q] - tau) / temperature)) for q in p}
            mask += keep.values()
            pooled.append(
                [
                    sum(keep[i, j] * features[b, t, d, i, j] for i, j in keep) / (H * W)
                    for d in range(D)
                ]
            )
        for logits in scalar_head(head, pooled):
            log_sum = torch.stack(logits).exp().sum().log()
            total = total + sum(y[k] * (log_sum - logits[k]) for k in range(K))
    return total / B, mask


def linear_head(D: int, K: int) -> nn.Linear:
    return nn.Linear(D, K).double()


def spiking_head(D: int, K: int) -> nn.Sequential:
    """The head of ResNet-19, small."""
    return nn.Sequential(nn.Linear(D, 6), LIF.tet(), nn.Linear(6, K)).double()


@pytest.mark.parametrize("make_head", [linear_head, spiking_head])
@pytest.mark.parametrize(("tau_f", "kappa"), [(0.3, 0.5), (0.0, 0.0), (0.0, 1.0)])
def test_loss_mask_and_gradients_equal_a_scalar_transcription(
    make_head: Any, tau_f: float, kappa: float
) -> None:
    B, T, D, H, W, K = 2, 4, 5, 2, 3, 3
    head = make_head(D, K)
    features = (4.0 * torch.randn(B, T, D, H, W, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([2, 0])
    leaves = [features, *head.parameters()]

    expected, mask = scalar_tse(features, head, labels, tau_f, kappa)
    keep = tse_keep(features, head, labels, tau_f=tau_f, kappa=kappa)
    assert keep.flatten().tolist() == mask
    assert 0 < (~keep).sum() < keep[:, 1:].numel()

    loss = tse_loss(features, head, labels, tau_f=tau_f, kappa=kappa)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for ours, oracle in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        assert oracle.abs().max() > 1e-3
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make_head", [linear_head, spiking_head])
def test_mixed_labels_equal_a_scalar_transcription_with_the_label_weighted_map(
    make_head: Any,
) -> None:
    head = make_head(5, 3)
    features = (4.0 * torch.randn(2, 4, 5, 2, 3, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([[0.7, 0.0, 0.3], [0.25, 0.5, 0.25]], dtype=torch.float64)
    leaves = [features, *head.parameters()]
    expected, mask = scalar_tse(features, head, labels, 0.3, 0.5)
    keep = tse_keep(features, head, labels, tau_f=0.3, kappa=0.5)
    assert keep.flatten().tolist() == mask
    for y in (labels.argmax(1), labels.flip(1)):
        assert not torch.equal(keep, tse_keep(features, head, y, tau_f=0.3, kappa=0.5))
    loss = tse_loss(features, head, labels, tau_f=0.3, kappa=0.5)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for ours, oracle in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-10)


def test_one_hot_class_weights_are_the_class_numbers() -> None:
    head, labels = spiking_head(5, 3), torch.tensor([2, 0, 1])
    features = 4.0 * torch.randn(3, 4, 5, 4, 4, dtype=torch.float64)
    for weights in (F.one_hot(labels, 3).double(), F.one_hot(labels, 3).float()):
        keep = tse_keep(features, head, weights, tau_f=0.2, kappa=0.5)
        assert torch.equal(keep, tse_keep(features, head, labels, tau_f=0.2, kappa=0.5))
    torch.testing.assert_close(
        tse_loss(features, head, weights.double(), tau_f=0.2, kappa=0.5),
        tse_loss(features, head, labels, tau_f=0.2, kappa=0.5),
        rtol=0,
        atol=1e-14,
    )


# A learned kappa.


@pytest.mark.parametrize("make_head", [linear_head, spiking_head])
@pytest.mark.parametrize("temperature", [0.3, 0.05])
def test_the_gradient_of_kappa_is_that_of_the_relaxed_loss_by_finite_differences(
    make_head: Any, temperature: float
) -> None:
    head, labels = make_head(5, 3), torch.tensor([2, 0])
    features = 4.0 * torch.randn(2, 4, 5, 2, 3, dtype=torch.float64)
    kappa = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    loss = tse_loss(features, head, labels, tau_f=0.1, kappa=kappa, temperature=temperature)
    (slope,) = torch.autograd.grad(loss, kappa)

    # The spiking head's loss has jumps: its relaxed loss is differentiated as autograd does it,
    # by surrogate, through the scalar oracle's mask.
    h = 1e-5
    if isinstance(head, nn.Linear):
        up, down = (
            scalar_tse(features, head, labels, 0.1, 0.4 + step, temperature)[0] for step in (h, -h)
        )
        expected = (up - down) / (2 * h)
    else:
        masks = [
            torch.tensor(
                scalar_tse(features, head, labels, 0.1, k, temperature)[1], dtype=torch.float64
            )
            for k in (0.4, 0.4 + h, 0.4 - h)
        ]
        at, up, down = (m.view(2, 4, 1, 2, 3) for m in masks)
        at.requires_grad_()
        logits = head((features * at).mean((-2, -1)))
        relaxed = 4 * F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(4))
        expected = (torch.autograd.grad(relaxed, at)[0] * (up - down) / (2 * h)).sum()
    assert expected.abs() > 1e-4
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-9)


def test_a_learned_kappa_changes_neither_the_loss_nor_the_gradients_of_the_student() -> None:
    head, labels = spiking_head(5, 3), torch.tensor([2, 0])
    features = (4.0 * torch.randn(2, 4, 5, 4, 6, dtype=torch.float64)).requires_grad_()
    leaves = [features, *head.parameters()]
    fixed = tse_loss(features, head, labels, tau_f=0.1, kappa=0.4)
    kappa = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    learned = tse_loss(features, head, labels, tau_f=0.1, kappa=kappa)
    assert learned.item() == fixed.item()
    for ours, plain in zip(
        torch.autograd.grad(learned, leaves), torch.autograd.grad(fixed, leaves), strict=True
    ):
        assert torch.equal(ours, plain)


def test_the_relaxed_mask_becomes_the_hard_one_as_the_temperature_falls() -> None:
    head, labels = linear_head(5, 3), torch.tensor([2, 0])
    features = 4.0 * torch.randn(2, 4, 5, 2, 3, dtype=torch.float64)
    hard = tse_keep(features, head, labels, tau_f=0.1, kappa=0.4)[:, 1:].double()
    p = _past_prediction(features, head, labels)
    oracle = scalar_tse(features, head, labels, 0.1, 0.4, 0.3)[1]
    relaxed = relaxed_keep(p, 0.1, 0.4, temperature=0.3)
    assert relaxed.flatten().tolist() == pytest.approx(
        torch.tensor(oracle, dtype=torch.float64).view(2, 4, 2, 3)[:, 1:].flatten().tolist()
    )
    far = [
        (relaxed_keep(p, 0.1, 0.4, temperature) - hard).abs().max()
        for temperature in (0.1, 0.01, 1e-6)
    ]
    assert far[0] > far[1] > far[2]
    assert far[2] < 1e-9


def test_where_tau_f_rules_kappa_has_no_gradient() -> None:
    head, labels = linear_head(5, 3), torch.tensor([2, 0])
    features = 4.0 * torch.randn(2, 4, 5, 2, 3, dtype=torch.float64)
    kappa = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    tse_loss(features, head, labels, tau_f=1.5, kappa=kappa).backward()
    assert kappa.grad is not None
    assert kappa.grad.item() == 0.0


def test_asking_the_relaxed_loss_disturbs_no_running_statistics() -> None:
    head = nn.Sequential(nn.Linear(5, 6), nn.Flatten(0, 1), nn.BatchNorm1d(6), nn.Linear(6, 3))

    def classify(x: Tensor) -> Tensor:
        logits: Tensor = head(x)
        return logits.unflatten(0, x.shape[:2])

    features, labels = torch.randn(2, 4, 5, 2, 3), torch.tensor([2, 0])
    states = []
    for kappa in (0.4, torch.tensor(0.4, requires_grad=True)):
        head[2].reset_running_stats()
        tse_loss(features, Head(head, classify), labels, tau_f=0.1, kappa=kappa)
        states.append(head[2].running_mean.clone())
        assert head[2].num_batches_tracked == 1
        assert head.training
    assert torch.equal(*states)


class Head(nn.Module):
    """A function as the forward of a module, so that its mode is seen."""

    def __init__(self, module: nn.Module, function: Classify) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_the_module_learns_kappa_and_keeps_it_above_zero() -> None:
    features, head, labels = (
        3 * torch.randn(3, 4, 5, 6, 7),
        nn.Linear(5, 8),
        torch.tensor([0, 7, 3]),
    )
    output, batch = make(features, head, labels)
    tse = TSE(tau_f=0.1, kappa=0.5, learn_kappa=True, temperature=0.2)
    assert [name for name, _ in tse.named_parameters()] == ["kappa.raw"]
    loss = tse(output, batch)
    torch.testing.assert_close(
        loss.total, tse_loss(features, head, labels, tau_f=0.1, kappa=tse.kappa().item())
    )
    assert loss.metrics["kappa"].item() == pytest.approx(0.5)
    assert not loss.metrics["kappa"].requires_grad
    kappa = torch.tensor(0.5, requires_grad=True)
    tse_loss(features, head, labels, tau_f=0.1, kappa=kappa, temperature=0.2).backward()
    loss.total.backward()
    chain = 1 - math.exp(-0.5)  # of log(1 + exp(raw)) at 0.5
    assert tse.kappa.raw.grad.item() == pytest.approx(chain * kappa.grad.item(), rel=1e-4)
    assert abs(kappa.grad.item()) > 1e-4
    with torch.no_grad():
        tse.kappa.raw -= 50
    assert 0 < tse.kappa().item() < 1e-8
    assert not TSE(kappa=0.5).state_dict()


# Golden figures.


@pytest.mark.parametrize(
    ("name", "tau_f", "kappa"),
    [("tse_seed_test1", 0.5, 1.0), ("tse_erasing", 0.3, 0.5), ("tse_discriminating", 0.1, 0.5)],
)
def test_tse_gives_the_golden_figures(
    golden: dict[str, Any], name: str, tau_f: float, kappa: float
) -> None:
    torch.manual_seed(42)
    features, labels = torch.randn(4, 4, 128, 8, 8), torch.randint(0, 10, (4,))
    head = nn.Linear(128, 10)
    loss = tse_loss(features, head, labels, tau_f=tau_f, kappa=kappa)
    assert loss.item() == pytest.approx(golden[name]["loss"], abs=1e-5)


def test_map_threshold_and_mask_are_the_golden_ones(golden: dict[str, Any]) -> None:
    figure = golden["tse_mask_seed_test5"]
    torch.manual_seed(42)
    features = torch.randn(1, 3, 32, 4, 4)
    features[0, 1, :, 0, 0] *= 2
    features[0, 2, :, 3, 3] *= 2
    head, labels = nn.Linear(32, 3), torch.tensor([1])
    p = _past_prediction(features, head, labels)
    threshold = erasing_threshold(p, 0.5, 1.0)
    torch.testing.assert_close(p[0, 0], torch.tensor(figure["map"]), rtol=0, atol=5.1e-5)
    assert threshold[0, 0].item() == pytest.approx(figure["threshold"], abs=5.1e-5)
    keep = tse_keep(features, head, labels, tau_f=0.5, kappa=1.0)
    assert keep[0, 1].int().tolist() == figure["keep"]


# Limits.


def test_tse_with_tau_f_above_one_is_the_sum_of_cross_entropies() -> None:
    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    loss = tse_loss(features, head, labels, tau_f=1.01, kappa=0.0)
    logits = head(features.mean((-2, -1)))
    torch.testing.assert_close(loss, sum(F.cross_entropy(logits[:, t], labels) for t in range(4)))


def test_a_large_kappa_erases_nothing() -> None:
    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    assert tse_keep(features, head, labels, tau_f=0.0, kappa=50.0).all()


def test_one_step_keeps_everything_and_is_cross_entropy() -> None:
    features, head, labels = torch.randn(3, 1, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    assert tse_keep(features, head, labels, tau_f=0.0, kappa=0.0).all()
    loss = tse_loss(features, head, labels, tau_f=0.0, kappa=0.0)
    torch.testing.assert_close(loss, F.cross_entropy(head(features[:, 0].mean((-2, -1))), labels))


def test_a_map_of_one_place_is_kept_without_a_warning() -> None:
    features, head, labels = torch.randn(3, 4, 5, 1, 1), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tse_keep(features, head, labels, tau_f=0.0, kappa=0.0).all()


def test_a_place_at_the_threshold_is_erased_and_a_sample_may_lose_all_places() -> None:
    # Two classes and no evidence at step 1: P_2 is 1/2 everywhere, its mean 1/2, its deviation 0.
    features, labels = torch.zeros(1, 2, 2, 2, 2), torch.tensor([0])
    features[0, 1, 0] = 5.0  # all that step 2 knows, erased
    head = nn.Identity()
    assert not tse_keep(features, head, labels, tau_f=0.5, kappa=1.0)[:, 1].any()
    loss = tse_loss(features, head, labels, tau_f=0.5, kappa=1.0)
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6)
    assert tse_keep(features, head, labels, tau_f=0.5001, kappa=1.0).all()
    loss = tse_loss(features, head, labels, tau_f=0.5001, kappa=1.0)
    assert loss.item() == pytest.approx(math.log(2) + math.log1p(math.exp(-5)), abs=1e-6)


def test_erased_places_count_as_zeros_in_the_mean() -> None:
    # Four places, one sure of its class at step 1. The head is the identity: logits are features.
    features, labels = torch.zeros(1, 2, 2, 2, 2), torch.tensor([0])
    features[0, 0, 0, 1, 1] = 10.0
    features[0, 1, 0] = torch.tensor([[1.0, 2.0], [3.0, 100.0]])
    loss = tse_loss(features, nn.Identity(), labels, tau_f=0.9, kappa=1.0)
    expected = math.log1p(math.exp(-10 / 4)) + math.log1p(math.exp(-(1 + 2 + 3) / 4))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_mean_over_steps_is_the_sum_divided_by_their_number() -> None:
    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    mean = tse_loss(features, head, labels, tau_f=0.1, kappa=0.5, reduction="mean")
    total = tse_loss(features, head, labels, tau_f=0.1, kappa=0.5)
    torch.testing.assert_close(4 * mean, total)


def test_label_smoothing_is_that_of_cross_entropy() -> None:
    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    loss = tse_loss(features, head, labels, tau_f=2.0, kappa=0.0, label_smoothing=0.3)
    logits = head(features.mean((-2, -1)))
    parts = [F.cross_entropy(logits[:, t], labels, label_smoothing=0.3) for t in range(4)]
    torch.testing.assert_close(loss, sum(parts))


def test_a_criterion_takes_the_place_of_cross_entropy() -> None:
    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    smooth = nn.CrossEntropyLoss(label_smoothing=0.3)
    for reduction in ("sum", "mean"):
        options: dict[str, Any] = {"tau_f": 0.1, "kappa": 0.5, "reduction": reduction}
        expected = tse_loss(features, head, labels, label_smoothing=0.3, **options)
        torch.testing.assert_close(tse_loss(features, head, labels, smooth, **options), expected)
        output, batch = make(features, head, labels)
        torch.testing.assert_close(TSE(criterion=smooth, **options)(output, batch).total, expected)
    hinge = tse_loss(features, head, labels, F.multi_margin_loss, tau_f=2.0)
    logits = head(features.mean((-2, -1)))
    torch.testing.assert_close(
        hinge, sum(F.multi_margin_loss(logits[:, t], labels) for t in range(4))
    )


def test_a_criterion_must_return_a_mean_and_smooths_its_labels_itself() -> None:
    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    with pytest.raises(ValueError, match=r"^criterion must return a scalar, .* not \(12,\)$"):
        tse_loss(features, head, labels, nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(ValueError, match=r"^label_smoothing must be 0 beside a criterion, not 0.1"):
        TSE(criterion=nn.CrossEntropyLoss(), label_smoothing=0.1)


# Samples and places do not mix.


def test_a_sample_keeps_its_mask_in_any_batch() -> None:
    features, labels = 2 * torch.randn(4, 3, 5, 4, 6), torch.tensor([1, 0, 2, 1])
    head = spiking_head(5, 3).float()
    keep = tse_keep(features, head, labels, tau_f=0.1, kappa=0.5)
    order = torch.tensor([3, 1, 0, 2])
    turned = tse_keep(features[order], head, labels[order], tau_f=0.1, kappa=0.5)
    assert torch.equal(turned, keep[order])
    for b in range(4):
        alone = tse_keep(features[b : b + 1], head, labels[b : b + 1], tau_f=0.1, kappa=0.5)
        assert torch.equal(alone[0], keep[b])


def test_the_mask_moves_with_the_places() -> None:
    features, labels = 2 * torch.randn(2, 3, 5, 4, 6), torch.tensor([1, 0])
    head = spiking_head(5, 3).float()
    keep = tse_keep(features, head, labels, tau_f=0.1, kappa=0.5)
    assert not keep.all()
    moved = tse_keep(features.flip(-1).transpose(-1, -2), head, labels, tau_f=0.1, kappa=0.5)
    assert torch.equal(moved, keep.flip(-1).transpose(-1, -2))


def test_the_mask_does_not_depend_on_the_layout_in_memory() -> None:
    features, labels = 2 * torch.randn(2, 3, 5, 4, 6), torch.tensor([1, 0])
    head = nn.Linear(5, 3)
    time_first = features.transpose(0, 1).contiguous().transpose(0, 1)
    channels_last = features.movedim(2, -1).contiguous().movedim(-1, 2)
    for view in (time_first, channels_last):
        torch.testing.assert_close(
            tse_loss(view, head, labels, tau_f=0.1, kappa=0.5),
            tse_loss(features, head, labels, tau_f=0.1, kappa=0.5),
        )


def test_a_step_sees_only_the_steps_before_it() -> None:
    features, labels = 2 * torch.randn(2, 4, 5, 4, 6), torch.tensor([1, 0])
    head = spiking_head(5, 3).float()
    keep = tse_keep(features, head, labels, tau_f=0.1, kappa=0.5)
    changed = features.clone()
    changed[:, 2:] = torch.randn_like(changed[:, 2:])
    now = tse_keep(changed, head, labels, tau_f=0.1, kappa=0.5)
    assert torch.equal(now[:, :3], keep[:, :3])
    assert not torch.equal(now[:, 3], keep[:, 3])


# What it costs and what it leaves alone.


def test_the_head_is_asked_twice_first_for_all_places_without_gradient() -> None:
    head, calls = nn.Linear(5, 8), []

    def classify(x: Tensor) -> Tensor:
        calls.append((tuple(x.shape), torch.is_grad_enabled()))
        logits: Tensor = head(x)
        return logits

    features = torch.randn(2, 4, 5, 6, 7, requires_grad=True)
    tse_loss(features, classify, torch.tensor([0, 7]), tau_f=0.1, kappa=0.5)
    assert calls == [((2 * 6 * 7, 3, 5), False), ((2, 4, 5), True)]


def test_the_graph_saves_no_map_of_the_features() -> None:
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    features = torch.randn(2, 4, 64, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        tse_loss(features, nn.Linear(64, 3), torch.tensor([0, 2]), tau_f=0.1, kappa=0.5)
    assert sum(saved) < features.numel() / 10


@pytest.mark.parametrize("as_method", [False, True])
def test_asking_places_disturbs_neither_batch_norm_nor_dropout_nor_the_mode(
    as_method: bool,
) -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop, self.fc = nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(5, 3)
            self.frozen = nn.BatchNorm1d(3).eval()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.fc(self.drop(x)).transpose(1, 2)).transpose(1, 2)
            return y

    student = Student()
    classify: Classify = student.forward if as_method else student
    features, labels = torch.randn(4, 3, 5, 6, 6), torch.tensor([0, 1, 2, 0])
    before = {name: value.clone() for name, value in student.state_dict().items()}
    random = torch.get_rng_state()
    keep = tse_keep(features, classify, labels, tau_f=0.1, kappa=0.5)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert student.training
    assert student.norm.training
    assert student.drop.training
    assert not student.frozen.training
    asked = tse_keep(features, student.eval(), labels, tau_f=0.1, kappa=0.5)
    assert torch.equal(keep, asked)


def test_the_mode_is_restored_when_the_head_fails() -> None:
    head = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(RuntimeError):
        tse_keep(torch.randn(1, 2, 5, 2, 2), head, torch.tensor([0]), tau_f=0.5, kappa=1.0)
    assert head.training


def test_half_precision_logits_are_averaged_in_single_precision() -> None:
    features, head, labels = torch.randn(2, 8, 16, 6, 6), nn.Linear(16, 3), torch.tensor([0, 2])
    half = features.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = _past_prediction(half, head, labels)
        loss = tse_loss(half, head, labels, tau_f=0.1, kappa=0.5)
        weighted = _past_prediction(half, head, F.one_hot(labels, 3).float())
    assert p.dtype == torch.float32
    assert torch.equal(weighted, p)  # nor is it rounded of class weights
    torch.testing.assert_close(p, _past_prediction(features, head, labels), rtol=0, atol=0.01)
    torch.testing.assert_close(
        loss, tse_loss(features, head, labels, tau_f=0.1, kappa=0.5), rtol=0.02, atol=0
    )


# The module.


def test_the_module_takes_the_class_weights_of_mixed_samples() -> None:
    features, head = 3 * torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8)
    mixed = torch.rand(3, 8).softmax(-1)
    output, batch = make(features, head, torch.tensor([0, 7, 3]))
    batch = Batch(batch.events, batch.label, soft_label=mixed)
    expected = tse_loss(features, head, mixed, tau_f=0.1, kappa=0.5)
    torch.testing.assert_close(TSE(tau_f=0.1, kappa=0.5)(output, batch).total, expected)
    plain = tse_loss(features, head, mixed, tau_f=2.0)
    torch.testing.assert_close(TSE(tau_f=0.1, kappa=0.5).eval()(output, batch).total, plain)


def make(features: Tensor, classify: Classify, labels: Tensor) -> tuple[Output, Batch]:
    pooled = features.mean((-2, -1))
    B, T = labels.shape[0], features.shape[1]
    return (
        Output(classify(pooled), features, classify, pooled),
        Batch(torch.zeros(B, T, 2, 8, 8), labels),
    )


def test_the_module_erases_in_training_only() -> None:
    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    output, batch = make(features, head, labels)
    tse = TSE(tau_f=0.1, kappa=0.5)
    erasing = tse_loss(features, head, labels, tau_f=0.1, kappa=0.5)
    plain = tse_loss(features, head, labels, tau_f=2.0, kappa=0.5)
    assert (erasing - plain).abs() > 1e-4
    torch.testing.assert_close(tse(output, batch).total, erasing)
    validation = tse.eval()(output, batch)
    torch.testing.assert_close(validation.total, plain)
    assert validation.metrics == {}


def test_the_module_passes_its_options_on() -> None:
    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    output, batch = make(features, head, labels)
    options: dict[str, Any] = {
        "tau_f": 0.1,
        "kappa": 0.2,
        "reduction": "mean",
        "label_smoothing": 0.1,
    }
    expected = tse_loss(features, head, labels, **options)
    torch.testing.assert_close(TSE(**options)(output, batch).total, expected)
    defaults = tse_loss(features, head, labels, tau_f=0.5, kappa=1.0, reduction="sum")
    torch.testing.assert_close(TSE()(output, batch).total, defaults)


def test_the_metrics_count_erased_places_and_samples_without_any_place() -> None:
    # Sample 0 has no evidence: with tau_f = 1/2 it loses all places at steps 2 and 3. Sample 1 is
    # sure of its class at one place of four, and loses that one.
    features = torch.zeros(2, 3, 2, 2, 2)
    features[1, :, 0, 0, 1] = 9.0
    output, batch = make(features, nn.Identity(), torch.tensor([1, 0]))
    metrics = TSE(tau_f=0.5, kappa=1.0)(output, batch).metrics
    assert metrics["erased"].item() == pytest.approx((4 + 4 + 1 + 1) / 16)
    assert metrics["erased_everywhere"].item() == pytest.approx(2 / 4)


def test_the_metrics_of_one_step_are_zero() -> None:
    output, batch = make(torch.randn(2, 1, 5, 3, 3), nn.Linear(5, 2), torch.tensor([1, 0]))
    metrics = TSE(tau_f=0.0, kappa=0.0)(output, batch).metrics
    assert {name: value.item() for name, value in metrics.items()} == {
        "erased": 0.0,
        "erased_everywhere": 0.0,
    }


def test_the_past_of_a_step_and_its_threshold_are_those_of_the_mask() -> None:
    torch.manual_seed(0)
    features, head = torch.rand(2, 3, 8, 4, 4).double(), linear_head(8, 5)
    supervision = TSE(tau_f=0.1, kappa=0.5)
    found = supervision.past(*(asked := make(features, head, torch.tensor([0, 4]))))
    assert found is not None
    p, threshold = found
    tau_d = p.mean((-2, -1), keepdim=True) + 0.5 * p.std((-2, -1), keepdim=True)
    torch.testing.assert_close(threshold, tau_d.clamp(min=0.1))
    torch.testing.assert_close(supervision.keep(*asked)[:, 1:], p < threshold)
    assert supervision.past(*make(features[:, :1], head, torch.tensor([0, 4]))) is None
    assert supervision.past(*make(features[..., :1, :1], head, torch.tensor([0, 4]))) is None


@pytest.mark.parametrize("training", [True, False])
def test_a_head_that_reads_no_pooled_features_is_refused(training: bool) -> None:
    features = torch.randn(2, 3, 5, 4, 4)
    output = Output(
        torch.randn(2, 3, 7), features, nn.Linear(80, 7), features.mean((-2, -1)), pooled_head=False
    )
    batch = Batch(torch.zeros(2, 3, 2, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(
        ValueError, match=r'^.*VGGSNN\(pooled=True\) or Spikformer\(readout="mean"\)$'
    ):
        TSE().train(training)(output, batch)
    with pytest.raises(ValueError, match="VGGSNN"):
        TSE().keep(output, batch)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tau_f", -0.1),
        ("tau_f", math.nan),
        ("kappa", -1.0),
        ("kappa", math.nan),
        ("temperature", 0.0),
        ("reduction", "none"),
        ("label_smoothing", 1.5),
    ],
)
def test_tse_refuses_an_option_outside_its_range(
    option: str, value: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match=rf"^{option} must be .*, not {value!r}$"):
        TSE(**{option: value})
    options: dict[str, Any] = {"tau_f": 0.5, "kappa": 1.0, option: value}
    with pytest.raises(ValueError, match=rf"^{option} must be"):
        tse_loss(torch.zeros(1, 2, 3, 2, 2), nn.Identity(), torch.tensor([0]), **options)


def test_kappa_cannot_be_learned_from_zero() -> None:
    with pytest.raises(ValueError, match=r"^kappa must be > 0 to be learned, not 0.0$"):
        TSE(kappa=0.0, learn_kappa=True)


# TSE beside TET.


def test_the_hybrid_of_tse_and_tet_is_their_mixture_and_at_its_ends_each_alone() -> None:
    features, head, labels = (
        3 * torch.randn(3, 4, 5, 6, 7),
        nn.Linear(5, 8),
        torch.tensor([0, 7, 3]),
    )
    output, batch = make(features, head, labels)
    tse, tet = TSE(0.1, 0.5, reduction="mean"), TET()
    for w in (0.0, 0.3, 1.0):
        loss = Sum([tse, tet], weights=[w, 1 - w])(output, batch)
        expected = w * tse(output, batch).total + (1 - w) * tet(output, batch).total
        torch.testing.assert_close(loss.total, expected, rtol=0 if w in (0, 1) else 1e-6, atol=0)
        assert ("tse" in loss.terms) == ("erased" in loss.metrics) == (w > 0)
        assert ("tet_ce" in loss.terms) == (w < 1)


def test_a_part_of_weight_zero_is_neither_asked_nor_trained() -> None:
    class Bomb(Supervision):
        def __init__(self) -> None:
            super().__init__()
            self.fuse = nn.Linear(2, 2)

        def forward(self, output: Output, batch: Batch) -> Loss:
            raise AssertionError

    features, head, labels = torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8), torch.tensor([0, 7, 3])
    output, batch = make(features, head, labels)
    both = Sum([TSE(learn_kappa=True), Bomb()], weights=[1.0, 0.0])
    both(output, batch)
    assert [n for n, p in both.named_parameters() if p.requires_grad] == [
        "supervisions.0.kappa.raw"
    ]


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Sum got the weights \[0.0, 0.0\]: one must not be 0$"):
        Sum([TSE(), TET()], weights=[0.0, 0.0])


def test_a_linear_head_is_asked_as_any_other_is() -> None:
    """It is called once for all places, not through `classify`; unless something listens."""
    head, features = nn.Linear(6, 4), torch.randn(3, 5, 6, 4, 3)
    labels = torch.tensor([0, 3, 1])
    how: dict[str, float] = {"tau_f": 0.2, "kappa": 0.3}
    found = tse_keep(features, head, labels, **how)
    assert not found.all()
    assert torch.equal(found, tse_keep(features, lambda x: head(x), labels, **how))
    seen: list[torch.Size] = []
    head.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    assert torch.equal(found, tse_keep(features, head, labels, **how))
    assert seen == [torch.Size([36, 4, 4])]
