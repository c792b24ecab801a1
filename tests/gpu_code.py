"""The code that PyTorch's compiler would run on a GPU, without one.

What a layer asks `kernels.run` for is traced on the CPU, its tensors are said to lie on a GPU, and
compiling ends where the code would be loaded. What the compiler asks a GPU for is answered as an
H100 would. Triton (`make gpu-code`) then runs the code on the CPU, or makes machine code of it.
"""

import ast
import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from estl.neurons import LIF, kernels
from estl.neurons.fused import fused_lif
from estl.neurons.fused_norm import fused_norm_lif
from estl.neurons.norm_passes import _in_place

GPU = torch.device("cuda:0")
H100 = SimpleNamespace(
    name="H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    L2_cache_size=50 << 20,
    shared_memory_per_block_optin=232448,
)
UNTRIED = {"pattern_matcher": False, "joint_graph_constant_folding": False}
"""What the compiler would compute on a GPU before there is code, which changes none here."""
BLOCK = 256  # values a program of Triton's computes at once


class Pass(NamedTuple):
    """What was asked of `kernels.run`."""

    function: Callable[..., Any]
    kinds: tuple[Any, ...]
    tensors: tuple[Tensor, ...]

    def expected(self) -> tuple[Tensor, ...]:
        each = iter(self.tensors)
        args = (next(each) if type(kind) is kernels.Kind else kind for kind in self.kinds)
        found = self.function(*args)
        return found if isinstance(found, tuple) else (found,)


def passes(neuron: LIF, T: int, dtype: torch.dtype, shortcut: str) -> list[Pass]:
    """Of a training step of a layer: `shortcut` is "none", "as it is" or "normalized", or "no norm"
    for a neuron alone.

    What is written into its input is left out, since a graph that does so cannot be moved to a GPU
    that is not there: it computes what another pass does, too.
    """
    asked: list[Pass] = []

    def noted(function: Callable[..., Any], _: torch.device, *kinds: Any) -> Callable[..., Any]:
        def run(*tensors: Tensor) -> Any:
            asked.append(Pass(function, kinds, tuple(x.detach().clone() for x in tensors)))
            found = asked[-1].expected()
            return found if len(found) > 1 else found[0]

        return run

    compiled, kernels._compiled = kernels._compiled, noted  # type: ignore[assignment]
    try:
        torch.manual_seed(0)
        x = (2 * torch.randn(16, T, 2, 7)).to(dtype).requires_grad_()  # 32 tokens, 7 channels
        norms = [nn.BatchNorm1d(7) for _ in range(2)]
        if shortcut == "no norm":
            spikes = fused_lif(x.transpose(0, 1), **neuron.options)
        else:
            other = None if shortcut == "none" else torch.randn_like(x, requires_grad=True)
            second = norms[1] if shortcut == "normalized" else None
            spikes = fused_norm_lif(x, norms[0], other, second, **neuron.options)[0]
        spikes.backward(torch.randn_like(spikes))
    finally:
        kernels._compiled = compiled
    return [each for each in asked if each.function is not _in_place]


class _MadeError(Exception):
    """Carries the code."""


def answer_for_a_gpu() -> None:
    """For the rest of this process, what the compiler asks a GPU for is answered."""
    import torch._inductor.scheduler as scheduler
    import torch.utils._triton as triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
    from torch._inductor.graph import GraphLowering

    def made(code: str) -> None:
        raise _MadeError(code)

    answers: dict[Any, dict[str, Any]] = {
        torch.cuda: {"get_device_properties": H100, "get_device_capability": (9, 0)},
        CudaInterface: {
            "get_device_properties": H100,
            "get_compute_capability": 90,
            "current_device": 0,
            "is_triton_capable": True,
            "raise_if_triton_unavailable": None,
            "is_bf16_supported": True,
        },
        scheduler: {"has_triton": True},
        triton: {"triton_hash_with_backend": ""},
        pad_mm: {"_pad_mm_init": None},
        fuse_attention: {"_sfdp_init": None},
        misc_patterns: {"_misc_patterns_init": None},
    }
    for where, names in answers.items():
        for name, value in names.items():
            said = lambda *_, value=value, **__: value  # noqa: E731
            setattr(where, name, staticmethod(said) if isinstance(where, type) else said)
    GraphLowering.save_output_code = staticmethod(made)
    torch._inductor.config.compile_threads = 1  # no process is to load the code before that


