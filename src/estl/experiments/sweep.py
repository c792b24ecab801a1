"""Several variants of one recipe, each with several seeds, under the same data and budget.

Every (variant, seed) is an `estl fit` of its own in a process of its own: its memory can be
measured, a failure stays with it, and an interrupted sweep goes on where it stopped.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from estl.experiments.jobs import Job
from estl.experiments.launch import launch
from estl.training.files import aside
from estl.training.recipe import merge, parse, parse_recipe, plain
from estl.training.rehearsal import duration, rehearse
from estl.training.results import Results
from estl.training.resume import taken

ANYWHERE = {"trainer": {"accelerator": "auto"}}
"""With this a recipe for a machine with GPUs can be tried on one without."""


@dataclass(frozen=True)
class Variant:
    """One row of a table: a name, what it is, and what of the recipe it changes.

    Args:
        name: of the row and of its folder.
        what: what it is, in a few words.
        overlay: values that are merged into the recipe (`training.recipe.merge`).
    """

    name: str
    what: str
    overlay: dict[str, Any]


def rates_of_the_student(recipe: dict[str, Any]) -> dict[str, Any]:
    """An overlay that keeps a recipe's rates only for the student's parts: the others belong to a
    supervision that is replaced.

    >>> rates_of_the_student({"learner": {"part_lr": {"student.head": 0.1, "fusion": 0.2}}})
    {'learner': {'part_lr': {'student.head': 0.1}}}
    """
    rates = recipe.get("learner", {}).get("part_lr") or {}
    own = {part: lr for part, lr in rates.items() if part.partition(".")[0] == "student"}
    return {"learner": {"part_lr": own or None}}


def keep_recipe(args: Sequence[str], folder: Path, without: Sequence[str] = ()) -> dict[str, Any]:
    """Write what a command line gives, without defaults, as `folder/recipe.yaml`; return it.

    Parts named in `without` are left out. A recipe with which no run has reached a checkpoint is
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
    same = path.exists() and yaml.safe_load(path.read_text()) == recipe
    if started and path.exists() and not same:
        raise ValueError(f"{path} holds another recipe: choose another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    if not same:  # others may be reading it
        _put(path, yaml.safe_dump(recipe, sort_keys=False))
    return recipe


def sweep(
    recipe: dict[str, Any],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Path,
    *,
    jobs: int = 0,
    launcher: str = "local",
    per_run: str = "",
) -> dict[str, list[Results]]:
    """Run what has not finished yet; return the results of every run, by variant.

    Before the first run, every variant that is not finished is rehearsed: one that cannot be built
    or trained is found before the others have taken hours.

    Args:
        recipe: plain values that all share.
        variants: what differs.
        seeds: of weights and batch order; the split stays the same.
        folder: one folder per variant is made below it, with its overlay, its whole recipe, and a
            run folder per seed.
        jobs: how many runs at a time, 0 for one, or on a cluster for as many as it has room for.
        launcher: where they run.
        per_run: what each asks for there (`experiments.launch`).

    Raises:
        ValueError: no seeds or one twice, a variant that has changed since its runs, a run failed
            (the text names its log), or runs saw different data.
    """
    if not seeds:
        raise ValueError("no seeds: give at least one, as --seeds 0,1,2")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {', '.join(map(str, seeds))}: give each once")
    for variant in variants:
        _refuse_changed(variant, folder / variant.name)
    for variant in variants:
        _write(recipe, variant, folder / variant.name)
    rehearse_all(recipe, variants, seeds, folder, (jobs or 1) if launcher == "local" else 0)
    runs = {
        _job(folder / variant.name, seed): (variant.name, seed)
        for seed in seeds
        for variant in variants
    }
    to_do = [job for job in runs if not (job.folder / "results.json").exists()]
    for job in itertools.chain(
        (job for job in runs if job not in to_do),
        launch(launcher, to_do, folder, jobs, per_run),
    ):
        results = Results.read(job.folder / "results.json")
        accuracy = 100 * (results.test or results.val)["final"].final
        print(f"{job.name}: {accuracy:.2f} %", flush=True)
    found: dict[str, list[Results]] = {variant.name: [] for variant in variants}
    for job, (name, _) in runs.items():
        found[name].append(Results.read(job.folder / "results.json"))
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

    Args:
        recipe: as for `sweep`, like the other arguments.
        variants: what differs.
        seeds: of the runs.
        folder: of the sweep.
        jobs: how many at a time; 0 if they are trained elsewhere, on devices that may not be here.

    Raises:
        ValueError: a variant that does not train, or is of other data; the text names it.
    """
    total, here = 0.0, "" if jobs else " if it were trained here"
    parsed = list[tuple[Variant, int, tuple[Namespace, Namespace]]]()
    prints = dict[str, str]()  # of data, with the first variant that has them
    for variant in variants:  # all of them before the first trains
        files = [_results(folder / variant.name, seed) for seed in seeds]
        done = [Results.read(path) for path in files if path.exists()]
        for results in done:
            prints.setdefault(results.of.data.fingerprint, variant.name)
        if to_do := len(files) - len(done):
            with _named(variant):
                tried = merge(merge(recipe, variant.overlay), {} if jobs else ANYWHERE)
                parsed.append((variant, to_do, parse_recipe(tried)))
    for variant, to_do, configuration in parsed:
        with _named(variant):
            seconds, fingerprint = _tried(*configuration)
            if (other := next(iter(prints), fingerprint)) != fingerprint:
                raise ValueError(
                    f"its recordings are not those of {prints[other]}: leave out what of data "
                    "chooses them"
                )
            prints.setdefault(fingerprint, variant.name)
        each = f"each about {duration(seconds)}{here}"
        print(f"{variant.name}: {variant.what}; runs to do: {to_do}, {each}", flush=True)
        total += to_do * seconds
    if total and jobs:
        print(f"training takes about {duration(total / jobs)} in all", flush=True)


def _tried(config: Namespace, given: Namespace) -> tuple[float, str]:
    """Seconds of a run, and the fingerprint of its data; its parts are let go before the next's."""
    tried = rehearse(config, given)
    return tried.seconds, tried.parts.data.fingerprint


@contextmanager
def _named(variant: Variant) -> Iterator[None]:
    """Let an error name the variant that it comes from."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{variant.name} ({variant.what}) does not train: {error}") from None


def _results(folder: Path, seed: int) -> Path:
    return folder / f"seed{seed}" / "results.json"


def _refuse_changed(variant: Variant, folder: Path) -> None:
    """Raise ValueError if a folder holds runs of a variant that has changed since."""
    path = folder / "overlay.yaml"
    started = path.exists() and any(taken(run) for run in folder.glob("seed*"))
    if started and yaml.safe_load(path.read_text()) != variant.overlay:
        raise ValueError(
            f"{path} holds another {variant.name}, with which runs were trained: choose another "
            "name or --output-dir"
        )


def _write(recipe: dict[str, Any], variant: Variant, folder: Path) -> None:
    """The overlay of a variant, and the recipe that it makes, for a person and for `estl fit`."""
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# {variant.name}: {variant.what}\n"
    for name, values in (("overlay", variant.overlay), ("recipe", merge(recipe, variant.overlay))):
        _put(folder / f"{name}.yaml", head + yaml.safe_dump(values, sort_keys=False))


def _put(path: Path, text: str) -> None:
    """Write a file of a sweep, whole: half of it would be taken for another row's or recipe's."""
    with aside(path) as file:
        file.write(text.encode())


def _job(folder: Path, seed: int) -> Job:
    """One run of the variant in `folder`."""
    run = (folder / f"seed{seed}").resolve()
    recipe = folder.resolve() / "recipe.yaml"
    args = ("fit", f"--config={recipe}", f"--seed={seed}", f"--output-dir={run}")
    return Job(f"{folder.name}, seed {seed}", run, args, os.getcwd())
