"""One layer of LIF neurons, forward and backward: plain scan, fused scan, other frameworks.

    python benchmarks/neurons.py [--shape T B C H W] [--threads 2] [--repeats 20] [--device cpu]

The candidates take turns in one process; a figure is the median, with the best beside it. "kept" is
what a forward pass holds for the backward pass, apart from its input and output. Frameworks that
are not installed are left out (requirements-peers.txt). The machine must be idle: where another
process holds a core, every parallel loop waits for the scheduler, and the ratios mean nothing.

glibc maps allocations above 32 MB afresh each time, so at the default size much of every figure is
page faults. To see the computation alone, let the allocator keep its memory:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 python benchmarks/neurons.py
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from estl.neurons import LIF, lif
from estl.neurons.fused import fused_lif

Scan = Callable[[Tensor], Tensor]


def spikingjelly() -> Scan:
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0),
        step_mode="m",
    )

    def scan(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return scan


def snntorch() -> Scan:
    import snntorch as snn

    def triangle(u: Tensor, grad: Tensor, spikes: Tensor) -> Tensor:
        return grad * (1 - u.abs()).clamp(min=0)

    node = snn.Leaky(
        beta=0.5,
        spike_grad=snn.surrogate.custom_surrogate(triangle),
        reset_mechanism="zero",
        reset_delay=False,
    )

    def scan(x: Tensor) -> Tensor:
        node.to(x.device)
        potential, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s, potential = node(x_t, potential)
            spikes.append(s)
        return torch.stack(spikes)

    return scan


def candidates() -> dict[str, Scan]:
    options = LIF.tet().options
    found: dict[str, Scan] = {
        "estl plain": lambda x: lif(x, **options),
        "estl fused": lambda x: fused_lif(x, **options),
    }
    for framework in (spikingjelly, snntorch):
        try:
            found[f"{framework.__name__} {importlib.metadata.version(framework.__name__)}"] = (
                framework()
            )
        except ImportError:
            continue
    return found


def kept(scan: Scan, x: Tensor) -> int:
    """Bytes that a forward pass of `scan` holds, its input and output left out."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        spikes = scan(x)
    for ends in (x, spikes):
        storages.pop(ends.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def seconds(scan: Scan, x: Tensor, grad: Tensor) -> float:
    x.grad = None
    wait = torch.cuda.synchronize if x.is_cuda else (lambda: None)
    wait()
    start = time.perf_counter()
    scan(x).backward(grad)
    wait()
    return time.perf_counter() - start


def processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 16, 128, 32, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    x = torch.randn(args.shape, device=args.device).mul(2).requires_grad_()
    grad = torch.randn_like(x)
    scans = candidates()
    results: dict[str, tuple[Tensor, Tensor]] = {}
    first: dict[str, float] = {}
    for name, scan in scans.items():
        first[name] = seconds(scan, x, grad)  # compiles
        results[name] = (scan(x).detach(), x.grad.clone())
    spikes, slope = results["estl plain"]
    for name, (s, g) in results.items():
        assert torch.equal(s, spikes), f"{name} spikes otherwise"
        torch.testing.assert_close(g, slope)
    del results, spikes, slope
    times: dict[str, list[float]] = {name: [] for name in scans}
    for _ in range(args.repeats):
        for name, scan in scans.items():
            times[name].append(seconds(scan, x, grad))

    malloc = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("MALLOC_")]
    print(f"{processor()}, {args.threads} threads, torch {torch.__version__}, {' '.join(malloc)}")
    print(f"(T, ...) = {tuple(args.shape)} {x.dtype}, TET's neuron, {args.repeats} repeats\n")
    print(f"{'':20}{'median':>11}{'best':>11}{'ratio':>8}{'first call':>13}{'kept':>12}")
    base = statistics.median(times["estl fused"])
    for name, scan in scans.items():
        median, best = statistics.median(times[name]), min(times[name])
        print(
            f"{name:20}{1e3 * median:8.2f} ms{1e3 * best:8.2f} ms{median / base:8.1f}"
            f"{first[name]:11.2f} s{kept(scan, x) / 1e6:9.1f} MB"
        )


if __name__ == "__main__":
    main()
