"""The saccade simulator: images a second, and processor time for each.

    python benchmarks/simulator.py [--size 224] [--T 10] [--images 32] [--threads 2] [--repeats 7]

Three ways of using the cores take turns in one process: one thread; torch's own threads inside
every operation; and threads over the images, torch single-threaded in each, which is how
`num_workers` processes use them. A figure is the median, with the best beside it. Images a second
mean what they say on an idle machine only; processor time an image counts this process alone, so it
holds where others compute beside it (waiting in torch's own threads is in it).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.nn import functional as F

from estl.data.simulator import saccade_path, simulate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--T", type=int, default=10)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    torch.manual_seed(0)
    amplitude = 5 * options.size / 240
    coarse = torch.rand(options.images, 3, options.size // 8, options.size // 8)
    images = F.interpolate(coarse, size=(options.size, options.size), mode="bilinear")
    pool = ThreadPoolExecutor(options.threads)

    def run(batch: torch.Tensor) -> torch.Tensor:
        return simulate(batch, options.T, amplitude=amplitude)

    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "one thread": (1, lambda: run(images)),
        f"torch's {options.threads} threads": (options.threads, lambda: run(images)),
        f"{options.threads} threads over images": (1, lambda: list(pool.map(run, images.split(1)))),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        for name, (threads, way) in ways.items():
            torch.set_num_threads(threads)
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if repeat > 0:  # the first is a warm-up
                found[name].append((options.images / wall, 1000 * cpu / options.images))

    looks = sum(len(p) for p in saccade_path(options.T, amplitude)[1])
    events = run(images).sum().item() / options.images
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, images {options.size}x{options.size}, T={options.T}")
    print(f"{looks} looks, {events:,.0f} events an image")
    print(f"{'':24}{'images/s':>10}{'best':>8}{'CPU ms/image':>15}{'best':>8}")
    for name, figures in found.items():
        speed, cost = zip(*figures, strict=True)
        print(
            f"{name:24}{statistics.median(speed):10.0f}{max(speed):8.0f}"
            f"{statistics.median(cost):15.2f}{min(cost):8.2f}"
        )


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
