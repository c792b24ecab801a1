"""Attention with shared keys and values against its definition in float64, each way it is done."""

import unittest.mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from estl.guidance import attention
from estl.guidance.attention import attend
from estl.neurons import linear

WAYS = ["dense", "fused", "onednn"]


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces one of `WAYS`, on processors too where another would be taken."""
    name: str = request.param
    monkeypatch.setattr(attention, "DENSE", 2**23 if name == "dense" else 0)
    monkeypatch.setattr(attention, "CHUNK", 7)
    monkeypatch.setattr(linear, "LARGE", 1)
    if name == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: name == "onednn")
    return name


def defined(q: Tensor, keys: Tensor, scale: float) -> Tensor:
    return (scale * q @ keys.mT).softmax(-1) @ keys


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("scale", [0.3, 40.0])  # 40: scores of some hundreds
@pytest.mark.parametrize("keys_learn", [True, False])
@pytest.mark.parametrize("count", [1, 7, 24])
def test_output_and_gradients_are_those_of_the_definition(
    way: str, scale: float, keys_learn: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = unittest.mock.Mock(wraps=F.scaled_dot_product_attention)
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    q = torch.randn(3, 10, 8, requires_grad=True)
    keys = torch.randn(3, count, 8, requires_grad=keys_learn)
    inputs = [q, keys] if keys_learn else [q]
    found = attend(q, keys, scale)
    assert kernel.called == (way == "fused" or (way == "dense" and keys_learn))
    exact = defined(q.double(), keys.double(), scale)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(found)
    ours = torch.autograd.grad(found, inputs, grad)
    theirs = torch.autograd.grad(exact, inputs, grad.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * max(1.0, scale))


@pytest.mark.parametrize("way", ["onednn"], indirect=True)
def test_a_second_derivative_is_refused_and_not_wrong(way: str) -> None:
    q, keys = torch.randn(1, 4, 8, requires_grad=True), torch.randn(1, 9, 8)
    (slope,) = torch.autograd.grad(attend(q, keys, 1.0).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("way", ["onednn"], indirect=True)
def test_other_precisions_and_autocast_are_left_to_pytorch(way: str) -> None:
    q, keys = torch.randn(2, 4, 8), torch.randn(2, 9, 8, requires_grad=True)
    with unittest.mock.patch.object(attention, "_Attend") as own:
        attend(q.double(), keys.double(), 1.0)
        with torch.autocast("cpu", torch.bfloat16):
            attend(q, keys, 1.0)
    assert not own.apply.called
