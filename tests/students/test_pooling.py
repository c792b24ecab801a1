"""Pooling layers that keep less for the backward pass, against PyTorch's."""

import pytest
import torch
from torch import Tensor, nn

from estl.students.pooling import AvgPool, MaxPool

SIZES = [(6, 4), (7, 5), (2, 9), (9, 11), (50, 7)]


def compare(ours: nn.Module, theirs: nn.Module, x: Tensor) -> list[Tensor]:
    """Both give the same, and the same gradient; what `ours` keeps."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y = ours(x.requires_grad_())
    expected = theirs(x)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    out = torch.randn_like(y)
    (got,), (reference,) = (torch.autograd.grad(z, x, out) for z in (y, expected))
    torch.testing.assert_close(got, reference)
    assert got.stride() == reference.stride()
    return kept


def maps(size: tuple[int, int], dtype: torch.dtype, order: torch.memory_format) -> Tensor:
    return torch.randn(3, 4, *size).round().to(dtype).contiguous(memory_format=order)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_pools_are_pytorch_s_and_keep_little(
    size: tuple[int, int], dtype: torch.dtype, order: torch.memory_format
) -> None:
    for k in range(2, min(7, *size) + 1):
        assert not compare(AvgPool(k), nn.AvgPool2d(k), maps(size, dtype, order))
    for how in ((2, 2, 0), (3, 2, 1), (3, 1, 1)):
        if min(size) >= how[0]:
            kept = compare(MaxPool(*how), nn.MaxPool2d(*how), maps(size, dtype, order))
            assert [x.dtype for x in kept] == [torch.int64]


@pytest.mark.parametrize("pool", [AvgPool(2), MaxPool(3, 2, 1)])
def test_pools_have_a_second_derivative(pool: nn.Module) -> None:
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: pool(x).square(), x)


@pytest.mark.parametrize("pool", [AvgPool(2), MaxPool(3, 2, 1)])
def test_pools_compile_and_export_as_one_operation(pool: nn.Module) -> None:
    program = torch.export.export(pool, (torch.rand(2, 3, 6, 6),))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert len(calls) == 1, calls
