"""EdgeGuidedFusion against the module as it is written: time and memory, forward and backward.

    python benchmarks/fusion.py [--size 224] [--threads 2] [--repeats 5]

Times are medians, the two modules taking turns in one process. Memory is the growth of the highest
resident size over one forward and backward pass, each module in a process of its own. At full
resolution ours takes at most half of the time and a third of the memory; where it does not, this
ends with an error.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

from estl.guidance.fusion import EdgeGuidedFusion


class LiteralFusion(nn.Module):
    """The fusion as it is written, `query` beside it: forms every edge token and every score."""

    def __init__(
        self, clip_dim: int = 768, edge_dim: int = 128, heads: int = 8, query: str = "clip"
    ) -> None:
        super().__init__()
        self.edge_proj = nn.Linear(edge_dim, clip_dim)
        self.cross_attn = nn.MultiheadAttention(clip_dim, heads, batch_first=True)
        self.gate = nn.Sequential(nn.Linear(clip_dim * 2, clip_dim), nn.Sigmoid())
        self.query = query

    def forward(self, clip_patches: Tensor, edge_features: Tensor, edge_map: Tensor) -> Tensor:
        edge_tokens = self.edge_proj(edge_features.flatten(2).transpose(1, 2))
        edge_tokens = edge_tokens * edge_map.flatten(2).transpose(1, 2)
        x, y = clip_patches, edge_tokens
        if self.query == "edge":
            x, y = y, x
        attn_out, _ = self.cross_attn(query=x, key=y, value=y)
        gate = self.gate(torch.cat([x, attn_out], dim=-1))
        return (x + gate * attn_out).mean(dim=1)


BOUNDS = {"seconds": 1 / 2, "MiB": 1 / 3}
"""Of the literal module's, at 224 x 224 and above."""

MODULES = {"literal": LiteralFusion, "folded": EdgeGuidedFusion}


def inputs(size: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.rand(1, 128, size, size, requires_grad=True)
    edges = torch.rand(1, 1, size, size, requires_grad=True)
    return torch.randn(1, 196, 768), features, edges


def step(fusion: nn.Module, patches: Tensor, features: Tensor, edges: Tensor) -> None:
    for x in (features, edges, *fusion.parameters()):
        x.grad = None
    fusion(patches, features, edges).square().sum().backward()


def seconds(size: int, repeats: int) -> dict[str, float]:
    data = inputs(size)
    modules = {name: module() for name, module in MODULES.items()}
    times: dict[str, list[float]] = {name: [] for name in modules}
    for repeat in range(repeats + 1):
        for name, module in modules.items():
            start = time.perf_counter()
            step(module, *data)
            if repeat:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def highest_mib() -> float:
    scale = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def mebibytes(name: str, size: int) -> float:
    module, data = MODULES[name](), inputs(size)
    step(module, *inputs(8))  # libraries and their workspaces
    before = highest_mib()
    step(module, *data)
    return highest_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=224, help="height and width of the edge map")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=MODULES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    if options.memory_of:
        print(mebibytes(options.memory_of, options.size))
        return
    memory = {}
    for name in MODULES:
        command = [sys.executable, __file__, "--memory-of", name, "--size", str(options.size)]
        command += ["--threads", str(options.threads)]
        memory[name] = float(subprocess.run(command, check=True, stdout=-1, text=True).stdout)
    times = seconds(options.size, options.repeats)
    print(f"{options.size}x{options.size}, batch 1, float32, {options.threads} threads")
    broken = []
    for unit, figure in {"seconds": times, "MiB": memory}.items():
        literal, folded = figure["literal"], figure["folded"]
        print(f"{unit:8}literal {literal:9.2f}   folded {folded:9.2f}   {folded / literal:.2f}")
        if options.size >= 224 and folded > BOUNDS[unit] * literal:
            broken.append(f"more than {BOUNDS[unit]:.2f} of the literal module's {unit}")
    if broken:
        raise SystemExit("; ".join(broken))


if __name__ == "__main__":
    main()
