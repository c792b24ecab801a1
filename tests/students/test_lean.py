"""Lean layers give what ordinary ones give, and hold less."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.neurons import LIF, fused, kernels
from estl.neurons.norm import of_spikes
from estl.students import VGGSNN, lean, lean_node
from estl.students.layers import Layers, PerStep, conv_norm, time_first
from estl.students.lean import leanly
from estl.students.lean_node import Spikes
from estl.students.pooling import AvgPool
from estl.students.recompute import recomputing
from estl.types import direct_code


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of any size are one pass, run as it is written."""
    monkeypatch.setenv("ESTL_COMPILE", "1")
    monkeypatch.setattr(kernels, "_no_compiler", {"cpu"})


@pytest.fixture(params=["whole", "parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a row of windows is a band, and a step is convolved at a time."""
    if request.param == "parts":
        monkeypatch.setattr(lean_node, "BAND", 1)
        monkeypatch.setattr(lean_node, "STEPS", 1)
    return request.param == "parts"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The windows of lean layers, as they are called."""
    calls: list[int] = []
    real = lean.lean_layer

    def noted(layer: PerStep, neuron: LIF, k: int, x: Tensor | Spikes) -> Spikes:
        calls.append(k)
        return real(layer, neuron, k, x)

    monkeypatch.setattr(lean, "lean_layer", noted)
    return calls


def step(layers: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """Output, gradient of x."""
    x = x.detach().requires_grad_()
    y = layers(x)
    (y * weights).sum().backward()
    yield y
    assert x.grad is not None
    yield x.grad


def compared(layers: Layers, x: Tensor, rtol: float = 1e-6) -> None:
    """Ordinary layers and lean ones, in a step: spikes and statistics are equal, and without parts
    all gradients. With them the norms of these differ by rtol at most."""
    layers.zero_grad()
    other = deepcopy(layers)
    weights = torch.randn(layers(x).shape)
    for one in (layers, other):
        for module in one.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
    whole = lean_node.STEPS > 1
    kept, kept_grad = step(layers, x, weights)
    found, found_grad = step(lambda x: leanly(other, other, x), x, weights)
    assert torch.equal(kept, found)
    near(found_grad, kept_grad, 0 if whole else rtol)
    for (name, a), b in zip(layers.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), name
    for layer, its in zip(layers, other, strict=True):
        for (name, a), b in zip(layer.named_parameters(), its.parameters(), strict=True):
            if name == "0.bias" and not whole:  # a norm follows: it is 0, and its rounding is seen
                assert (b.grad - a.grad).norm() < rtol * layer[0].weight.grad.norm()
            else:
                near(b.grad, a.grad, 0 if whole else rtol)


def near(a: Tensor | None, b: Tensor | None, rtol: float) -> None:
    assert a is not None
    assert b is not None
    assert (a - b).norm() <= rtol * b.norm()


def pooled(k: int) -> PerStep:
    return PerStep(AvgPool(k))


LAYERS: dict[str, Callable[[], Layers]] = {
    "no pool": lambda: Layers(conv_norm(2, 5), LIF.tet()),
    "pool": lambda: Layers(conv_norm(2, 8, bias=True), LIF.tet(), pooled(2)),
    "pool of three": lambda: Layers(
        *(conv_norm(2, 4), LIF.tet(), pooled(3)), *(conv_norm(4, 4), LIF.tet())
    ),
    "a stack": lambda: Layers(
        *(conv_norm(2, 4), LIF.tet(), conv_norm(4, 6), LIF.tet(), pooled(2)),
        *(conv_norm(6, 3, 5), LIF.spikformer()),
    ),
    "strides and groups": lambda: Layers(
        PerStep(nn.Conv2d(2, 4, 3, 2, dilation=2, groups=2, padding=(2, 1)), nn.BatchNorm2d(4)),
        LIF.tet(detach_reset=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_they_are_ordinary_layers(name: str, parts: bool, made: list[int]) -> None:
    torch.manual_seed(0)
    layers = LAYERS[name]()
    compared(layers, time_first(torch.poisson(torch.rand(3, 4, 2, 13, 11)), 2))
    neurons = sum(isinstance(layer, LIF) for layer in layers)
    assert len(made) == neurons
    assert sum(k > 1 for k in made) == len(layers) - 2 * neurons


def test_in_float64_they_are_to_the_last_digits(parts: bool) -> None:
    torch.manual_seed(0)
    x = time_first(torch.poisson(torch.rand(3, 4, 2, 13, 11)).double(), 2)
    compared(LAYERS["pool of three"]().double(), x, 1e-14)


def test_under_autocast_too(parts: bool, made: list[int]) -> None:
    """A convolution's gradient is rounded to 8 bits for each part, or once."""
    torch.manual_seed(0)
    x = time_first(torch.poisson(torch.rand(3, 4, 2, 13, 11)), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compared(LAYERS["a stack"](), x, 2**-7)
    assert len(made) == 3


def test_an_image_at_every_step_is_convolved_once_as_before(made: list[int]) -> None:
    torch.manual_seed(0)
    compared(LAYERS["a stack"](), direct_code(torch.rand(3, 2, 13, 11), 4))
    assert made == [2, 1]


def test_layers_that_are_not_fused_are_recomputed_as_blocks(made: list[int]) -> None:
    torch.manual_seed(0)
    layers = LAYERS["a stack"]()
    x = time_first(torch.poisson(torch.rand(3, 4, 2, 13, 11)), 2)
    # With a hook; where the second block is recomputed as a whole, the third begins with its pool.
    for of, left in ((layers[0][0], [2, 1]), (layers[2], [1]), (layers[5][1], [1, 2])):
        seen: list[Tensor] = []
        handle = of.register_forward_hook(lambda *args, to=seen: to.append(args[2]))
        made.clear()
        compared(layers, x)
        handle.remove()
        assert made == left
        assert seen
    layers[5] = PerStep(nn.Conv2d(6, 3, 3, padding="same"), nn.BatchNorm2d(3))
    made.clear()
    compared(layers, x)
    assert made == [1, 2]


def test_hooks_that_look_at_spikes_see_all_of_them(parts: bool, made: list[int]) -> None:
    torch.manual_seed(0)
    layers = LAYERS["pool"]()
    seen: list[Tensor] = []
    layers[1].register_forward_hook(of_spikes(lambda *args: seen.append(args[2])))
    x = time_first(torch.rand(3, 4, 2, 13, 11), 2)
    ordinary = layers[:2](x)
    leanly(layers, layers, x)
    assert made == [2]
    assert len(seen) == (7 if parts else 2)  # ordinary ones first
    assert torch.equal(torch.cat(seen[1:], 3), ordinary)


def test_what_autograd_does_not_go_through_is_not_lean(
    made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was compiled before: its spikes would be those of the pass, not of the modules."""
    monkeypatch.delenv("ESTL_COMPILE")
    monkeypatch.setattr(fused, "LARGE", 1)
    monkeypatch.setattr(fused, "compiled_before", lambda: True)
    layers = LAYERS["a stack"]()
    layers[0].requires_grad_(False)
    x = time_first(torch.rand(3, 4, 2, 13, 11), 2)
    kept, other = layers(x), deepcopy(layers)
    assert torch.equal(leanly(other, other, x), kept)
    assert made == [2, 1]
    layers[0][0].weight.requires_grad_(True)
    leanly(layers, layers, x)
    assert made == [2, 1, 1, 2, 1]


def test_a_replaced_forward_is_called(made: list[int]) -> None:
    layers, calls = LAYERS["no pool"](), []
    conv = layers[0][0]
    conv.forward = lambda x: (calls.append(1), type(conv).forward(conv, x))[1]
    leanly(layers, layers, time_first(torch.rand(3, 4, 2, 13, 11), 2))
    assert (made, calls) == ([], [1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_may_differ_in_the_backward_pass(dtype: torch.dtype, made: list[int]) -> None:
    """It never takes float64 to bfloat16."""
    found = []
    x = time_first(torch.rand(3, 4, 2, 13, 11, dtype=dtype), 2)
    for way in (lambda layers: layers(x), lambda layers: leanly(layers, layers, x)):
        torch.manual_seed(0)
        layers = LAYERS["pool"]().to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float64):
            y = way(layers)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y.sum().backward()
        found.append([y, *(p.grad for p in layers.parameters())])
    assert made == [2]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_part_is_a_single_image() -> None:
    for T in range(2, 9):
        for some in range(1, 9):
            parts = lean_node._parts(T, some, 1)
            assert [t for part in parts for t in range(T)[part]] == list(range(T))
            assert min(part.stop - part.start for part in parts) > 1
    assert lean_node._parts(3, 1, 2) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert lean_node._parts(1, 4, 1) == [slice(0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_means_are_those_of_the_pool(dtype: torch.dtype) -> None:
    spikes = torch.rand(2 * 4, 3, 9, 6).round().to(dtype)
    for k in (2, 3):
        sums = F.avg_pool2d(spikes, k, divisor_override=1).permute(0, 2, 3, 1).to(torch.uint8)
        link = torch.zeros(()).expand(2, 4, 3, 9 // k, 6 // k)
        packed = Spikes(link, sums.unflatten(0, (4, 2)), k)
        assert torch.equal(packed.steps(dtype), F.avg_pool2d(spikes, k))
        assert torch.equal(packed.steps(dtype, slice(1, 3)), F.avg_pool2d(spikes[2:6], k))


def test_there_is_no_second_derivative() -> None:
    x = time_first(torch.rand(3, 4, 2, 6, 6), 2).requires_grad_()
    y = leanly(nn.Identity(), LAYERS["pool"](), x).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y, x, create_graph=True)


def test_a_vggsnn_is_lean_throughout(made: list[int]) -> None:
    student = VGGSNN(layers=(4, 6, "AP", 8, "AP"), frame_size=(12, 12))
    recomputing(student)
    student(torch.rand(2, 3, 2, 12, 12)).logits.sum().backward()
    assert made == [1, 2, 2]
    with torch.no_grad():
        student(torch.rand(2, 3, 2, 12, 12))
    student.eval()(torch.rand(2, 3, 2, 12, 12)).logits.sum().backward()
    assert len(made) == 3
