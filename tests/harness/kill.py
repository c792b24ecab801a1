"""Runs that are killed at random moments, resumed, and compared with unbroken ones, bit for bit.

    python -m tests.harness.kill --kills 1000

Every kill is a SIGKILL of a process that trains, at a random time or as soon as it writes a
checkpoint. The run folder and the folder for temporary files are on different file systems, in
turns on the disk and in memory. After each kill all checkpoints must be whole; at its end a run
must equal the unbroken one in weights, optimizer, schedule, supervision and history, and have left
neither half a file nor anything large in the temporary folder nor a process.

Processes are forked from one that has imported everything: starting Python anew takes longer than
such a run.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from estl.data.sets.digits import Digits
from estl.data.shards import write_shards
from estl.training.checkpoint import read_checkpoint
from estl.training.recipe import parse_recipe
from estl.training.run import fit
from tests.small_runs import recipe, same
from tests.tiny_sets import write_images

GEOMETRIC = {"flip": 0.5, "shift": 0.1, "rotation": 10.0, "scale": 0.1, "crop": 0.8}
EVENTS = {"drop_time": 0.3, "drop_area": 0.3, "drop_events": 0.3, "polarity": 0.2, "noise": 0.01}
COLORS = {"color": 0.2, "gray": 0.2}
PICTURES = COLORS | {"padded_crop": 2, "cutout": 4, "policy": "autoaugment"}
RUNS: dict[str, dict[str, Any]] = {
    "events": {"augment": GEOMETRIC | EVENTS | {"roll": 2}},
    "mixup": {"augment": {"mixup": 0.4, "cutmix": 1.0}, "num_workers": 2},
    "guided": {"augment": GEOMETRIC | COLORS | {"mixup": 0.4}, "bridge": {"per_step": 4}},
    "pictures": {"augment": PICTURES, "num_workers": 2, "coding": "direct"},
    "shards": {"augment": {"shift": 0.1}, "num_workers": 2, "root": "shards"},
}
"""By name, what each run has of data loading and augmentation."""

LARGE = 1 << 14
"""Bytes that no file left behind may have: any checkpoint here has more."""


def values_of(name: str, base: Path) -> dict[str, Any]:
    """The recipe of a run; `base` has what `prepare` makes."""
    loading = dict(RUNS[name])
    if "root" in loading:
        loading["root"] = str(base / "shards")
    values = recipe(**loading)
    if name == "pictures":
        init_args = {"root": str(base / "pictures"), "T": 3, "size": 16, "batch_size": 16}
        values["data"] = {"class_path": "estl.data.ImageFolder", "init_args": init_args | loading}
    values["student"]["init_args"]["layers"] = [8, "AP", 16]
    if name == "guided":
        weights = {"global_distill": 1.0, "patch_distill": 1.0, "contrastive": 0.0}
        init_args = {"teacher": str(base / "teacher"), "target": "pooled", "warm_up": 4}
        values["supervision"] = {
            "class_path": "estl.supervision.EdgeGuidedDistillation",
            "init_args": init_args | {"weights": weights},
        }
    return values


def forked(work: Callable[[], Any], log: Path, temporary: Path) -> int:
    """A process that does `work`; returns its number, which is that of its group too."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    status = 1
    try:
        shown = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(shown, 1)
        os.dup2(shown, 2)
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def prepare(base: Path) -> None:
    """The teacher, the pictures and the shards."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes = {"num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    CLIPVisionModel(CLIPVisionConfig(**small, **sizes)).save_pretrained(base / "teacher")
    for seed, label in ((0, "chair"), (100, "cup")):
        write_images(base / "pictures", label, each=40, seed=seed)
    write_shards(Digits(T=3, size=16, per_class=4), base / "shards", shard_size=8)


def train(values: dict[str, Any], folder: Path) -> None:
    """Start a run, or continue it."""
    torch.set_num_threads(1)
    going_on = folder if (folder / "config.yaml").exists() else None
    fit(*parse_recipe(values | {"output_dir": str(folder)}), going_on, test=False)


MEASURED = ("seconds", "step_seconds", "memory_mib")
"""Columns of the history that differ from run to run."""


def state(folder: Path) -> dict[str, Any]:
    """What has to be the same at the end."""
    saved = read_checkpoint(folder / "last.ckpt")
    with (folder / "history.csv").open(newline="") as file:
        rows = [row | dict.fromkeys(MEASURED, "") for row in csv.DictReader(file)]
    parts = ("epoch", "state_dict", "supervision", "optimizer_states", "lr_schedulers")
    return {part: saved[part] for part in parts} | {"history": rows}


def writes(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    try:
        return any(entry.name.endswith(".ckpt.new") for entry in os.scandir(folder))
    except FileNotFoundError:
        return False


def wait_and_kill(pid: int, folder: Path, moment: float, times: int) -> bool | None:
    """Kill a process after `moment` seconds, or when a checkpoint is written for the n-th time.

    Returns:
        Whether it was writing one; None if it has finished before.
    """
    start, seen, before = time.monotonic(), 0, False
    while time.monotonic() - start < moment:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        now = times > 0 and writes(folder)
        seen, before = seen + (now and not before), now
        if times and seen == times:
            break
        time.sleep(0.0002 if times else 0.002)
    writing = writes(folder)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return writing


def left(folder: Path, temporary: Path) -> list[str]:
    """What a finished run has left behind: half files, and large ones."""
    found = [path for path in temporary.rglob("*") if path.is_file()]
    large = [str(path) for path in found if path.stat().st_size >= LARGE]
    return [*map(str, folder.rglob("*.new")), *large]


def running(groups: list[int]) -> list[str]:
    """The groups of processes that do not end: one that loads looks for its parent every 5 s."""
    deadline = time.monotonic() + 60
    while alive := [group for group in groups if lives(group)]:
        if time.monotonic() > deadline:
            return [f"process group {group} was left" for group in alive]
        time.sleep(0.2)
    return []


def lives(group: int) -> bool:
    """Whether a process group has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def finish(pid: int, log: Path) -> None:
    """Wait for a run that is not killed."""
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit(f"a run failed:\n{log.read_text()[-3000:]}")


