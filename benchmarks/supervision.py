"""What TSE costs beside plain supervision: time of a training step, and peak memory.

    python benchmarks/supervision.py [--rounds 7]

ResNet-19 (32x32, T=4, B=16) and pooled VGGSNN (48x48, T=10, B=8), random events, forward and
backward. In one process plain and TSE take turns, step by step; the figure is the median of the
ratios of neighboring steps, in time and in processor time. Memory is the peak of a process of its
own for each, the median of three.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from estl.students import VGGSNN, resnet19
from estl.supervision import TSE, MeanCE
from estl.types import Batch, Supervision

CASES = {
    "ResNet-19, 32x32, T=4, B=16": (lambda: resnet19(in_channels=2), 4, 16, 32),
    "VGGSNN pooled, 48x48, T=10, B=8": (lambda: VGGSNN(pooled=True), 10, 8, 48),
}
SUPERVISIONS = {"plain": MeanCE, "tse": TSE}


def step(student: nn.Module, supervision: Supervision, batch: Batch) -> tuple[float, float]:
    """Seconds, and seconds of the processor, of one forward and backward pass."""
    wall, cpu = time.perf_counter(), time.process_time()
    student.zero_grad()
    supervision(student(batch.events), batch).total.backward()
    return time.perf_counter() - wall, time.process_time() - cpu


def make(case: str) -> tuple[nn.Module, Batch]:
    build, T, B, size = CASES[case]
    torch.manual_seed(0)
    events = (torch.rand(B, T, 2, size, size) < 0.2).float()
    return build(), Batch(events, torch.randint(10, (B,)))


def peak(case: str, name: str) -> None:
    """Print the peak memory of a few steps in MiB."""
    student, batch = make(case)
    for _ in range(2):
        step(student, SUPERVISIONS[name](), batch)
    # Not getrusage: its peak is at least that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def measured(case: str, name: str) -> float:
    """Peak memory in MiB of a process of its own."""
    command = [sys.executable, __file__, "--peak", case, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="TSE beside plain supervision.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(*options.peak)
        return
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds")
    for case in CASES:
        student, batch = make(case)
        parts = {name: kind() for name, kind in SUPERVISIONS.items()}
        for part in parts.values():
            step(student, part, batch)
        wall, cpu, plain = [], [], []
        for number in range(options.rounds):  # the order alternates
            names = list(parts) if number % 2 else list(parts)[::-1]
            seconds = {name: step(student, parts[name], batch) for name in names}
            wall.append(seconds["tse"][0] / seconds["plain"][0])
            cpu.append(seconds["tse"][1] / seconds["plain"][1])
            plain.append(seconds["plain"][0])
        memory = {name: median(measured(case, name) for _ in range(3)) for name in parts}
        more = memory["tse"] / memory["plain"]
        print(
            f"{case}: plain {1000 * median(plain):.0f} ms; TSE takes {median(wall):.3f} of its "
            f"time ({median(cpu):.3f} of its processor time) and {more:.3f} of its memory "
            f"({memory['tse']:.0f} and {memory['plain']:.0f} MiB)"
        )


if __name__ == "__main__":
    main()