def source(each: Pass) -> str:
    """What PyTorch's compiler makes of it for a GPU: Triton's code, and Python that calls it."""
    graph = kernels.graph_of(each.function, torch.device("cpu"), *each.kinds)
    for node in graph.graph.nodes:
        value: Any = node.meta.get("val")
        if isinstance(value, Tensor):
            with value.fake_mode:  # type: ignore[attr-defined]
                node.meta["val"] = torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device=GPU
                )
        if "device" in node.kwargs:
            node.update_kwarg("device", GPU)
    graph.recompile()
    options = UNTRIED | {"triton.autotune_at_compile_time": False}
    try:
        kernels.code_of(graph, **options)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, _MadeError):
            cause = getattr(cause, "inner_exception", None) or cause.__cause__ or cause.__context__
        if cause is None:
            raise
        return str(cause)
    raise AssertionError("there was nothing to compile")


KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''(?:, device_str='cuda')?\)", re.S)


class Kernel:
    """One of Triton's, as it stands in a `source`."""

    def __init__(self, name: str, code: str) -> None:
        self.signature: dict[str, str] = ast.literal_eval(
            re.search(r"'signature': (\{.*?\})", code).group(1)
        )
        code = code.replace("triton_helpers.set_driver_to_gpu()\n", "")
        code = re.sub(r"@triton_heuristics.*?(?=@triton\.jit)", "", code, flags=re.S)
        self.function = getattr(_module(name, code), name)

    def run(self, *args: Any, stream: object = None) -> None:
        """In Triton's interpreter."""
        named = dict(zip(self.signature, args, strict=False))
        self.function[(math.ceil(named["xnumel"] / BLOCK),)](*args, XBLOCK=BLOCK)

    def assembled(self) -> str:
        """What NVIDIA's assembler says of it for an H100: registers, and what is spilled."""
        triton, backends, compiler = (
            importlib.import_module(name)
            for name in ("triton", "triton.backends.compiler", "triton.compiler")
        )
        pointers = [i for i, kind in enumerate(self.signature.values()) if kind.startswith("*")]
        code = compiler.ASTSource(
            self.function,
            dict(self.signature),
            {"XBLOCK": BLOCK},
            {(i,): [["tt.divisibility", 16]] for i in pointers},
        )
        options = {"num_warps": 4, "enable_fp_fusion": False}
        made = triton.compile(code, target=backends.GPUTarget("cuda", 90, 32), options=options)
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder, "kernel.ptx")
            text.write_text(made.asm["ptx"])
            tools = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin"
            said = ""
            for tool in sorted(tools.glob("ptxas*")):  # the newest knows what Triton writes
                command = [str(tool), "-v", "-arch=sm_90a", str(text), "-o", f"{folder}/kernel"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                said = done.stderr if done.returncode == 0 else said
        return said


def _module(name: str, code: str) -> ModuleType:
    path = Path(tempfile.mkdtemp(), f"{name}.py")  # Triton reads a kernel's source from its file
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernels_of(code: str) -> dict[str, Kernel]:
    return {name: Kernel(name, text) for name, text in KERNEL.findall(code)}


def interpreted(code: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """What the code makes of tensors of the CPU."""
    body = code[code.index("class Runner") : code.index("def get_args")]
    guards: Any = torch._C._dynamo.guards
    places: dict[str, Any] = {
        **kernels_of(code),
        "torch": SimpleNamespace(
            cuda=SimpleNamespace(_DeviceGuard=nullcontext, set_device=lambda _: None),
            **{name: getattr(torch, name) for name in ("float32", "bfloat16", "float64")},
        ),
        "get_raw_stream": lambda _: None,
        "copy_if_misaligned": lambda x: x,
        "assert_size_stride": guards.assert_size_stride,
        "reinterpret_tensor": guards._reinterpret_tensor,
        "empty_strided_cuda": lambda s, strides, d: torch.empty_strided(s, strides, dtype=d),
    }
    exec(body, places)
    found: Sequence[Tensor] = places["call"](list(tensors))
    return found


def report(words: Sequence[str]) -> int:
    """Print, of each pass of a layer, its kernels: "count" them, "interpret" or "assemble" them."""
    how, neuron, T, dtype, *shortcuts = words
    answer_for_a_gpu()
    for shortcut in shortcuts:
        for each in passes(getattr(LIF, neuron)(), int(T), getattr(torch, dtype), shortcut):
            code = source(each)
            said: dict[str, Any] = {"shortcut": shortcut, "pass": each.function.__name__}
            said["kernels"] = len(KERNEL.findall(code))
            if how == "interpret":
                pairs = zip(interpreted(code, each.tensors), each.expected(), strict=True)
                said["error"] = max(
                    ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
                    for a, b in pairs
                )
            if how == "assemble":
                texts = [kernel.assembled() for kernel in kernels_of(code).values()]
                said["registers"] = [int(*re.findall(r"Used (\d+) registers", x)) for x in texts]
                said["spilled"] = [int(*re.findall(r"(\d+) bytes spill stores", x)) for x in texts]
            print(json.dumps(said), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(report(sys.argv[1:]))
