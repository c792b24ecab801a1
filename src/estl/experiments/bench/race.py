"""Candidates that take turns in one process, so that other load on a machine affects all alike."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Work = Callable[[], object]
"""One repetition of what is timed."""

Make = Callable[[], Work]
"""Builds a candidate; ImportError where what it needs is not installed."""


@dataclass(frozen=True)
class Bound:
    """What must hold of two candidates' times, or of their memory.

    Args:
        of: the candidate that is limited.
        over: the one that it is compared with.
        at_most: their ratio.
        memory: of memory, not of time.
        since: with memory, two candidates from which on growth counts, the first to `of`.

    >>> Bound("estl", "floor", 1.1).holds(1.05)
    True
    """

    of: str
    over: str
    at_most: float
    memory: bool = False
    since: tuple[str, str] | None = None

    def holds(self, ratio: float) -> bool:
        """Whether a ratio is within the bound."""
        return ratio <= self.at_most

    def __str__(self) -> str:
        if self.since is not None:
            return f"growth of memory from {self.since[0]} to {self.of}"
        return f"memory of {self.of}" if self.memory else self.of


@dataclass(frozen=True)
class Comparison:
    """Candidates that compute the same, or of which one computes more, to see what that costs.

    Args:
        name: its name on the command line.
        what: what is computed, with shapes.
        candidates: by name; the first is what the table's ratios are against.
        bounds: on ratios.
        memory: whether each candidate's peak memory is measured, in a process of its own.
    """

    name: str
    what: str
    candidates: dict[str, Make]
    bounds: tuple[Bound, ...] = ()
    memory: bool = False


@dataclass(frozen=True)
class Timed:
    """Seconds of each round by candidate, wall clock and process; why candidates are absent."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    absent: dict[str, str]

    def ratio(self, of: str, over: str) -> float | None:
        """Median over the rounds of the ratio of two candidates' seconds.

        >>> Timed({"a": [1.0, 2.0, 9.0], "b": [1.0, 1.0, 3.0]}, {}, {}).ratio("a", "b")
        2.0
        """
        if of not in self.wall or over not in self.wall:
            return None
        pairs = zip(self.wall[of], self.wall[over], strict=True)
        return median(a / b for a, b in pairs)


def race(candidates: dict[str, Make], rounds: int) -> Timed:
    """Time candidates in turns, in an order that alternates, after a first call of each.

    Args:
        candidates: by name.
        rounds: turns of each.

    Raises:
        ValueError: no rounds.

    >>> timed = race({"nothing": lambda: lambda: None}, rounds=3)
    >>> len(timed.wall["nothing"]), timed.absent
    (3, {})
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: give at least 1")
    works: dict[str, Work] = {}
    absent: dict[str, str] = {}
    for name, make in candidates.items():
        try:
            works[name] = make()
        except ImportError as error:
            absent[name] = f"{error.name or error} is not installed"
            continue
        works[name]()  # compiles, and fills the allocator's pools
    timed = Timed({name: [] for name in works}, {name: [] for name in works}, absent)
    for number in range(rounds):
        for name in list(works)[:: 1 if number % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            works[name]()
            timed.cpu[name].append(time.process_time() - cpu)
            timed.wall[name].append(time.perf_counter() - wall)
    return timed


PEAK = """
import sys, torch
from pathlib import Path
from estl.experiments.bench.comparisons import COMPARISONS

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(int(sys.argv[3]))
work = COMPARISONS[sys.argv[1]].candidates[sys.argv[2]]()
before = peak()
work(), work()
print(peak() - before)
"""


def mebibytes(comparison: str, candidate: str, threads: int) -> float | None:
    """How much the peak resident size of a process of its own grows in two repetitions, in MiB, or
    None if the system does not report it. Processes differ by a percent or two.
    """
    if not os.path.exists("/proc/self/status"):
        return None
    command = [sys.executable, "-c", PEAK, comparison, candidate, str(threads)]
    # glibc then maps larger blocks one by one and gives them back; by itself it raises the size up
    # to 32 MiB as blocks are freed, and its pools would hide what is needed.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)
