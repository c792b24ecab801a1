"""A linear layer whose products are oneDNN's where PyTorch's own run at half speed.

PyTorch multiplies float32 matrices by MKL, which uses AVX-512 only on processors by Intel. oneDNN,
which is part of PyTorch too and computes its convolutions, uses it on all.
"""

from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LARGE = 2**22
"""Number of multiplications from which oneDNN, which reorders the weight at each call, pays off."""


class Linear(nn.Linear):
    """`nn.Linear`, with the products of `linear`.

    >>> Linear(3, 5)(torch.rand(2, 4, 3)).shape
    torch.Size([2, 4, 5])
    """

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows K"]:
        """The layer applied to every row."""
        return linear(input, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "K D"],
    bias: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, "*rows K"]:
    """`F.linear`, computed by oneDNN where `by_onednn` says so; gradients to all arguments.

    >>> x, weight, bias = torch.rand(2, 4, 3), torch.rand(5, 3), torch.rand(5)
    >>> torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    True
    """
    if not by_onednn(x, weight):
        return F.linear(x, weight, bias)
    rows = cast(Tensor, _Linear.apply(x.flatten(0, -2), weight, bias))
    return rows.unflatten(0, x.shape[:-1])


def make_linears_fast(module: nn.Module) -> None:
    """Turn each plain `nn.Linear` of a module into a `Linear`, with the same parameters.

    >>> net = nn.Sequential(nn.Linear(3, 5))
    >>> make_linears_fast(net)
    >>> isinstance(net[0], Linear)
    True
    """
    for each in module.modules():
        if type(each) is nn.Linear:
            each.__class__ = Linear


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` computes these products by oneDNN: in float32 on the CPU, outside autocast
    (where PyTorch does so itself) and any compiler, if they are large and `mkl_is_slow`, unless
    `torch.backends.mkldnn.enabled` is False.

    >>> by_onednn(torch.rand(2, 3), torch.rand(4, 3))
    False
    """
    plain = type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)  # no fake or sharded one
    if not plain or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    single = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and x.ndim > 1
    large = single and x.numel() * len(weight) >= LARGE
    return large and mkl_is_slow() and bool(torch.backends.mkldnn.enabled)


@cache
def mkl_is_slow() -> bool:
    """Whether PyTorch has both libraries, and the processor AVX-512 but is not by Intel."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not both or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad_x = grad_weight = None
        if torch.is_grad_enabled():  # double backward
            grad_x, grad_weight = grad @ weight, grad.mT @ x
        else:
            if of_x:
                grad_x = product(grad, weight.mT)
            if of_weight and len(weight) <= x.shape[1]:  # fewer rows than columns: less is copied
                grad_weight = product(grad.mT, x.mT)
            elif of_weight:
                grad_weight = product(x.mT, grad.mT).mT
        return grad_x, grad_weight, grad.sum(0) if of_bias else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (M,D) times the transposed weight (K,D), of any strides, plus the bias, by oneDNN.

    >>> product(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[1., 3.],
            [2., 4.]])
    """
    found = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return cast(Tensor, found)
