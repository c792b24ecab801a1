"""Batch norm and neuron in one pass against the modules one after the other, the oracle; and when
each of the two ways is taken. What is compiled here is kept to a few variants, since each takes
seconds."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from estl.neurons import LIF, Sigmoid, fused, fused_norm, kernels
from estl.neurons.fused_norm import Norm
from estl.neurons.lif import Potentials
from estl.neurons.moments import statistics
from estl.neurons.norm import norm_lif, of_spikes, pairs
from estl.students import VGGSNN, ResNet, Spikformer
from estl.students.layers import Layers, PerStep, PerToken, conv_norm, time_first
from estl.students.recompute import recomputing
from estl.students.resnet import ResidualBlock
from estl.types import direct_code

NEURONS = {
    "tet": LIF.tet(),
    "tet, detached": LIF.tet(detach_reset=True),
    "spikformer": LIF.spikformer(),
    "soft": LIF.tet(reset="soft", decay=0.9, gain=0.3, threshold=0.75, surrogate=Sigmoid(2.0)),
}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused functions everywhere, without the compiler."""
    monkeypatch.setattr(kernels, "_no_compiler", {"cpu"})
    monkeypatch.setenv("ESTL_COMPILE", "1")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test in which falling back is a failure."""
    monkeypatch.setattr(kernels, "_no_compiler", set())
    monkeypatch.setenv("ESTL_COMPILE", "1")
    yield
    assert not kernels._no_compiler


def maps(B: int, T: int, C: int, H: int, W: int) -> Tensor:
    """(B,T,C,H,W) as a convolution leaves it, with a mean and a deviation that are not 0 and 1."""
    x = 3 * torch.randn(B, T, C, H, W, dtype=torch.float64) + 5 * torch.randn(C, 1, 1)
    return time_first(x, C)


def norm_of(C: int, kind: type[Norm] = nn.BatchNorm2d) -> Norm:
    """A norm whose parameters and statistics are not the initial ones."""
    norm = kind(C).double()
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        values.data.copy_(0.5 + torch.rand(C))
    return norm


def one_after_the_other(
    norm: Norm,
    neuron: LIF,
    x: Tensor,
    shortcut: Tensor | None = None,
    shortcut_norm: Norm | None = None,
) -> Tensor:
    """The modules themselves; the neuron by the plain scan."""

    def normalized(norm: Norm | None, x: Tensor) -> Tensor:
        if norm is None:
            return x
        steps = x.transpose(0, 1)
        rows = steps.flatten(0, 1) if isinstance(norm, nn.BatchNorm2d) else steps.flatten(0, 2)
        return norm(rows).view_as(steps).transpose(0, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESTL_COMPILE", "0")
        current = normalized(norm, x)
        if shortcut is not None:
            current = current + normalized(shortcut_norm, shortcut)
        return neuron(current)


def both(
    norm: Norm,
    neuron: LIF,
    x: Tensor,
    shortcut: Tensor | None = None,
    shortcut_norm: Norm | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes, gradients and statistics of the one pass, which must have been taken, and of the
    modules one after the other."""
    weights = torch.randn(x.shape).to(x.dtype)
    results = []
    for way in (norm_lif, one_after_the_other):
        twins = deepcopy((norm, shortcut_norm))
        sources = [y.detach().requires_grad_() for y in (x, shortcut) if y is not None]
        spikes = way(twins[0], neuron, *sources, *twins[1:] if shortcut is not None else ())
        assert is_one_pass(spikes) == (way is norm_lif)
        (spikes * weights).sum().backward()
        found = [spikes.detach()]
        for part in (*sources, *(p for twin in twins if twin for p in twin.parameters())):
            assert part.grad is not None
            found.append(part.grad)
        results.append([*found, *(b for twin in twins if twin for b in twin.buffers())])
    return results[0], results[1]


