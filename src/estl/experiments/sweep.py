"""Several variants of one recipe, each with several seeds, under the same data and budget.

Every (variant, seed) is an `estl fit` of its own in a process of its own: its memory can be
measured, a failure stays with it, and an interrupted sweep goes on where it stopped.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import yaml

from estl.training.recipe import merge, parse, parse_recipe, plain
from estl.training.rehearsal import duration, rehearse
from estl.training.results import Results
from estl.training.resume import taken


@dataclass(frozen=True)
class Variant:
    """One row of a table: a name, what it is, and what of the recipe it changes.

    Args:
        name: of the row and of its folder.
        what: it is, in a few words.
        overlay: values that are merged into the recipe (`training.recipe.merge`).
    """

    name: str
    what: str
    overlay: dict[str, Any]


def keep_recipe(args: Sequence[str], folder: Path, without: Sequence[str] = ()) -> dict[str, Any]:
    """Write what a command line gives, without defaults, as `folder/recipe.yaml`; return it.

    Parts named in `without` are left out. A recipe that no run has come to a checkpoint with is
    overwritten: it may have been wrong.

    Raises:
        ValueError: as `training.recipe.parse`; or the folder holds runs of another recipe.
    """
    _, given = parse(args)
    recipe = plain(given)
    for part in without:
        recipe.pop(part, None)
    path = folder / "recipe.yaml"
    started = any(folder.glob("*/**/*.ckpt"))
    if started and path.exists() and yaml.safe_load(path.read_text()) != recipe:
        raise ValueError(f"{path} holds another recipe: choose another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return recipe


def sweep(
    recipe: dict[str, Any],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Path,
    *,
    jobs: int = 1,
) -> dict[str, list[Results]]:
    """Run what has not finished yet; return the results of every run, by variant.

    Before the first run, every variant that is not finished is rehearsed: one that cannot be built
    or trained is known before the others have taken hours.

    Args:
        recipe: plain values that all share.
        variants: what differs.
        seeds: of weights and batch order; the split stays the same.
        folder: one folder per variant is made below it, with its overlay, its whole recipe, and a
            run folder per seed.
        jobs: how many runs at a time; each gets its share of the cores, or as many threads
            as the environment variable OMP_NUM_THREADS says, and its GPU where there are several.

    Raises:
        ValueError: no seeds, a run failed (the text names its log), or runs saw different data.
    """
    if not seeds:
        raise ValueError("no seeds: give at least one, as --seeds 0,1,2")
    for variant in variants:
        _write(recipe, variant, folder / variant.name)
    rehearse_all(recipe, variants, seeds, folder, jobs)
    pairs = [(variant.name, seed) for seed in seeds for variant in variants]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads} | os.environ | {"ESTL_PARENT": str(os.getpid())}
    places = SimpleQueue[dict[str, str]]()
    for place in gpus(jobs):
        places.put(place)
    running: list[subprocess.Popen[bytes]] = []
    found: dict[str, list[Results]] = {variant.name: [] for variant in variants}
    with ThreadPoolExecutor(jobs) as pool:
        run = partial(_run, places, environment=environment, running=running, watched=jobs == 1)
        done = pool.map(lambda pair: run(folder / pair[0], pair[1]), pairs)
        try:
            for (name, seed), results in zip(pairs, done, strict=True):
                found[name].append(results)
                accuracy = 100 * (results.test or results.val)["final"].final
                print(f"{name}, seed {seed}: {accuracy:.2f} %", flush=True)
        except KeyboardInterrupt:  # or SIGTERM: the runs end with the sweep
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    prints = {results.of.data.fingerprint for runs in found.values() for results in runs}
    if len(prints) > 1:
        raise ValueError(
            f"the runs in {folder} saw different data ({sorted(prints)}): start afresh"
        )
    return found


def rehearse_all(
    recipe: dict[str, Any],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Path,
    jobs: int,
) -> None:
    """Two training steps of every variant with runs to do; print how long these will take.

    Raises:
        ValueError: a variant that does not train; the text names it.
    """
    total = 0.0
    for variant in variants:
        to_do = sum(not _results(folder / variant.name, seed).exists() for seed in seeds)
        if not to_do:
            continue
        try:
            seconds = rehearse(*parse_recipe(merge(recipe, variant.overlay))).seconds
        except (ValueError, RuntimeError, OSError) as error:
            raise ValueError(f"{variant.name} ({variant.what}) does not train: {error}") from None
        print(
            f"{variant.name}: {variant.what}; runs to do: {to_do}, each about {duration(seconds)}",
            flush=True,
        )
        total += to_do * seconds
    if total:
        print(f"training takes about {duration(total / jobs)} in all", flush=True)


def gpus(jobs: int) -> list[dict[str, str]]:
    """Environments of so many runs at a time: each has one GPU, if there are several.

    A run alone has them all.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    if jobs == 1 or len(names) < 2:
        return [{}] * jobs
    return [{"CUDA_VISIBLE_DEVICES": names[i % len(names)]} for i in range(jobs)]


def _results(folder: Path, seed: int) -> Path:
    return folder / f"seed{seed}" / "results.json"


def _write(recipe: dict[str, Any], variant: Variant, folder: Path) -> None:
    """The overlay of a variant, and the recipe that it makes, for a person and for `estl fit`."""
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# {variant.name}: {variant.what}\n"
    for name, values in (("overlay", variant.overlay), ("recipe", merge(recipe, variant.overlay))):
        (folder / f"{name}.yaml").write_text(head + yaml.safe_dump(values, sort_keys=False))


def _run(
    places: "SimpleQueue[dict[str, str]]",
    folder: Path,
    seed: int,
    environment: dict[str, str],
    running: list[subprocess.Popen[bytes]],
    watched: bool,
) -> Results:
    """Results of one run of the variant in `folder`, trained or continued if need be."""
    run = folder / f"seed{seed}"
    if not _results(folder, seed).exists():
        run.mkdir(parents=True, exist_ok=True)
        if taken(run):
            args = ["--resume", str(run)]
        else:
            args = [f"--config={folder / 'recipe.yaml'}", f"--seed={seed}", f"--output-dir={run}"]
        command = [sys.executable, "-m", "estl.commands", "fit", *args]
        if watched:  # one at a time: its lines are on the screen
            print(f"{folder.name}, seed {seed}:", flush=True)
        place = places.get()
        with (run / "log.txt").open("w") as log:
            shown, own = None if watched else log, environment | place
            with subprocess.Popen(command, stdout=shown, stderr=log, env=own) as process:
                running.append(process)
                status = process.wait()
                running.remove(process)
        places.put(place)
        if status:
            last = (run / "log.txt").read_text().strip().splitlines()[-1:]
            raise ValueError(f"{folder.name}, seed {seed} failed ({run / 'log.txt'}): {last}")
    return Results.read(_results(folder, seed))
