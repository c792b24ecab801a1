"""Rows of floats in a file, in the narrowest numbers that give back the very same floats."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

_ROWS = 256  # re-encoded at a time


@dataclass(frozen=True)
class Code:
    """Floats as `number / scale`, the number of type `dtype`; float32 stores the floats."""

    dtype: str
    scale: int = 1

    def encode(self, x: Tensor) -> np.ndarray | None:
        """The numbers, or None if they would not give back `x` exactly."""
        if self.dtype == "float32":
            return x.float().numpy()
        number = (x * self.scale).round()
        fits = float(number.min()) >= 0 and float(number.max()) <= np.iinfo(self.dtype).max
        if not fits or not torch.equal(number / self.scale, x):
            return None
        return number.numpy().astype(self.dtype)

    def decode(self, numbers: np.ndarray) -> Tensor:
        """The floats, in memory of their own."""
        x = torch.from_numpy(numbers.astype(np.float32))
        return x if self.scale == 1 else x.div_(self.scale)


COUNTS = (Code("uint8"), Code("uint16"), Code("float32"))
PIXELS = (Code("uint8", scale=255), Code("float32"))


class Column:
    """Rows of one shape, appended to a file in the first of `codes` that holds all exactly."""

    def __init__(self, path: Path, codes: Sequence[Code]) -> None:
        self.path, self.codes = path, list(codes)
        self.file: BinaryIO = path.open("wb")

    def append(self, x: Tensor) -> None:
        """Write one row, after those so far have been widened if it needs that."""
        while (numbers := self.codes[0].encode(x)) is None:
            self._widen()
        self.file.write(numbers.tobytes())

    def _widen(self) -> None:
        """Write the rows so far again, in the next code."""
        self.file.close()
        old, wide = self.codes.pop(0), self.path.with_suffix(".wide")
        with self.path.open("rb") as narrow, wide.open("wb") as file:
            while len(block := narrow.read(_ROWS << 10)):
                numbers = self.codes[0].encode(old.decode(np.frombuffer(block, old.dtype)))
                assert numbers is not None, f"{self.codes[0]} holds less than {old}"
                file.write(numbers.tobytes())
        wide.replace(self.path)
        self.file = self.path.open("ab")

    def close(self) -> None:
        """End the file, on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