def is_one_pass(spikes: Tensor) -> bool:
    """Whether the last operation but views is the fused one."""
    node = spikes.grad_fn
    while node.name() in ("TransposeBackward0", "PermuteBackward0", "ViewBackward0"):
        node = node.next_functions[0][0]
    return node.name() == "_NormLIFBackward"


def assert_same(norm: Norm, neuron: LIF, *others: Any) -> None:
    """Spikes and memory order exactly, the rest to 1e-9, in float64: sums are taken in another
    order, and no potential here comes within 1e-12 of the threshold."""
    fused, expected = both(norm, neuron, *others)
    assert torch.equal(fused[0], expected[0])
    assert fused[0].stride() == expected[0].stride()
    assert 0 < expected[0].mean() < 1
    for a, b in zip(fused[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


# --- the functions, uncompiled ------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_pass_equals_the_modules(neuron: str, steps: int) -> None:
    torch.manual_seed(0)
    assert_same(norm_of(7), NEURONS[neuron], maps(3, steps, 7, 5, 4))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_pass_with_a_shortcut_equals_the_modules(neuron: str, steps: int) -> None:
    torch.manual_seed(0)
    shortcut = time_first((torch.rand(3, steps, 7, 5, 4) < 0.3).double(), 7)
    assert_same(norm_of(7), NEURONS[neuron], maps(3, steps, 7, 5, 4), shortcut)
    assert_same(norm_of(7), NEURONS[neuron], maps(3, steps, 7, 5, 4), 4 * shortcut, norm_of(7))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("second", ["none", "shortcut", "normalized"])
def test_in_pieces_over_what_was_read_it_is_the_same(
    neuron: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    norms = norm_of(7), norm_of(7) if second == "normalized" else None
    given = [maps(3, 5, 7, 5, 4) for _ in range(1 if second == "none" else 2)]
    weights, found = torch.randn(3, 5, 7, 5, 4), []
    for piece, may_write in ((fused_norm.PIECE, False), (5 * 7 * 4, True)):
        monkeypatch.setattr(fused_norm, "PIECE", piece)
        leaves = [x.clone().requires_grad_() for x in given]
        norm, shortcut_norm = deepcopy(norms)
        read = [x * 1 for x in leaves]
        others = *read[1:], *([shortcut_norm] if shortcut_norm is not None else [])
        spikes = norm_lif(norm, NEURONS[neuron], read[0], *others, may_write=may_write)
        (spikes * weights).sum().backward()
        written = [not torch.equal(a, b) for a, b in zip(read, leaves, strict=True)]
        assert written == [may_write, may_write and second == "normalized"][: len(given)]
        parts = [
            *leaves,
            *norm.parameters(),
            *(shortcut_norm.parameters() if shortcut_norm else ()),
        ]
        found.append([spikes, *(part.grad for part in parts)])
    for a, b in zip(*found, strict=True):
        if isinstance(
            NEURONS[neuron].options["surrogate"], Sigmoid
        ):  # eager float64 has two ways for exponentials
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(a, b)


@pytest.mark.usefixtures("uncompiled")
def test_one_pass_over_tokens_equals_the_modules() -> None:
    torch.manual_seed(0)
    tokens = (maps(3, 4, 7, 5, 4).flatten(3).mT for _ in range(2))
    assert_same(norm_of(7, nn.BatchNorm1d), LIF.spikformer(), *tokens)


@pytest.mark.usefixtures("uncompiled")
def test_a_shortcut_of_another_kind_is_added_apart() -> None:
    norm, x = norm_of(4).float(), maps(2, 3, 4, 5, 5).bfloat16().requires_grad_()
    shortcut = maps(2, 3, 4, 5, 5).bfloat16()
    assert is_one_pass(norm_lif(norm, LIF.tet(), x, shortcut))
    for other in (shortcut.float(), shortcut[:1], shortcut[:, :1]):
        spikes = norm_lif(norm, LIF.tet(), x, other)
        assert not is_one_pass(spikes)
        assert spikes.dtype == other.dtype


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("rows", [2, 31, 32, 33, 64, 95, 320, 1000])
def test_statistics_of_any_number_of_rows(rows: int) -> None:
    torch.manual_seed(0)
    x = 1000 + torch.randn(rows, 5)  # whose squares have no digits left in float32
    variance, mean = torch.var_mean(x.double(), 0, correction=0)
    found_mean, found_variance = statistics(x)
    torch.testing.assert_close(found_mean.double(), mean, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found_variance.double(), variance, rtol=1e-3, atol=0.0)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("shortcut", ["none", "as it is", "normalized"])
def test_one_pass_over_bfloat16_computes_in_float32(neuron: str, shortcut: str) -> None:
    torch.manual_seed(0)
    x, weights, more = (maps(3, 4, 7, 5, 4).bfloat16() for _ in range(3))
    results = []
    given, second = norm_of(7).float(), norm_of(7).float()
    for source in (x.requires_grad_(), x.detach().float().requires_grad_()):
        norm = deepcopy(given)
        other = None if shortcut == "none" else more.to(source.dtype)
        other_norm = deepcopy(second) if shortcut == "normalized" else None
        spikes = norm_lif(norm, NEURONS[neuron], source, other, other_norm)
        (spikes * weights).float().sum().backward()
        results.append((spikes, source.grad, norm.weight.grad, norm.bias.grad, norm.running_var))
    (spikes, grad, *sums), (expected, expected_grad, *expected_sums) = results
    assert spikes.dtype == grad.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), expected)
    # The gradient is rounded twice, before and after it goes through the statistics: 2^-9 each.
    bound = 2**-8 * float(expected_grad.abs().max())
    torch.testing.assert_close(grad.float(), expected_grad, rtol=2**-8, atol=bound)
    for a, b in zip(sums, expected_sums, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("uncompiled")
def test_memory_in_another_order_is_brought_into_it() -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    fused, expected = both(norm_of(3), LIF.tet(), x)
    assert torch.equal(fused[0], expected[0])
    torch.testing.assert_close(fused[1], expected[1], rtol=1e-9, atol=1e-12)


def assert_same_but_for_ties(neuron: LIF, steps: int) -> None:
    """In float32 both ways round a current of a few units by some 1e-6, and the potential sums at
    most 1 / (1 - decay) = 2 of them: where it stays 1e-4 away from the threshold at all steps, no
    spike may differ. A neuron that fires at another step has other gradients; the sums over all
    are those of the rest, within what one neuron adds."""
    norm, x = norm_of(8), maps(4, steps, 8, 6, 6)
    fused, expected = both(norm.float(), neuron, x.float())
    current = norm.double()(x.transpose(0, 1).flatten(0, 1)).view(steps, 4, 8, 6, 6)
    options, r = neuron.options, torch.zeros_like(current[0])
    margin = torch.full_like(r, torch.inf)
    for current_t in current.detach():
        v = options["decay"] * r + options["gain"] * current_t
        margin = torch.minimum((v - options["threshold"]).abs(), margin)
        r = v * (v <= options["threshold"])
    clear = (margin > 1e-4).unsqueeze(1).expand_as(expected[0])
    assert clear.double().mean() > 0.99
    assert torch.equal(fused[0][clear], expected[0][clear])
    if torch.equal(fused[0], expected[0]):
        for a, b in zip(fused[1:4], expected[1:4], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    for a, b in zip(fused[4:], expected[4:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("neuron", [LIF.tet(), LIF.spikformer()], ids=["tet", "spikformer"])
def test_float32_differs_only_next_to_the_threshold(neuron: LIF) -> None:
    torch.manual_seed(0)
    assert_same_but_for_ties(neuron, 4)


@pytest.mark.usefixtures("uncompiled")
def test_one_tensor_of_the_inputs_size_is_kept() -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = maps(2, 4, 3, 5, 5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm_lif(norm_of(3), LIF.tet(), x)
    assert [tensor.numel() for tensor in kept if tensor.numel() > 3] == [x.numel()]
    assert kept[0].data_ptr() == x.data_ptr()
    kept.clear()
    shortcut = maps(2, 4, 3, 5, 5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm_lif(norm_of(3), LIF.tet(), x, shortcut)
    found = {tensor.data_ptr() for tensor in kept if tensor.numel() > 3}
    assert found == {x.data_ptr(), shortcut.data_ptr()}


@pytest.mark.usefixtures("uncompiled")
def test_a_second_derivative_is_refused() -> None:
    x = maps(2, 4, 3, 5, 5).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative: set ESTL_COMPILE=0"):
        torch.autograd.grad(norm_lif(norm_of(3), LIF.tet(), x).sum(), x, create_graph=True)


@pytest.mark.usefixtures("uncompiled")
def test_one_value_a_channel_is_refused_as_by_the_norm() -> None:
    x = maps(1, 1, 3, 1, 1).requires_grad_()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_lif(norm_of(3), LIF.tet(), x)


# --- compiled -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_one_compilation_serves_all_sizes_and_equals_the_modules() -> None:
    torch.manual_seed(0)
    kernels._compiled.cache_clear()
    _, codes = run_and_get_code(assert_same, norm_of(16), LIF.tet(), maps(3, 3, 16, 5, 4))
    assert loops(codes) == [1] * 4
    before = kernels._compiled.cache_info().misses
    for B, C, H, W in ((2, 7, 9, 8), (4, 33, 4, 4), (5, 2, 3, 2), (2, 32, 4, 4), (3, 3, 7, 7)):
        assert_same(norm_of(C), LIF.tet(), maps(B, 3, C, H, W))
    assert kernels._compiled.cache_info().misses == before


def loops(codes: list[str]) -> list[int]:
    """Of each function that was compiled."""
    return [code.count("#pragma omp for") for code in codes]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("normalized", "steps"), [(False, 4), (True, 10)])
def test_every_pass_with_a_shortcut_is_one_loop(normalized: bool, steps: int) -> None:
    """Moments, forward, backward, and what goes through the statistics: a second loop in one of
    them would pass what is between the two through memory. Many steps where most is computed, since
    what makes inductor split a loop is how much is in it. Without a shortcut: the test above."""
    torch.manual_seed(0)
    kernels._compiled.cache_clear()
    others = [maps(2, steps, 16, 5, 5), norm_of(16)][: 1 + normalized]
    x = maps(2, steps, 16, 5, 5)
    _, codes = run_and_get_code(assert_same, norm_of(16), LIF.tet(), x, *others)
    assert loops(codes) == [1] * (4 + normalized)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_compiled_float32_differs_only_next_to_the_threshold() -> None:
    torch.manual_seed(0)
    assert_same_but_for_ties(LIF.spikformer(), 3)


# --- which way a layer takes ----------------------------------------------------------------------


def layers() -> Layers:
    """A convolution, its norm and neuron."""
    return Layers(conv_norm(2, 4), LIF.tet())


@pytest.mark.usefixtures("uncompiled")
def test_layers_in_training_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    x = time_first(torch.rand(2, 3, 2, 6, 6), 2)
    assert is_one_pass(layers()(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_one_pass(layers()(x))
    assert not is_one_pass(layers().bfloat16()(x.bfloat16()))
    monkeypatch.setenv("ESTL_COMPILE", "0")
    assert not is_one_pass(layers()(x))
    monkeypatch.delenv("ESTL_COMPILE")
    assert not is_one_pass(layers()(x))  # too small to pay
    monkeypatch.setattr(fused, "LARGE", x.numel())
    assert is_one_pass(layers()(x))


def passes(output: Tensor) -> int:
    """How many passes over norm and neuron the graph of `output` holds."""
    seen, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return sum(node.name() == "_NormLIFBackward" for node in seen)


@pytest.mark.usefixtures("uncompiled")
def test_after_a_large_layer_small_ones_take_the_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESTL_COMPILE")
    x = torch.rand(2, 3, 2, 8, 8)
    shrinking = VGGSNN(3, frame_size=(8, 8), layers=(4, "AP", 4, "AP", 4))
    growing = VGGSNN(3, frame_size=(8, 8), layers=(4, 8, "AP", 4))
    for largest, expected in ((2 * 3 * 4 * 64, (3, 3)), (2 * 3 * 8 * 64, (0, 2)), (10**6, (0, 0))):
        monkeypatch.setattr(fused, "LARGE", largest)
        for _ in range(2):  # what was before changes nothing
            assert (passes(shrinking(x).logits), passes(growing(x).logits)) == expected
    monkeypatch.setattr(fused, "LARGE", 2 * 3 * 4 * 64)
    assert passes(shrinking.layers(x)) == 1  # alone, layers know nothing of one another
    monkeypatch.setenv("ESTL_COMPILE", "0")
    assert passes(shrinking(x).logits) == 0


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_block_takes_one_pass_with_its_shortcut(stride: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(4, 4, stride).double()
    x = time_first((torch.rand(2, 3, 4, 6, 6) < 0.3).double(), 4).requires_grad_()
    seen: list[Tensor] = []
    results = []
    for apart in (False, True):
        twin = deepcopy(block)
        if apart:
            twin.residual.register_forward_hook(lambda *args: seen.append(args[2]))
        spikes = twin(x)
        assert is_one_pass(spikes) != apart
        results.append(
            [spikes.detach(), *torch.autograd.grad(spikes.sum(), [x, *twin.parameters()])]
        )
    assert len(seen) == 1  # the hook was called
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


@pytest.mark.usefixtures("uncompiled")
def test_gradients_of_a_block_are_added_in_place() -> None:
    x = time_first(torch.rand(2, 3, 4, 6, 6), 4).requires_grad_()
    spikes = ResidualBlock(4, 4)(x * 1)  # a parameter's own gradient is never added to at once
    with torch.profiler.profile(record_shapes=True) as profile:
        spikes.sum().backward()
    added = [
        e.key
        for e in profile.key_averages(group_by_input_shape=True)
        if e.key in ("aten::add", "aten::add_")
        and list(e.input_shapes[:2]) == [[2, 3, 4, 6, 6]] * 2
    ]
    assert added == ["aten::add_"]


@pytest.mark.usefixtures("uncompiled")
def test_spikes_may_be_written_into() -> None:
    x = maps(2, 4, 3, 5, 5).requires_grad_()
    norm = norm_of(3)
    (grad,) = torch.autograd.grad(norm_lif(norm, LIF.tet(), x).mul_(2).sum(), x)
    (half,) = torch.autograd.grad(norm_lif(norm, LIF.tet(), x).sum(), x)
    torch.testing.assert_close(grad, 2 * half)


class Silent(Layers):
    """Layers that compute something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * super().forward(x)


@pytest.mark.usefixtures("uncompiled")
def test_a_residual_of_ones_own_is_called() -> None:
    block = ResidualBlock(4, 4)
    x = time_first((torch.rand(2, 3, 4, 6, 6) < 0.3).float(), 4)
    for own in (Silent(*block.residual), nn.Sequential(block.residual, nn.ReLU())):
        block.add_module("residual", own)
        assert torch.equal(block(x), block.neuron(own(x) + x))


class Doubled(PerStep):
    """A layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


ODD: dict[str, Callable[[], nn.Module]] = {
    "no linear layer before the norm": lambda: PerToken(nn.Softmax(1), nn.BatchNorm1d(4)),
    "two norms": lambda: PerToken(nn.BatchNorm1d(4), nn.BatchNorm1d(4)),
    "rows in PerStep": lambda: PerStep(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)),
    "a layer's own forward": lambda: Doubled(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)),
}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ODD)
def test_a_layer_of_another_kind_is_called(name: str) -> None:
    torch.manual_seed(0)
    net, x = Layers(ODD[name](), LIF.tet()), 3 * torch.randn(2, 3, 4, 4).requires_grad_()
    twin = nn.Sequential(*deepcopy(net))
    assert torch.equal(net(x), twin(x))
    for a, b in zip(net.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("uncompiled")
def test_every_norm_of_a_student_is_one_pass_with_its_neuron(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def counted(self: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x

    for kind in (nn.BatchNorm1d, nn.BatchNorm2d):
        monkeypatch.setattr(kind, "forward", counted)
    x = time_first(torch.rand(2, 3, 2, 8, 8), 2)
    Spikformer(dim=16, depth=2, heads=2)(x).logits.sum().backward()
    VGGSNN(layers=(8, "AP", 8), frame_size=(8, 8))(x).logits.sum().backward()
    ResNet((2, 1), (8, 8), in_channels=2, stem_width=8)(x).logits.sum().backward()
    assert calls == 0


@pytest.mark.usefixtures("uncompiled")
def test_a_hook_of_spikes_is_called_and_keeps_nothing_apart() -> None:
    net, seen = layers(), []
    net[1].register_forward_hook(of_spikes(lambda _, __, spikes: seen.append(spikes)))
    spikes = net(time_first(torch.rand(2, 3, 2, 6, 6), 2))
    assert is_one_pass(spikes)
    assert len(seen) == 1
    assert seen[0] is spikes


CHANGES: dict[str, Callable[[Layers], Any]] = {
    "eval": lambda net: net.eval(),
    "a norm in eval": lambda net: net[0][1].eval(),
    "a hook on the neuron": lambda net: net[1].register_forward_hook(lambda *_: None),
    "a hook on the norm": lambda net: net[0][1].register_full_backward_hook(lambda *_: None),
    "another norm": lambda net: net[0].__setitem__(1, nn.SyncBatchNorm(4)),
    "a norm without parameters": lambda net: net[0].__setitem__(1, nn.BatchNorm2d(4, affine=False)),
    "a norm that averages": lambda net: net[0].__setitem__(1, nn.BatchNorm2d(4, momentum=None)),
    "a norm without statistics": lambda net: net[0].__setitem__(
        1, nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_modules_are_left_apart(change: str) -> None:
    net = layers()
    assert pairs(net[0][1], net[1])
    CHANGES[change](net)
    assert not pairs(net[0][1], net[1])


@pytest.mark.usefixtures("uncompiled")
def test_hooks_see_every_call() -> None:
    x, net = time_first(torch.rand(2, 3, 2, 6, 6), 2), layers()
    for module in (net[0], *net[0], net[1]):
        seen: list[Any] = []
        handle = module.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        net(x)
        handle.remove()
        assert len(seen) == 1
    assert is_one_pass(net(x))  # without hooks


@pytest.mark.usefixtures("uncompiled")
def test_potentials_static_images_and_no_gradient_take_the_ordinary_path() -> None:
    x = time_first(torch.rand(2, 3, 2, 6, 6), 2)
    net = layers()
    with Potentials(None) as potentials:
        net(x)
    assert len(potentials.after) == 1
    assert not is_one_pass(net(time_first(direct_code(x[:, 0], 3), 2)))
    with torch.no_grad():
        before = net[0][1].num_batches_tracked.item()
        net(x)
        assert net[0][1].num_batches_tracked.item() == before + 1


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "build",
    [
        lambda: VGGSNN(layers=(8, "AP", 16, "AP", 8), frame_size=(12, 12)),
        lambda: ResNet((1, 1), (8, 16), in_channels=2),
    ],
    ids=["vggsnn", "resnet"],
)
def test_recomputed_layers_count_once_and_give_the_same(
    build: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    kept = build()
    again = deepcopy(kept)
    recomputing(again)
    x = torch.poisson(torch.rand(3, 4, 2, 12, 12))
    for student in (kept, again):
        student(x).logits.square().sum().backward()
    for p, q in zip(kept.parameters(), again.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)
    for a, b in zip(kept.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)
