"""What holds for every supervision over time; MeanCE and Sum."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.commands.flags import TrainingFlags
from estl.supervision import (
    TET,
    TRE,
    TSE,
    MeanCE,
    Sum,
    Supervision,
    WeightedCE,
    tre_keep,
    tre_loss,
    tse_keep,
    tse_loss,
)
from estl.supervision.steps import StepLoss, erased, kept_mean, running_mean
from estl.training.checkpoint import make as instantiate
from estl.training.recipe import make_parser, parse
from estl.types import Batch, Loss, Output

EVERY = [
    MeanCE(),
    MeanCE(label_smoothing=0.1),
    TET(),
    TET(means=0.5, lamb=0.3),
    TSE(tau_f=0.1, kappa=0.0),
    TSE(tau_f=0.1, kappa=0.0, reduction="mean", label_smoothing=0.1).eval(),
    Sum([MeanCE(), TET(), TSE()], weights=[1.0, 0.5, 0.25]),
]


def make(B: int = 4, T: int = 3, D: int = 5, K: int = 6) -> tuple[Output, Batch, nn.Linear]:
    """A hand-made output of random maps, its batch, and its head."""
    head = nn.Linear(D, K)
    features = torch.randn(B, T, D, 2, 3, requires_grad=True)
    pooled = features.mean((-2, -1))
    output = Output(head(pooled), features, head, pooled)
    return output, Batch(torch.zeros(B, T, 2, 8, 8), torch.randint(0, K, (B,))), head


class Constant(Supervision):
    """Reports what it was given."""

    def __init__(self, term: str, metric: str) -> None:
        super().__init__()
        self.term, self.metric = term, metric

    def forward(self, output: Output, batch: Batch) -> Loss:
        one = torch.ones(())
        return Loss(one, {self.term: one}, {self.metric: one})


@pytest.mark.parametrize("supervision", EVERY, ids=str)
def test_the_terms_sum_to_a_finite_total_and_all_are_scalars(supervision: Supervision) -> None:
    output, batch, _ = make()
    loss = supervision(output, batch)
    torch.testing.assert_close(torch.stack(list(loss.terms.values())).sum(), loss.total)
    assert loss.total.isfinite()
    assert all(value.shape == () for value in (loss.terms | loss.metrics).values())
    assert not any(value.requires_grad for value in loss.metrics.values())


@pytest.mark.parametrize("supervision", EVERY, ids=str)
def test_the_gradient_reaches_the_features_and_the_head(supervision: Supervision) -> None:
    output, batch, head = make()
    supervision(output, batch).total.backward()
    for leaf in (output.features, head.weight, head.bias):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("supervision", EVERY, ids=str)
def test_the_order_of_the_batch_does_not_matter(supervision: Supervision) -> None:
    output, batch, head = make()
    order = torch.tensor([2, 0, 3, 1])
    turned = Output(output.logits[order], output.features[order], head, output.class_token[order])
    torch.testing.assert_close(
        supervision(turned, Batch(batch.events, batch.label[order])).total,
        supervision(output, batch).total,
    )


@pytest.mark.parametrize("supervision", EVERY, ids=str)
def test_a_label_out_of_range_is_not_passed_over_on_the_cpu(supervision: Supervision) -> None:
    output, batch, _ = make(K=6)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        supervision(output, Batch(batch.events, torch.tensor([0, 1, 6, 2])))


@pytest.mark.parametrize("supervision", EVERY, ids=str)
def test_nothing_is_learned_or_stored_by_a_supervision_over_time(supervision: Supervision) -> None:
    assert not supervision.state_dict()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True], ids=["hard", "soft"])
def test_mean_ce_equals_a_scalar_loop(smoothing: float, mixed: bool) -> None:
    output, batch, _ = make(B=3, T=4, K=5)
    weights = torch.rand(3, 5).softmax(1) if mixed else F.one_hot(batch.label, 5)
    if mixed:
        batch = dataclasses.replace(batch, soft_label=weights)
    z, y = output.logits.tolist(), weights.tolist()
    expected = 0.0
    for b in range(3):
        mean = [sum(z[b][t][k] for t in range(4)) / 4 for k in range(5)]
        log_sum = math.log(sum(math.exp(m) for m in mean))
        for k in range(5):
            target = smoothing / 5 + (1 - smoothing) * y[b][k]
            expected += target * (log_sum - mean[k]) / 3
    loss = MeanCE(label_smoothing=smoothing)(output, batch)
    assert loss.total.item() == pytest.approx(expected, abs=1e-6)
    assert loss.terms.keys() == {"cls"}


@pytest.mark.parametrize(
    "supervision", [MeanCE(0.1), TET(lamb=0.3), TET(label_smoothing=0.1)], ids=str
)
def test_a_soft_label_that_is_one_hot_is_the_hard_one(supervision: Supervision) -> None:
    output, batch, _ = make()
    soft = dataclasses.replace(batch, soft_label=F.one_hot(batch.label, 6).float())
    torch.testing.assert_close(supervision(output, soft).total, supervision(output, batch).total)


@pytest.mark.parametrize("supervision", [MeanCE(), TET(), TET(lamb=0.3)], ids=str)
def test_the_loss_of_a_mixed_label_is_the_mixed_loss(supervision: Supervision) -> None:
    output, batch, _ = make()
    other = dataclasses.replace(batch, label=(batch.label + 2) % 6)
    weights = 0.7 * F.one_hot(batch.label, 6) + 0.3 * F.one_hot(other.label, 6)
    mixed = dataclasses.replace(batch, soft_label=weights)
    torch.testing.assert_close(
        supervision(output, mixed).total,
        0.7 * supervision(output, batch).total + 0.3 * supervision(output, other).total,
    )


def test_the_target_of_a_batch_is_its_soft_label_if_there_is_one() -> None:
    _, batch, _ = make()
    assert batch.target is batch.label
    assert batch.to("meta").soft_label is None
    mixed = dataclasses.replace(batch, soft_label=torch.full((4, 6), 1 / 6))
    assert mixed.target is mixed.soft_label
    assert mixed.to("meta").target.device.type == "meta"


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, math.nan])
def test_mean_ce_refuses_a_label_smoothing_outside_zero_to_one(smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"^label_smoothing must be .* not {smoothing}$"):
        MeanCE(label_smoothing=smoothing)


def test_all_supervisions_of_one_step_agree_with_cross_entropy() -> None:
    output, batch, _ = make(T=1)
    expected = F.cross_entropy(output.logits[:, 0], batch.label)
    for supervision in (MeanCE(), TET(lamb=0.0), TSE(tau_f=0.0, kappa=0.0)):
        torch.testing.assert_close(supervision(output, batch).total, expected)


def test_sum_weighs_totals_and_terms_and_merges_metrics() -> None:
    output, batch, _ = make()
    tet, tse = TET(), TSE(tau_f=0.1, kappa=0.0)
    loss = Sum([tet, tse], weights=[0.5, 2.0])(output, batch)
    alone = tet(output, batch), tse(output, batch)
    torch.testing.assert_close(loss.total, 0.5 * alone[0].total + 2.0 * alone[1].total)
    torch.testing.assert_close(loss.terms["tet_mse"], 0.5 * alone[0].terms["tet_mse"])
    torch.testing.assert_close(loss.terms["tse"], 2.0 * alone[1].terms["tse"])
    assert loss.terms.keys() == {"tet_ce", "tet_mse", "tse"}
    assert loss.metrics == alone[1].metrics  # not weighted


def test_sum_without_weights_adds_up() -> None:
    output, batch, _ = make()
    loss = Sum([MeanCE(), TET()])(output, batch)
    torch.testing.assert_close(
        loss.total, MeanCE()(output, batch).total + TET()(output, batch).total
    )


def test_the_mode_of_a_sum_is_that_of_its_parts() -> None:
    output, batch, _ = make()
    both = Sum([MeanCE(), TSE(tau_f=0.1, kappa=0.0)])
    assert "erased" in both(output, batch).metrics
    assert "erased" not in both.eval()(output, batch).metrics


def test_sum_refuses_a_name_that_occurs_twice() -> None:
    output, batch, _ = make()
    with pytest.raises(ValueError, match=r"^two supervisions of a Sum report 'cls'.*$"):
        Sum([MeanCE(), MeanCE(0.1)])(output, batch)
    with pytest.raises(ValueError, match="'spread'"):
        Sum([Constant("a", "spread"), Constant("b", "spread")])(output, batch)


def test_sum_refuses_weights_that_do_not_match_and_an_empty_list() -> None:
    with pytest.raises(ValueError, match=r"^Sum got 1 weights for 2 supervisions: give one each$"):
        Sum([MeanCE(), TET()], weights=[1.0])
    with pytest.raises(ValueError, match=r"^Sum got 3 weights for 2 supervisions"):
        Sum([MeanCE(), TET()], weights=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="at least one"):
        Sum([])


class Asked(Supervision):
    """Writes down what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = list[str]()

    def prepare(self, batches: Iterator[Batch]) -> None:
        self.asked.append(f"prepare with {len(list(batches))}")

    def extend(self, batch: Batch) -> Batch:
        self.asked.append("extend")
        return batch


