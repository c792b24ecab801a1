"""The fused scan against the plain one, compiled and uncompiled, and the way back without a
compiler. What is compiled here is kept to a few variants, since each takes seconds."""

import itertools
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from estl.neurons import LIF, Sigmoid, Triangle, fused, kernels, lif
from estl.neurons.fused import fused_lif, worthwhile

# Factors that are no powers of two: a fused multiply-add would show in the last bit.
OPTIONS: dict[str, Any] = {
    "decay": 0.9,
    "gain": 0.3,
    "threshold": 0.75,
    "reset": "hard",
    "detach_reset": False,
    "surrogate": Triangle(),
    "inclusive": False,
}


def randn(*shape: int) -> Tensor:
    """Input strong enough for some spikes."""
    return 3 * torch.randn(shape)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "a vector of neurons": lambda: randn(4, 33),
    "two neurons": lambda: randn(4, 2),
    "as many neurons as steps": lambda: randn(4, 4),
    "maps": lambda: randn(4, 2, 3, 5, 7),
    "channels last": lambda: randn(4, 2, 5, 7, 3).permute(0, 1, 4, 2, 3),
    "batch first": lambda: randn(2, 4, 3, 5).transpose(0, 1),
    "every other column": lambda: randn(4, 3, 10)[..., ::2],
    "a slice of channels": lambda: randn(4, 6, 5)[:, 1:4],
    "a static image": lambda: randn(1, 2, 3, 5).expand(4, -1, -1, -1),
    "one image for the batch": lambda: randn(4, 1, 3, 5).expand(-1, 2, -1, -1),
}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_no_compiler", {"cpu"})


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test in which falling back is a failure."""
    monkeypatch.setattr(kernels, "_no_compiler", set())
    yield
    assert not kernels._no_compiler


def assert_same(x: Tensor, **options: Any) -> None:
    """Fused and plain agree on `x` to the bit."""
    twin = x.detach().requires_grad_()
    x = x.detach().requires_grad_()
    expected, spikes = lif(x, **options), fused_lif(twin, **options)
    grad = torch.randn(x.shape).to(x.dtype)
    expected.backward(grad)
    spikes.backward(grad)
    assert torch.equal(spikes, expected)
    if x.numel() > 40:
        assert 0 < spikes.float().mean() < 1
    assert torch.equal(twin.grad, x.grad)


def compilations() -> int:
    return sum(made.cache_info().misses for made in (kernels._compiled, kernels._watched))


# --- the two functions, uncompiled --------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("surrogate", [Triangle(0.7), Sigmoid()], ids=str)
def test_functions_equal_the_plain_scan_to_the_bit(
    dtype: torch.dtype, reset: str, surrogate: Triangle | Sigmoid
) -> None:
    changes = {"reset": reset, "surrogate": surrogate}
    for detach, inclusive, steps in itertools.product((False, True), (False, True), (1, 2, 5)):
        options = OPTIONS | changes | {"detach_reset": detach, "inclusive": inclusive}
        assert_same(randn(steps, 3, 17).to(dtype), **options)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functions_take_any_layout(layout: str) -> None:
    assert_same(LAYOUTS[layout](), **OPTIONS)


@pytest.mark.usefixtures("compiled")
def test_no_neuron_or_one_is_not_compiled_for() -> None:
    before = compilations()
    for shape in ((4, 0), (4, 3, 0), (4, 1), (4,)):
        assert_same(randn(*shape), **OPTIONS)
    assert compilations() == before


@pytest.mark.usefixtures("uncompiled")
def test_ties_fire_only_if_inclusive() -> None:
    x = torch.ones(1, 3)
    tie = OPTIONS | {"gain": 1.0, "threshold": 1.0}
    assert fused_lif(x, **tie).sum() == 0
    assert fused_lif(x, **(tie | {"inclusive": True})).sum() == 3


@pytest.mark.usefixtures("uncompiled")
def test_spikes_keep_the_memory_order() -> None:
    for name in ("maps", "channels last"):
        x = LAYOUTS[name]()
        assert fused_lif(x, **OPTIONS).stride() == x.stride()


@pytest.mark.usefixtures("uncompiled")
def test_spikes_may_be_written_into() -> None:
    x = randn(4, 2, 3).requires_grad_()
    (grad,) = torch.autograd.grad(fused_lif(x, **OPTIONS).mul_(2).sum(), x)
    (half,) = torch.autograd.grad(fused_lif(x, **OPTIONS).sum(), x)
    torch.testing.assert_close(grad, 2 * half)


@pytest.mark.usefixtures("uncompiled")
def test_only_the_input_is_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = randn(4, 2, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused_lif(x, **OPTIONS)
        assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]
        kept.clear()
        with torch.no_grad():
            assert fused_lif(x, **OPTIONS).grad_fn is None
        assert kept == []


@pytest.mark.usefixtures("uncompiled")
def test_a_second_derivative_is_refused_and_the_way_out_named() -> None:
    x = randn(4, 5).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative: set ESTL_COMPILE=0"):
        torch.autograd.grad(fused_lif(x, **OPTIONS).sum(), x, create_graph=True)


def test_input_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="no time steps"):
        fused_lif(torch.zeros(0, 3), **OPTIONS)


# --- compiled -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_one_compilation_serves_all_sizes_and_equals_the_plain_scan_to_the_bit() -> None:
    assert_same(randn(4, 100), **OPTIONS)
    before = compilations()
    for layout, make in LAYOUTS.items():
        if layout != "a static image":
            assert_same(make(), **OPTIONS)
    for neurons in (1, 15, 16, 17, 4099):
        assert_same(randn(4, neurons), **OPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(randn(4, 50), **OPTIONS)
    with torch.no_grad():
        x = randn(4, 50)
        assert torch.equal(fused_lif(x, **OPTIONS), lif(x, **OPTIONS))
    x = randn(4, 50).requires_grad_()
    fused_lif(x, **OPTIONS).sum().backward()  # a gradient that is one value expanded
    equal = OPTIONS | {"surrogate": Triangle()}
    assert_same(randn(4, 20), **equal)
    assert compilations() == before


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_threads_share_the_compiled_scan() -> None:
    assert_same(randn(4, 100), **OPTIONS)
    before = compilations()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                assert_same(randn(4, 50), **OPTIONS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert compilations() == before


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("layout", "neuron", "dtype"),
    [
        ("a static image", LIF.tet(), torch.float32),
        ("maps", LIF.spikformer(), torch.float32),
        ("maps", LIF(**OPTIONS), torch.bfloat16),
        ("maps", LIF(**OPTIONS), torch.float16),
        ("maps", LIF(**OPTIONS | {"reset": "soft", "inclusive": True}), torch.float64),
    ],
    ids=str,
)
def test_compiled_presets_equal_the_plain_scan_in_every_precision(
    layout: str, neuron: LIF, dtype: torch.dtype
) -> None:
    # A static image is compiled for apart, and its memory is all that is special about it.
    assert_same(LAYOUTS[layout]().to(dtype), **neuron.options)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("steps", [1, 10])
def test_compiled_scan_takes_any_number_of_steps(steps: int) -> None:
    assert_same(randn(steps, 200), **OPTIONS)


class Annealed:
    """A surrogate that changes."""

    width = 9.0

    def __call__(self, u: Tensor) -> Tensor:
        return 1.0 / (1.0 + self.width * u * u)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_users_surrogate_is_compiled_and_may_change() -> None:
    surrogate = Annealed()
    assert_same(randn(4, 200), **(OPTIONS | {"surrogate": surrogate}))
    surrogate.width = 2.0
    assert_same(randn(4, 200), **(OPTIONS | {"surrogate": surrogate}))


@pytest.mark.usefixtures("compiled")
def test_what_is_known_of_arguments_is_all_that_code_depends_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []

    def compiled(function: Callable[..., Any], device: torch.device, *kinds: Any) -> Any:
        asked.append(kinds)
        return lambda *tensors: function(*tensors, *kinds[len(tensors) :])

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        asked.append(())
        return function

    monkeypatch.setattr(kernels, "_compiled", compiled)
    monkeypatch.setattr(kernels, "_watched", watched)

    def add(*args: Any) -> Tensor:
        return args[0] + args[1] + (args[2] if args[2:] else 0)

    x, v = torch.ones(4, 5, 6), torch.ones(6)
    for known in ((x, v), (x, x, 2.0), (x.transpose(0, 1), v), (x[:1].expand(3, 5, 6), v)):
        assert torch.equal(kernels.run(add, *known), add(*known))
        assert asked.pop() != ()
    wide = torch.ones(5, 7)[:, :6]
    for other in (
        (x, wide),
        (x, nn.Parameter(v)),
        (x, torch.ones(4, 5, 1).expand(x.shape)),
        (x, x, v[0]),
    ):
        assert torch.equal(kernels.run(add, *other), add(*other))
        assert asked.pop() == ()
    assert asked == []


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_compiling_is_not_seen_by_who_counts_operations() -> None:
    kernels._compiled.cache_clear()
    x = randn(4, 50).requires_grad_()
    with FlopCounterMode(display=False), torch.autocast("cpu", dtype=torch.bfloat16):
        fused_lif(x, **OPTIONS).sum().backward()
    assert kernels._compiled.cache_info().currsize == 2
    with torch.inference_mode():
        assert torch.equal(fused_lif(x, **OPTIONS), lif(x, **OPTIONS))


# --- which of the two a layer takes ---------------------------------------------------------------


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule in a process that has compiled nothing, with ten values for many."""
    monkeypatch.delenv("ESTL_COMPILE", raising=False)
    monkeypatch.setattr(fused, "LARGE", 10)
    kernels._compiled.cache_clear()
    kernels._watched.cache_clear()