def main(args: list[str] | None = None) -> int:
    """Kill runs until there were so many kills; 1 if anything was lost, changed or left."""
    parser = argparse.ArgumentParser(prog="python -m tests.harness.kill")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    given = parser.parse_args(args)
    rng = random.Random(given.seed)
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    places = [Path(tempfile.mkdtemp(prefix="estl-kill-", dir=root)) for root in (None, memory)]
    try:
        trouble = kill_all(given.kills, given.runs, rng, places)
    finally:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
    print(
        "\n".join(trouble) or "all runs equal the unbroken ones; nothing unreadable, nothing left"
    )
    return bool(trouble)


def kill_all(kills: int, names: list[str], rng: random.Random, places: list[Path]) -> list[str]:
    """What went wrong."""
    base, log, trouble = places[0] / "base", places[0] / "log.txt", list[str]()
    base.mkdir()
    finish(forked(lambda: prepare(base), log, base), log)
    wholes: dict[str, tuple[float, dict[str, Any]]] = {}
    groups, done, written, number = list[int](), 0, 0, 0
    while done < kills:
        name = names[number % len(names)]
        here, other = places if number % 2 else places[::-1]  # for the run, for temporary files
        number += 1
        values = values_of(name, base)
        if name not in wholes:
            whole, start = places[0] / f"whole-{name}", time.monotonic()
            finish(forked(lambda values=values, whole=whole: train(values, whole), log, base), log)
            wholes[name] = time.monotonic() - start, state(whole)
        folder, temporary = here / f"run{number}", other / f"tmp{number}"
        temporary.mkdir()
        duration, mine = wholes[name][0], 0
        most = rng.randint(1, 6)
        while True:
            pid = forked(lambda values=values, folder=folder: train(values, folder), log, temporary)
            groups.append(pid)
            if mine == most or done + mine == kills:
                finish(pid, log)
                break
            moment = rng.uniform(0, duration)
            in_writing = rng.random() < 0.5
            how = (duration, rng.randint(1, 4)) if in_writing else (moment, 0)
            writing = wait_and_kill(pid, folder, *how)
            if writing is None:
                break
            mine, written = mine + 1, written + writing
            for path in folder.glob("*.ckpt"):
                try:
                    read_checkpoint(path)
                except ValueError as error:
                    trouble.append(f"{name}, after kill {done + mine}: {error}")
        done += mine
        if not (folder / "last.ckpt").exists():
            trouble.append(f"{name}: a run that was continued failed:\n{log.read_text()[-2000:]}")
            break
        trouble += [f"{name} left {what}" for what in left(folder, temporary)]
        one, two = wholes[name][1], state(folder)
        different = [part for part in one if not same(one[part], two[part])]
        if different:
            trouble.append(f"{name}: other {', '.join(different)} after {mine} kills")
        print(f"{name}: {mine} kills, {'different' if different else 'equal'}", flush=True)
        shutil.rmtree(folder)
    print(f"{done} kills, {written} of them while a checkpoint was written; {number} runs")
    return trouble + running(groups)


if __name__ == "__main__":
    sys.exit(main())
