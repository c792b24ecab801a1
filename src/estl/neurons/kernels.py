"""Pure functions of tensors (T,...), each as one loop of compiled code: C++ on the CPU, Triton on
CUDA.

`torch.compile` checks its guards on the arguments at every call: a tenth of a millisecond, four
times per layer, which is a twentieth of a small student's step. The functions here depend on few
properties of their arguments, mostly on ones that cannot change, so that they are compiled once for
these, by the same compiler, and then called directly.

Compilation takes half a minute in total the first time on a machine, and two to six seconds in a
later process (Inductor caches its results on disk). One compilation serves all layer sizes; another
T, dtype or set of options needs its own.
"""

import functools
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from estl.neurons.surrogates import Sigmoid, Triangle

OPTIONS: dict[str, Any] = {
    "emulate_precision_casts": True,
    "cpp.dynamic_threads": True,
    "max_pointwise_cat_inputs": 0,
    "max_complex_pointwise_cat_inputs": 0,
}
"""Options of Inductor: round like the plain scan, without FMA; do not let one layer's size decide
whether all layers run on one thread; on a GPU, let a thread write all steps that it computes, as up
to 8 steps would otherwise each be computed from the first one on."""

VALUES = (bool, int, float, type(None), Triangle, Sigmoid)
"""Types of arguments that are compared by value and cannot change."""

EXAMPLE = (509, 131)
"""Sizes after T to compile with; they stand for any sizes, and equal ones for equal sizes."""

_no_compiler: set[str] = set()  # device types on which compilation failed: not tried again
_lock = threading.RLock()


class Kind(NamedTuple):
    """The properties that compiled code depends on, of a tensor (T,...) or a vector, whose T is 0.

    Args:
        order: the memory order: "C", that of the dimensions; "F", with the first two swapped;
            "shared", where all steps share one memory; "other".
    """

    dtype: torch.dtype
    ndim: int
    T: int
    order: str

    @classmethod
    def of(cls, x: Tensor) -> "Kind":
        """The kind of `x`; its order is also "other" if no example can be made of its kind.

        >>> Kind.of(torch.zeros(4, 5, 6))
        Kind(dtype=torch.float32, ndim=3, T=4, order='C')
        >>> x = torch.zeros(5, 6)
        >>> Kind.of(x.expand(4, 5, 6)).order, Kind.of(x[:, 1:]).order
        ('shared', 'other')
        """
        T = len(x) if x.ndim > 1 else 0
        if type(x) is not Tensor or x.ndim > 3 or T in EXAMPLE or x.numel() >= 2**31:
            order = "other"
        elif x.is_contiguous():
            order = "C"
        elif x.stride(0) == 0 and x[0].is_contiguous():
            order = "shared"
        elif T and x.transpose(0, 1).is_contiguous():
            order = "F"
        else:
            order = "other"
        return cls(x.dtype, x.ndim, T, order)

    def example(self, device: torch.device) -> Tensor:
        """A tensor of this kind.

        >>> Kind(torch.float32, 2, 4, "shared").example(torch.device("cpu")).stride()
        (0, 1)
        """
        sizes = EXAMPLE[len(EXAMPLE) + 1 - self.ndim :]
        made = functools.partial(torch.zeros, dtype=self.dtype, device=device)
        if self.ndim == 1:
            return made(EXAMPLE[-1])
        if self.order == "shared":
            return made(sizes).expand(self.T, *sizes)
        if self.order == "F":
            return made(sizes[0], self.T, *sizes[1:]).transpose(0, 1)
        return made(self.T, *sizes)


def _is_known(kind: Any) -> bool:
    return kind.order != "other" if type(kind) is Kind else type(kind) in VALUES


