"""Live bytes of tensors, counted as operations make them, for fake tensors and real ones alike."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the memory that operations within the block take, until its last user is gone.

    What autograd keeps for the backward pass is counted as long as it keeps it. What an operation
    only takes while it runs (the workspace of a convolution) is not seen.

    Args:
        block: bytes in which an allocator gives memory; 512 for CUDA's.

    Attributes:
        live: bytes now.
        peak: the most so far; may be set anew.

    >>> import torch
    >>> with LiveBytes() as count:
    ...     x = torch.zeros(1000, requires_grad=True)
    ...     y = x.exp().exp().sum()     # keeps what both gave; y is one number
    >>> count.live, count.peak
    (12004, 12004)
    >>> del y
    >>> count.live
    4000
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.block = block
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result

    def see(self, x: Tensor) -> None:
        """Count the memory of `x`, unless it is already counted or `x` has none."""
        storage = x.untyped_storage()
        key = id(storage)  # its own as long as it lives
        if x.is_meta or key in self._sizes:
            return
        self._sizes[key] = -(-storage.nbytes() // self.block) * self.block
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
