"""Rows of floats in a .npy file, in the narrowest numbers that give back the very same floats."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor


@dataclass(frozen=True)
class Code:
    """Floats as `number / scale`, the number of type `dtype`; float32 stores the floats."""

    dtype: str
    scale: int = 1

    def numbers(self, x: Tensor) -> np.ndarray | None:
        """The numbers, or None if they would not give back `x` exactly."""
        if self.dtype == "float32":
            return x.float().numpy()
        number = (x * self.scale).round()
        fits = float(number.min()) >= 0 and float(number.max()) <= np.iinfo(self.dtype).max
        if not fits or not torch.equal(number / self.scale, x):
            return None
        return number.numpy().astype(self.dtype)

    def floats(self, numbers: np.ndarray) -> Tensor:
        """The floats, in memory of their own."""
        x = torch.from_numpy(numbers.astype(np.float32))
        return x if self.scale == 1 else x.div_(self.scale)


COUNTS = (Code("uint8"), Code("uint16"), Code("float32"))
PIXELS = (Code("uint8", scale=255), Code("float32"))


def narrowest(x: Tensor, codes: Sequence[Code] = COUNTS) -> tuple[Code, np.ndarray]:
    """The first of `codes` that gives back `x` exactly, and the numbers; float32 always does.

    >>> narrowest(torch.tensor([0.0, 256.0]))
    (Code(dtype='uint16', scale=1), array([  0, 256], dtype=uint16))
    """
    found = ((code, code.numbers(x)) for code in codes)
    return next((code, numbers) for code, numbers in found if numbers is not None)


class Column:
    """The file `<path>.<dtype>.npy` of rows of one shape, in the first of `codes` that holds all.

    `shape` is (rows, ...); `codes` are those that are left, the first of them that of the file.
    """

    def __init__(self, path: Path, codes: Sequence[Code], shape: tuple[int, ...]) -> None:
        self.path, self.codes = path, codes
        self.rows = self._create(shape)

    def write(self, i: int, x: Tensor) -> None:
        """Write row i; if it needs wider numbers, the rows before it are widened first."""
        code, numbers = narrowest(x, self.codes)
        if code != self.codes[0]:
            old, narrow = self.codes[0], self.rows
            self.codes = self.codes[self.codes.index(code) :]
            self.rows = self._create(narrow.shape)
            for k in range(i):
                self.rows[k] = code.numbers(old.floats(narrow[k]))
            path = Path(str(narrow.filename))
            del narrow  # unmapped before it is removed
            path.unlink()
        self.rows[i] = numbers

    def _create(self, shape: tuple[int, ...]) -> np.memmap:
        path = self.path.with_suffix(f".{self.codes[0].dtype}.npy")
        rows: np.memmap = open_memmap(path, "w+", self.codes[0].dtype, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now and not a crash later
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return rows
