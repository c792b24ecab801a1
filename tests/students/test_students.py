"""What holds for every student."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from estl.neurons import LIF
from estl.students import VGGSNN, ResNet, Spikformer, resnet18, resnet19
from estl.students.layers import PerStep, PerToken
from estl.training.recipe import build as build_parts
from estl.training.recipe import parse_recipe
from estl.types import direct_code

STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "vggsnn": lambda: VGGSNN(5, 2, (8, 8), layers=(8, "AP", 12, "AP")),
    "vggsnn_pooled": lambda: VGGSNN(5, 2, (8, 8), layers=(8, "AP", 12, "AP"), pooled=True),
    "resnet": lambda: ResNet((1, 1), (8, 12), 5, 2),
    "resnet_hidden": lambda: ResNet((1, 1), (8, 12), 5, 2, hidden=16),
    "resnet_bottleneck": lambda: ResNet((1, 1), (8, 12), 5, 2, bottleneck=True),
    "spikformer": lambda: Spikformer(5, 2, dim=16, depth=1, heads=1, scale=1.0),
    "spikformer_token": lambda: Spikformer(
        5, 2, dim=16, depth=1, heads=1, scale=1.0, readout="token"
    ),
}


@pytest.fixture(params=list(STUDENTS))
def build(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    factory: Callable[[], nn.Module] = STUDENTS[request.param]
    return factory


@pytest.fixture
def student(build: Callable[[], nn.Module]) -> nn.Module:
    return build()


def _events(B: int = 3, T: int = 4, C: int = 2, size: int = 8) -> Tensor:
    """Counts of a Poisson process whose rate differs from place to place and not over time."""
    rate = torch.rand(B, 1, C, size, size).expand(B, T, C, size, size)
    return torch.poisson(rate)


def _settle(net: nn.Module, events: Tensor) -> nn.Module:
    """Running statistics set to those of `events`; then eval mode, in which all layers fire."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    net(events)
    return net.eval()


@pytest.mark.parametrize("T", [1, 3])
def test_the_number_of_steps_is_read_from_the_input(student: nn.Module, T: int) -> None:
    output = student(_events(2, T))
    assert output.logits.shape == (2, T, 5)
    assert output.features.shape[:3] == (2, T, student.dim)
    assert output.class_token.shape == (2, T, student.dim)
    assert (student.classes, student.in_channels) == (5, 2)


def test_output_classify_is_the_head_and_the_pooled_flag_is_true_of_it(student: nn.Module) -> None:
    output = student(_events())
    if output.pooled_head:
        pooled = output.features.mean((-2, -1))
        torch.testing.assert_close(output.class_token, pooled)
        torch.testing.assert_close(output.classify(pooled), output.logits)


def test_eval_mode_is_deterministic_and_independent_of_the_rest_of_the_batch(
    student: nn.Module,
) -> None:
    events = _events(5).double()
    student = _settle(student.double(), events)
    whole = student(events)
    assert torch.equal(student(events).logits, whole.logits)
    for i in range(5):
        alone = student(events[i : i + 1])
        torch.testing.assert_close(alone.logits, whole.logits[i : i + 1])
        torch.testing.assert_close(alone.features, whole.features[i : i + 1])
    assert whole.logits.std(dim=0).max() > 0


def test_no_state_is_left_between_calls_of_other_batch_sizes_and_steps(student: nn.Module) -> None:
    events = _events()
    student = _settle(student, events)
    expected = student(events).logits
    state = {name: p.clone() for name, p in student.state_dict().items()}
    student(_events(2, 6))
    assert torch.equal(student(events).logits, expected)
    assert all(torch.equal(p, state[name]) for name, p in student.state_dict().items())


def test_later_steps_do_not_change_earlier_ones_and_remember_them(student: nn.Module) -> None:
    events = _events(T=6).double()
    student = _settle(student.double(), events)
    whole = student(events)
    torch.testing.assert_close(student(events[:, :3]).logits, whole.logits[:, :3])
    assert not torch.allclose(student(events[:, 3:]).features, whole.features[:, 3:])


def test_gradient_reaches_every_parameter(student: nn.Module) -> None:
    # In eval mode: in training mode a bias before a batch norm has no effect and no gradient.
    events = _events(8)
    student = _settle(student, events)
    output = student(events)
    (output.logits * torch.randn_like(output.logits)).sum().backward()
    for name, p in student.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 1e-6, name