@pytest.mark.usefixtures("rule")
def test_large_layers_in_training_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (torch.zeros(n, requires_grad=True) for n in (10, 9))
    assert worthwhile(large)
    assert not worthwhile(small)
    assert not worthwhile(large.detach())
    with torch.no_grad():
        assert not worthwhile(large)
    assert not worthwhile(torch.zeros(10, device="meta", requires_grad=True))
    assert not worthwhile(torch.zeros(65, requires_grad=True))  # a minute of compiling


@pytest.mark.usefixtures("rule")
def test_without_a_gradient_only_what_is_compiled_already_is_used() -> None:
    kernels._watched(fused._forward)
    assert worthwhile(torch.zeros(10))
    assert not worthwhile(torch.zeros(9))


@pytest.mark.usefixtures("rule")
def test_the_environment_overrides_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESTL_COMPILE", "0")
    assert not worthwhile(torch.zeros(10, requires_grad=True))
    monkeypatch.setenv("ESTL_COMPILE", "1")
    assert worthwhile(torch.zeros(2))
    monkeypatch.setenv("ESTL_COMPILE", "yes")
    with pytest.raises(ValueError, match="ESTL_COMPILE='yes': set it to 0 or 1"):
        worthwhile(torch.zeros(2))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("choice", ["0", "1"])