def test_a_part_of_weight_zero_is_not_prepared_and_extends_nothing() -> None:
    _, batch, _ = make()
    parts = [Asked(), Asked()]
    both = Sum(parts, weights=[0.5, 0.0])
    both.prepare(iter([batch] * 3))
    assert both.extend(batch) is batch
    assert [part.asked for part in parts] == [["prepare with 3", "extend"], []]


@pytest.mark.parametrize("weight", [-0.5, math.nan, math.inf])
def test_sum_refuses_a_weight_below_zero_and_one_that_is_not_finite(weight: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^Sum got the weights \[1.0, {weight}\]: each must be 0"
    ):
        Sum([MeanCE(), TET()], weights=[1.0, weight])


@pytest.mark.parametrize("supervision", EVERY, ids=repr)
@pytest.mark.parametrize("labels", [3, 5])
def test_another_number_of_labels_than_samples_is_refused(
    supervision: Supervision, labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks
    output, batch, _ = make(B=4)
    other = dataclasses.replace(batch, label=torch.zeros(labels, dtype=torch.long))
    with pytest.raises((ValueError, RuntimeError)):
        supervision(output, other)
    if isinstance(supervision, Sum):
        with pytest.raises(ValueError, match=f"^Sum got {labels} labels for 4 samples: give one"):
            supervision(output, other)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        (tse_loss, r"tse_loss\(features, classify, labels\)"),
        (tre_loss, r"tre_loss\(pooled, classify, labels\)"),
        (partial(tse_keep, tau_f=0.5, kappa=1.0), r"tse_keep\(features, classify, labels\)"),
        (partial(tre_keep, theta0=0.5, lamb=1.0), r"tre_keep\(pooled, classify, labels\)"),
    ],
)
def test_arguments_in_the_order_of_other_losses_are_refused_by_naming_the_order(
    function: Callable[..., object], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks
    output, batch, head = make()
    for args in (
        (output.features, batch.label, head),
        (output.logits, batch.label, None),
        (head, output.features, batch.label),
        (None, head, batch.label),
        (output.features, batch.label, batch.label),
        (output.features, head, None),
    ):
        with pytest.raises(TypeError, match=rf"^the order is {call}, .*; got \([A-Za-z, ]+\)$"):
            function(*args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_running_mean_is_of_float32_at_least(dtype: torch.dtype) -> None:
    mean = running_mean(torch.ones(1, 400, 2, dtype=dtype))  # a sum of bfloat16 stays at 256
    assert mean.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert (mean == 1).all()


def test_of_what_is_erased_only_valid_places_and_samples_that_have_some_count() -> None:
    keep = torch.tensor([[[True] * 3, [False, False, True]], [[True] * 3, [False, True, True]]])
    valid = torch.tensor([[True, True, False], [False, False, False]])
    assert [share.item() for share in erased(keep, valid)] == [1.0, 1.0]


def test_a_criterion_is_asked_once_about_all_steps_as_rows() -> None:
    output, batch, _ = make(B=4, T=3, K=6)
    asked: list[tuple[Tensor, Tensor]] = []

    def criterion(rows: Tensor, labels: Tensor) -> Tensor:
        asked.append((rows, labels))
        return F.cross_entropy(rows, labels)

    total = StepLoss(criterion=criterion)(output.logits, batch.label)
    ((rows, labels),) = asked
    assert torch.equal(rows, output.logits.flatten(0, 1))
    assert labels.tolist() == [label for label in batch.label.tolist() for _ in range(3)]
    by_step = sum(F.cross_entropy(output.logits[:, t], batch.label) for t in range(3))
    torch.testing.assert_close(total, by_step)


@pytest.mark.parametrize("layout", ["as it is", "time first", "expanded"])
def test_the_mean_of_what_is_kept_is_that_of_the_erased_map(layout: str) -> None:
    B, T, D, H, W = 2, 3, 5, 4, 6
    x = torch.randn(B, T, D, H, W, dtype=torch.double)
    if layout == "time first":  # as students have it
        x = torch.randn(T, B, H, W, D, dtype=torch.double).permute(1, 0, 4, 2, 3)
    x = x.requires_grad_()
    maps = x[:, :1].expand(-1, T, -1, -1, -1) if layout == "expanded" else x
    keep, weights = torch.rand(B, T, H, W) < 0.6, torch.randn(B, T, D, dtype=torch.double)
    found, expected = kept_mean(maps, keep), (maps * keep[:, :, None]).mean((-2, -1))
    torch.testing.assert_close(found, expected)
    (grad,), (other,) = (
        torch.autograd.grad((y * weights).sum(), x, retain_graph=True) for y in (found, expected)
    )
    torch.testing.assert_close(grad, other)
    if layout != "expanded":
        assert grad.stride() == x.stride()
    assert torch.autograd.gradcheck(lambda x: kept_mean(x, keep).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: kept_mean(x, keep).square(), x)


def test_class_weights_of_a_recipe_are_those_of_pytorch() -> None:
    words = [
        "--supervision.init_args.criterion=estl.supervision.WeightedCE",
        "--supervision.init_args.criterion.init_args.weight=[0.5, 0, 2.0]",
    ]
    config, _ = parse(TrainingFlags(config=("digits_tse",)).spell_out(words))
    criterion = instantiate(make_parser(), "supervision", config.supervision).criterion
    assert isinstance(criterion, WeightedCE)
    expected = nn.CrossEntropyLoss(torch.tensor([0.5, 0.0, 2.0]))
    logits = torch.randn(7, 3)
    for labels in (torch.randint(3, (7,)), torch.rand(7, 3).softmax(-1)):
        assert torch.equal(criterion(logits, labels), expected(logits, labels))
    with pytest.raises(ValueError, match="3 weights for 4 classes"):
        criterion(torch.zeros(2, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "weight", [[], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf")]]
)
def test_class_weights_are_numbers(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="weight must be numbers >= 0"):
        WeightedCE(weight)


@pytest.mark.parametrize("kind", [TSE, TRE, TET])
def test_time_first_is_refused(kind: type[Supervision], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks
    output, batch, _ = make()
    logits, features, token = (
        x.transpose(0, 1) for x in (output.logits, output.features, output.class_token)
    )
    turned = Output(logits, features, output.classify, class_token=token)
    with pytest.raises(ValueError, match=r"samples come first \(B,T,...\)"):
        kind()(turned, batch)


def test_a_criterion_with_weights_moves_with_its_supervision_and_is_copied_with_it() -> None:
    for kind in (TSE, TRE):
        supervision = kind(criterion=nn.CrossEntropyLoss(weight=torch.ones(6)))
        other = copy.deepcopy(supervision).double()
        assert other.step_loss.criterion is other.criterion is not supervision.criterion
        assert other.step_loss.criterion.weight.dtype == torch.float64
        assert supervision.step_loss.criterion.weight.dtype == torch.float32
