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

    >>> Sigmoid()(torch.tensor(0.0)).item()
    1.0
    """

    alpha: float = 4.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha}: the sigmoid needs a positive slope")

    def __call__(self, u: Tensor) -> Tensor:
        """The derivative at `u`."""
        p = torch.sigmoid(self.alpha * u)
        return self.alpha * p * (1.0 - p)