def test_module_gives_the_same_on_either_path(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESTL_COMPILE", choice)
    x = randn(2, 4, 3, 5, 6).requires_grad_()
    spikes = LIF.spikformer()(x)
    assert ("Fused" in spikes.grad_fn.next_functions[0][0].name()) == (choice == "1")
    spikes.sum().backward()
    twin = x.detach().clone().requires_grad_()
    expected = lif(twin.transpose(0, 1), **LIF.spikformer().options).transpose(0, 1)
    expected.sum().backward()
    assert torch.equal(spikes, expected)
    assert torch.equal(x.grad, twin.grad)


# --- without a compiler ---------------------------------------------------------------------------


def test_a_failing_compiler_is_reported_once_and_the_results_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both_inside = threading.Barrier(2)

    def fail(*args: Any) -> None:
        both_inside.wait(timeout=120)
        raise RuntimeError("no compiler\nand a long explanation")

    monkeypatch.setattr(kernels, "_compiled", lambda *kinds: fail)
    monkeypatch.setattr(kernels, "_no_compiler", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other = threading.Thread(target=fused_lif, args=(randn(4, 100),), kwargs=OPTIONS)
        other.start()
        fused_lif(randn(4, 100), **OPTIONS)
        other.join()
        assert_same(randn(4, 100), **OPTIONS)  # the compiler is not tried again
        assert_same(randn(3, 100), **(OPTIONS | {"surrogate": Sigmoid()}))
    (warning,) = caught
    assert str(warning.message) == (
        "LIF runs uncompiled on cpu, with the same results but slower, since torch.compile failed "
        "(RuntimeError: no compiler); ESTL_COMPILE=0 leaves it out from the start"
    )


def test_lack_of_memory_is_not_taken_for_lack_of_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(kernels, "_compiled", lambda *kinds: full)
    monkeypatch.setattr(kernels, "_no_compiler", set())
    with pytest.raises(torch.OutOfMemoryError):
        fused_lif(randn(4, 100), **OPTIONS)
    assert not kernels._no_compiler


@pytest.mark.slow
def test_a_machine_without_gcc_trains_with_one_warning(tmp_path: Any) -> None:
    program = """
import torch
from estl.neurons import LIF, lif
for neuron in (LIF.tet(), LIF.spikformer()):
    x = torch.randn(3, 4, 50).mul(2).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    spikes, expected = neuron(x), lif(twin.transpose(0, 1), **neuron.options).transpose(0, 1)
    spikes.sum().backward()
    expected.sum().backward()
    assert torch.equal(spikes, expected) and torch.equal(x.grad, twin.grad)
print("same")
"""
    nothing = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "ESTL_COMPILE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | nothing,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "same\n"
    assert result.stderr.count("LIF runs uncompiled on cpu") == 1