def test_memory_is_time_first_and_channels_last_so_that_nothing_is_copied(
    student: nn.Module,
) -> None:
    checked: list[str] = []

    def check(module: nn.Module, x: tuple[Tensor], y: Tensor) -> None:
        for tensor in (x[0], y):
            order = (1, 0, 3, 4, 2) if tensor.ndim == 5 else (1, 0, *range(2, tensor.ndim))
            assert tensor.permute(order).is_contiguous(), module
        checked.append(type(module).__name__)

    for name, module in student.named_modules():
        in_head_or_token = name.startswith(("head", "token"))
        if isinstance(module, PerStep | PerToken | LIF) and not in_head_or_token:
            module.register_forward_hook(check)
    student(_events())
    assert checked.count("LIF") >= 2


def test_a_direct_coded_image_takes_one_first_convolution_and_gives_the_same(
    student: nn.Module,
) -> None:
    events = direct_code(_events(T=1)[:, 0].double(), 4)
    student = student.double()
    other = copy.deepcopy(student)
    rows: list[int] = []
    convs = [m for m in student.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        conv.register_forward_hook(lambda _, x, y: rows.append(len(x[0])))
    once, ordinary = student(events).logits, other(events.contiguous()).logits
    assert rows == [3] + [3 * 4] * (len(convs) - 1)
    torch.testing.assert_close(once, ordinary)
    weight = torch.randn_like(once)
    torch.testing.assert_close(
        torch.autograd.grad((once * weight).sum(), list(student.parameters())),
        torch.autograd.grad((ordinary * weight).sum(), list(other.parameters())),
    )


def test_copies_pickles_and_state_dicts_give_the_same_student(
    build: Callable[[], nn.Module],
) -> None:
    events = _events()
    student = _settle(build(), events)
    expected = student(events).logits
    assert torch.equal(copy.deepcopy(student)(events).logits, expected)
    assert torch.equal(pickle.loads(pickle.dumps(student))(events).logits, expected)
    other = build()
    assert not torch.equal(other.eval()(events).logits, expected)
    other.load_state_dict(student.state_dict())
    assert torch.equal(other.eval()(events).logits, expected)


def test_bfloat16_autocast_trains(student: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = student(_events())
        loss = output.logits.float().square().sum()
    loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert output.features.isfinite().all()
    assert all(p.grad.isfinite().all() for p in student.parameters())
    assert all(p.grad.dtype == torch.float32 for p in student.parameters())


def test_wrong_dimensions_and_channels_are_refused_in_one_line(student: nn.Module) -> None:
    for events in (torch.rand(2, 2, 8, 8), torch.rand(2, 4, 3, 8, 8)):
        with pytest.raises(ValueError, match="events") as error:
            student(events)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "size"),
    [
        (VGGSNN, 48),
        (lambda: resnet19(in_channels=2), 16),
        (lambda: resnet18(in_channels=2), 16),
        (Spikformer, 48),
        (lambda: Spikformer(readout="token"), 48),
    ],
    ids=["vggsnn", "resnet19", "resnet18", "spikformer", "spikformer_token"],
)
def test_at_initialization_no_layer_is_silent_or_saturated(
    factory: Callable[[], nn.Module], size: int
) -> None:
    net = factory()
    rates: dict[str, float] = {}
    for name, module in net.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(
                lambda _, x, y, name=name: rates.update({name: y.mean().item()})
            )
    with torch.no_grad():
        logits = net(_events(2, 4, 2, size)).logits
    assert len(rates) >= 8
    assert all(0.03 < rate < 0.7 for rate in rates.values()), rates
    assert 0.01 < logits.std() < 5


def test_a_recipe_builds_a_student_by_a_function_with_its_annotation() -> None:
    config, given = parse_recipe(
        {
            "data": {"class_path": "estl.data.Digits", "init_args": {"T": 3, "per_class": 3}},
            "student": {"class_path": "tests.small_students.annotated"},
            "supervision": {"class_path": "estl.supervision.TET"},
        }
    )
    parts = build_parts(config, given)
    assert isinstance(parts.student, VGGSNN)
    (batch, *_) = parts.data.loader("val")
    assert parts.student(batch.events).logits.shape == (len(batch.label), 3, 10)
