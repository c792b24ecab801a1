"""`neurons.linear` against `F.linear`, also on processors where it leaves products to PyTorch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from estl.guidance.teacher import ClipTeacher
from estl.neurons import linear as module
from estl.neurons.linear import Linear, by_onednn, linear, make_linears_fast, mkl_is_slow
from estl.students import Spikformer


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of any size by oneDNN, which is part of PyTorch on every processor tested."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(module, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(module, "LARGE", 1)


def products(work: Callable[[], object]) -> dict[str, int]:
    """How often each operation that multiplies matrices is called."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    names = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")
    return {e.key: e.count for e in found.key_averages() if e.key in names}


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (4, 1, 3, 5)])
@pytest.mark.parametrize("features", [1, 3, 9])
@pytest.mark.parametrize("biased", [True, False])
def test_products_and_gradients_are_those_of_pytorch(
    shape: tuple[int, ...], features: int, biased: bool, onednn: None
) -> None:
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(features, 5, requires_grad=True)
    bias = torch.randn(features, requires_grad=True) if biased else None
    inputs = [x, weight] if bias is None else [x, weight, bias]
    assert by_onednn(x, weight)
    found, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    grad = torch.randn_like(expected)
    pairs = zip(*(torch.autograd.grad(y, inputs, grad) for y in (found, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_what_lies_otherwise_in_memory_is_multiplied_alike(onednn: None) -> None:
    x = torch.randn(5, 2, 6).permute(1, 2, 0)
    weight = torch.randn(5, 3).T
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-6)


def test_only_gradients_that_are_asked_for_are_computed(onednn: None) -> None:
    x, weight = torch.randn(4, 5), torch.randn(3, 5, requires_grad=True)
    y = linear(x, weight)
    assert products(lambda: y.sum().backward()) == {"mkldnn::_linear_pointwise": 1}
    assert x.grad is None


def test_second_derivatives_are_those_of_pytorch(onednn: None) -> None:
    x, weight = torch.randn(4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)

    def second(layer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        (slope,) = torch.autograd.grad(layer(x, weight).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weight)[0]

    torch.testing.assert_close(second(linear), second(F.linear), rtol=1e-4, atol=1e-4)


def test_spikes_times_integers_are_exact(onednn: None) -> None:
    x, weight = torch.rand(64, 300).round(), torch.randint(-9, 9, (50, 300)).float()
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_the_students_tokens_and_the_teachers_go_through_it(onednn: None) -> None:
    net = Spikformer(classes=3, dim=16, depth=1, heads=2)
    calls = products(lambda: net(torch.rand(2, 3, 2, 8, 8)).logits.sum().backward())
    assert set(calls) == {"mkldnn::_linear_pointwise"}
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    teacher = ClipTeacher(CLIPVisionModel(config))
    assert set(products(lambda: teacher(torch.rand(2, 3, 16, 16)))) == {"mkldnn::_linear_pointwise"}


def test_other_products_are_left_to_pytorch(onednn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(6, 5), torch.randn(3, 5)
    assert by_onednn(x, weight)
    assert not by_onednn(x.double(), weight.double())
    assert not by_onednn(x.bfloat16(), weight.bfloat16())
    assert not by_onednn(x[0], weight)
    assert not by_onednn(torch.empty(6, 5, device="meta"), torch.empty(3, 5, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_onednn(x, weight)
        assert linear(x, weight).dtype == torch.bfloat16
    exported = torch.export.export(Linear(5, 3), (x,))
    assert "linear_pointwise" not in exported.graph_module.code
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not by_onednn(x, weight)


def test_small_products_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mkl_is_slow", lambda: True)
    large = torch.empty(module.LARGE // 64, 8)
    assert by_onednn(large, torch.empty(8, 8))
    assert not by_onednn(large[1:], torch.empty(8, 8))


@pytest.mark.parametrize(
    ("maker", "capability", "slow"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("GenuineIntel", "AVX512", False),
        ("AuthenticAMD", "AVX2", False),
        (None, "AVX512", False),
    ],
)
def test_mkl_is_slow_with_avx512_by_others_than_intel(
    maker: str | None, capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        if maker is None:
            raise FileNotFoundError(path)
        return f"processor\t: 0\nvendor_id\t: {maker}\n"

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert mkl_is_slow.__wrapped__() is slow


def test_layers_of_other_modules_keep_their_parameters_and_their_subclasses() -> None:
    class Special(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(3, 4), Special(4, 2))
    before = dict(net.named_parameters())
    make_linears_fast(net)
    assert [type(layer) for layer in net] == [Linear, Special]
    assert all(p is before[name] for name, p in net.named_parameters())