def run(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, compiled if possible.

    Tensors are (T,...), with one compilation for any sizes after T, or vectors of any length. Sizes
    at the same position, counted from the last, are equal.

    >>> run(torch.add, torch.ones(2, 1), torch.ones(2, 1)).tolist()    # too small to compile for
    [[2.0], [2.0]]
    """
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    device = tensors[0].device
    sizes = [x.shape[1:] if x.ndim > 1 else x.shape for x in tensors]
    smallest = min((size for shape in sizes for size in shape), default=0)
    if device.type in _no_compiler or smallest < 2:  # 1 and 0 do not stand for other sizes
        return function(*args)
    most = max(sizes, key=len)
    kinds = [Kind.of(arg) if isinstance(arg, Tensor) else arg for arg in args]
    try:
        if all(map(_is_known, kinds)) and all(most[-len(shape) :] == shape for shape in sizes):
            with _lock:  # one thread compiles, and the others wait for it
                compiled = _compiled(function, device, *kinds)
            return compiled(*tensors)
        return _watched(function)(*_marked(args))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _warn_once(device.type, error)
        return function(*args)


@functools.lru_cache(maxsize=None, typed=True)
def _compiled(
    function: Callable[..., Any], device: torch.device, *kinds: Any
) -> Callable[..., Any]:
    """`function` compiled for tensors of these kinds; other values in `kinds` are constants."""
    from torch.utils._python_dispatch import _disable_current_modes

    with ExitStack() as state:  # whatever modes the caller is in
        state.enter_context(_disable_current_modes())
        state.enter_context(torch.autocast(device.type, enabled=False))
        state.enter_context(torch.inference_mode(False))
        state.enter_context(torch.no_grad())
        return code_of(graph_of(function, device, *kinds))


def graph_of(
    function: Callable[..., Any], device: torch.device, *kinds: Any
) -> torch.fx.GraphModule:
    """The graph of `function`, traced for any sizes after T.

    >>> device = torch.device("cpu")
    >>> x = Kind(torch.float32, 1, 0, "C")
    >>> [str(node.target) for node in graph_of(torch.add, device, x, 2.0).graph.nodes][1:]
    ['aten.add.Tensor', 'output']
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def of_tensors(*args: Tensor) -> Any:
        each = iter(args)
        return function(*(next(each) if type(kind) is Kind else kind for kind in kinds))

    examples = [kind.example(device) for kind in kinds if type(kind) is Kind]
    return make_fx(of_tensors, tracing_mode="symbolic")(*examples)


def code_of(graph: torch.fx.GraphModule, **options: Any) -> Callable[..., Any]:
    """The graph, compiled with `OPTIONS` and `options`."""
    from torch._inductor import standalone_compile

    fakes = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
    compiled: Callable[..., Any] = standalone_compile(
        graph,
        fakes,
        dynamic_shapes="from_graph",
        options={"config_patches": OPTIONS | options},
    )
    return compiled


@functools.cache
def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled for arguments that may change, such as a user's surrogate."""
    # T and the options are constants of the generated code. The limit is on the number of such
    # variants: the default of 8 is too small for a study of T or decay.
    return torch.compile(  # type: ignore[call-overload]  # its overloads lack recompile_limit
        function, fullgraph=True, dynamic=False, recompile_limit=128, options=OPTIONS
    )


def _marked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with sizes after T marked as dynamic."""
    for x in args:
        if isinstance(x, Tensor):
            for dim in range(min(1, x.ndim - 1), x.ndim):
                torch._dynamo.mark_dynamic(x, dim)
    return args


def compiled_before() -> bool:
    """Whether this process has compiled anything."""
    return any(made.cache_info().currsize for made in (_compiled, _watched))


def _warn_once(device: str, error: Exception) -> None:
    with _lock:
        if device in _no_compiler:
            return
        _no_compiler.add(device)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    warnings.warn(
        f"LIF runs uncompiled on {device}, with the same results but slower, since torch.compile "
        f"failed ({reason}); ESTL_COMPILE=0 leaves it out from the start",
        RuntimeWarning,
        stacklevel=2,
    )
