"""Surrogates: functions that replace the derivative of a spike in the backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Surrogate = Callable[[Tensor], Tensor]
"""Derivative in place of the step's, as a function of u = v - threshold."""


@dataclass(frozen=True)
class Triangle:
    """Triangular surrogate of TET (Deng et al. 2022): max(0, width - |u|) / width^2.

    >>> Triangle()(torch.tensor([-0.5, 0.0, 2.0])).tolist()
    [0.5, 1.0, 0.0]
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"width={self.width}: the triangle needs a positive half-width")

    def __call__(self, u: Tensor) -> Tensor:
        """The derivative at `u`."""
        return (self.width - u.abs()).clamp(min=0.0) / self.width**2


@dataclass(frozen=True)
class Sigmoid:
    """Derivative of sigmoid(alpha * u), the surrogate of Spikformer (alpha 4).

    In float32 it is computed without an exponential, for which compiled code would call a function
    per vector and save all registers around it: with y = alpha u it is

        alpha / (2 + 2 cosh y) = alpha / (h(y) + 4),    h(y) = 2 cosh y - 2,

    and since h(2y) = h(y) (h(y) + 4), four doublings lead from y/16, where the series

        h(y/16) = x + x^2/12 + x^3/360 + x^4/20160 + ...,    x = (y/16)^2

    is short, to y. The error is below 4e-8 alpha, half that of p (1 - p) with p = sigmoid(y), and
    for |y| <= 10 below 2e-6 of the derivative. Float64 is computed as p (1 - p).

    >>> Sigmoid()(torch.tensor(0.0)).item()
    1.0
    """

    alpha: float = 4.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha}: the sigmoid needs a positive slope")

    def __call__(self, u: Tensor) -> Tensor:
        """The derivative at `u`."""
        if u.dtype == torch.float64:
            p = torch.sigmoid(self.alpha * u)
            return self.alpha * p * (1.0 - p)
        x = u * u * (self.alpha / 16) ** 2
        h = (((x * (1 / 20160) + 1 / 360) * x + 1 / 12) * x + 1.0) * x
        for _ in range(4):
            h = h * (h + 4.0)
        return self.alpha / (h + 4.0)
