"""What a user waits for before anything is computed, each with its bound.

    python benchmarks/startup.py [--repeats 5]

A figure is the median over processes, started one after the other. `estl predict` shares one core
with a process that never rests. The teacher is asked for from a hub that is out of reach. Ends with
an error where a bound is broken; the machine must be idle.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from estl.students import VGGSNN

ESTL = str(Path(sys.executable).with_name("estl"))


def seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def checkpoint_and_recording(folder: Path) -> tuple[str, str]:
    """A pooled VGGSNN of N-MNIST, untrained, and 4,000 random events over 0.3 s."""
    student: dict[str, Any] = {"image_size": (34, 34), "layers": (16, "AP", 32), "pooled": True}
    recipe = {
        "student": {"class_path": "estl.students.VGGSNN", "init_args": student},
        "data": {"class_path": "estl.data.NMNISTPairs", "init_args": {"T": 5, "by": "time"}},
    }
    names = [str(digit) for digit in range(10)]
    state = VGGSNN(**student).state_dict()
    torch.save({"state_dict": state, "recipe": recipe, "classes": names}, folder / "last.ckpt")
    random = np.random.default_rng(0)
    t, p = np.sort(random.integers(0, 300_000, 4000)), random.integers(0, 2, 4000)
    low = [t >> 16 | p << 7, t >> 8 & 255, t & 255]  # ATIS: x, y, then polarity and 23 bits of time
    rows = np.stack([*random.integers(0, 34, (2, 4000)), *low], 1)
    (folder / "00001.bin").write_bytes(rows.astype(np.uint8).tobytes())
    return str(folder / "last.ckpt"), str(folder / "00001.bin")


def on_one_busy_core(work: Callable[[], object], repeats: int) -> float:
    """Seconds of `work`, whose processes share a core with one that never rests."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return seconds(work, repeats)
    finally:
        busy.kill()
        busy.wait()
        os.sched_setaffinity(0, cores)


def ask_a_hub_out_of_reach() -> None:
    from huggingface_hub import constants

    from estl.guidance import ClipTeacher

    constants.ENDPOINT = "http://127.0.0.1:9"
    try:
        ClipTeacher("estl-test/absent")
    except OSError:
        return
    raise AssertionError("estl-test/absent was found")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    n = parser.parse_args().repeats

    python = seconds(lambda: run(sys.executable, "-c", "pass"), n)
    figures = {  # what: (seconds, at most)
        "import estl, beyond Python's start": (
            seconds(lambda: run(sys.executable, "-c", "import estl"), n) - python,
            0.1,
        ),
        "estl --help": (seconds(lambda: run(ESTL, "--help"), n), 1.0),
        "estl fit --help": (seconds(lambda: run(ESTL, "fit", "--help"), n), 1.0),
    }
    with tempfile.TemporaryDirectory() as folder:
        ckpt, file = checkpoint_and_recording(Path(folder))
        predict = lambda: run(ESTL, "predict", "--ckpt", ckpt, file)  # noqa: E731
        figures["estl predict FILE, on a busy core"] = (on_one_busy_core(predict, n), 6.0)
    import transformers  # noqa: F401  (its import is not what is timed)

    figures["no teacher, the hub out of reach"] = (seconds(ask_a_hub_out_of_reach, 1), 5.0)

    print(f"median of {n} processes, load {os.getloadavg()[0]:.1f}")
    for name, (found, bound) in figures.items():
        print(f"{name:36}{found:7.2f} s, at most {bound} s")
    if broken := [name for name, (found, bound) in figures.items() if found > bound]:
        raise SystemExit(f"too slow: {', '.join(broken)}")


if __name__ == "__main__":
    main()
