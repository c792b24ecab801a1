"""PyTorch's pooling layers, which here save less for the backward pass."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class AvgPool(nn.AvgPool2d):
    """Mean over non-overlapping k x k windows; incomplete windows at the edges are left out.

    PyTorch's layer saves its whole input for the backward pass, of which only the size matters: for
    spikes, that is one spike per neuron and step in the memory of a floating-point number.

    >>> AvgPool(2)(torch.arange(8.0).view(1, 1, 2, 4))
    tensor([[[[2.5000, 4.5000]]]])
    """

    def __init__(self, k: int) -> None:
        super().__init__(k)

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C h w"]:
        """The pooled maps."""
        if torch.compiler.is_compiling():  # exported as one operation
            return super().forward(input)
        return cast(Tensor, _AvgPool.apply(input, self.kernel_size))


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        ctx.size, ctx.k = x.shape[2:], k
        return F.avg_pool2d(x, k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return spread(grad, ctx.k, ctx.size), None


def spread(
    grad: Float[Tensor, "N C h w"], k: int, size: tuple[int, int]
) -> Float[Tensor, "N C H W"]:
    """The gradient of maps of this size, given that of their means over k x k windows.

    >>> spread(torch.tensor([[[[4.0, 8.0]]]]), 2, (3, 4))
    tensor([[[[1., 1., 2., 2.],
              [1., 1., 2., 2.],
              [0., 0., 0., 0.]]]])
    """
    (H, W), (h, w) = size, grad.shape[2:]
    each = F.interpolate(grad / k**2, (h * k, w * k), mode="nearest-exact")
    fits = h * k == H and w * k == W
    return each if fits else F.pad(each, (0, W - w * k, 0, H - h * k))


class MaxPool(nn.MaxPool2d):
    """Maximum over k x k windows; only the position of each is saved for the backward pass.

    PyTorch's layer saves its whole input too, of which only the size matters.

    >>> MaxPool(3, stride=2, padding=1)(torch.arange(8.0).view(1, 1, 2, 4))
    tensor([[[[5., 7.]]]])
    """

    def __init__(self, k: int, stride: int, padding: int) -> None:
        super().__init__(k, stride, padding)

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C h w"]:
        """The pooled maps."""
        known = input.device.type in ("cpu", "cuda")  # elsewhere PyTorch reads the input again
        if torch.compiler.is_compiling() or not known or not input.requires_grad:
            return cast(Tensor, super().forward(input))
        how = self.kernel_size, self.stride, self.padding
        return cast(Tensor, _MaxPool.apply(input, *how))


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, stride: int, padding: int) -> Tensor:
        how = [k, k], [stride, stride], [padding, padding]
        y, places = F.max_pool2d_with_indices(x, *how)
        ctx.save_for_backward(places)
        ctx.size, ctx.strides = x.shape, torch.empty_like(x, device="meta").stride()
        ctx.how = *how, [1, 1], False
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        like = torch.empty_strided(ctx.size, ctx.strides, dtype=grad.dtype, device=grad.device)
        back = torch.ops.aten.max_pool2d_with_indices_backward
        return back(grad, like, *ctx.how, places), None, None, None
