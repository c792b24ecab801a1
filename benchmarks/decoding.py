"""Recordings from disk to frames: ESTL beside tonic, which runs in a process of its own.

    python benchmarks/decoding.py N-CALTECH101 --tonic /path/to/venv/bin/python [--size 128 128]

The first argument is a recording, or a folder whose .bin files are all read. tonic is GPL-3.0-only
and no part of this project: install it into an environment of its own, whose interpreter `--tonic`
names; without it only ESTL is timed. tonic's `ToFrame` makes frames of the recording's own size, so
ESTL is timed at that size ("same work") and at `--size`, into which it bins events directly.

Both sides run on one thread and take turns at each recording, `--rounds` times; a figure is the
median of all repeats, reading the file included (it is in the page cache). In brackets: how many of
the recording's events are in no frame.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch

from estl.data.formats.atis import read_events
from estl.data.frames import to_frames

TONIC = """
import json, sys, time
import numpy as np
from tonic.io import read_mnist_file
from tonic.transforms import ToFrame

dtype = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
for line in sys.stdin:
    path, (H, W), steps, repeats = json.loads(line)
    frame = ToFrame(sensor_size=(W, H, 2), n_event_bins=steps)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        frames = frame(read_mnist_file(path, dtype=dtype))
        times.append(time.perf_counter() - start)
    print(json.dumps([times[1:], int(frames.sum())]), flush=True)
"""


def timed(decode: Callable[[], torch.Tensor], repeats: int) -> tuple[list[float], int]:
    """Seconds of each of `repeats` calls after a first one, and the events in the last result."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        frames = decode()
        times.append(time.perf_counter() - start)
    return times[1:], int(frames.sum(dtype=torch.float64))


def estl_sides(
    path: Path, sensor: tuple[int, int], size: tuple[int, int], steps: int
) -> dict[str, Callable[[], torch.Tensor]]:
    def decode(size: tuple[int, int]) -> torch.Tensor:
        return to_frames(read_events(path, sensor), steps, size, sensor=sensor)

    return {"ESTL, same work": lambda: decode(sensor), "ESTL, to size": lambda: decode(size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a recording, or a folder of them")
    parser.add_argument("--tonic", help="interpreter of an environment that has tonic")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)

    paths = sorted(options.path.rglob("*.bin")) if options.path.is_dir() else [options.path]
    if not paths:
        parser.error(f"{options.path}: no .bin files there")
    peer = options.tonic and subprocess.Popen(
        [options.tonic, "-c", TONIC], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    H, W = options.size
    print(f"milliseconds (events lost), T={options.steps}, one thread, 'to size' is {H}x{W}")
    ratios = []
    for path in paths:
        events = read_events(path)
        sensor = (int(events["y"].max()) + 1, int(events["x"].max()) + 1)
        seconds: dict[str, list[float]] = defaultdict(list)
        counted = {}
        for _ in range(options.rounds):
            for side, decode in estl_sides(path, sensor, (H, W), options.steps).items():
                times, counted[side] = timed(decode, options.repeats)
                seconds[side] += times
            if peer:
                task = [str(path), sensor, options.steps, options.repeats]
                print(json.dumps(task), file=peer.stdin, flush=True)
                times, counted["tonic"] = json.loads(peer.stdout.readline())
                seconds["tonic"] += times

        print(f"{path.parent.name}/{path.name}: {len(events)} events, {sensor[0]}x{sensor[1]}")
        median = {side: 1e3 * statistics.median(times) for side, times in seconds.items()}
        for side, ms in median.items():
            ratio = f"{median['tonic'] / ms:6.1f}x" if peer else ""
            print(f"    {side:16} {ms:8.3f} ({len(events) - counted[side]}) {ratio}")
            if side != "tonic" and counted[side] != len(events):
                raise SystemExit(f"{path}: {side} lost events")
        if peer:
            ratios.append(median["tonic"] / median["ESTL, same work"])
    if peer:
        print(f"same work, tonic / ESTL: {min(ratios):.1f} to {max(ratios):.1f}")
        peer.stdin.close()
        peer.wait()


if __name__ == "__main__":
    main()
