"""Run folders that outlive an interruption: whole checkpoints, and what a run is continued from."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.plugins.io import TorchCheckpointIO

from estl.training.checkpoint import read_checkpoint
from estl.training.files import aside
from estl.training.processes import rank, restarted
from estl.training.results import Results, command_line

STATE = ("epoch", "loops", "optimizer_states", "lr_schedulers", "supervision")
"""What a checkpoint needs for resuming, besides what `load_student` needs."""

FREE = ("root", "cache", "num_workers", "batch_size", "buffer", "teacher", "allow_leaks")
"""Arguments of data and supervision that may differ when a run is continued."""


class Aside(TorchCheckpointIO):
    """Writes checkpoints `aside`: Lightning writes its own to the folder for temporary files, from
    where they are copied if it is another file system, and a kill leaves half a checkpoint.

    Args:
        keep: how many of the last epochs' checkpoints to keep, `last.ckpt` among them.
    """

    def __init__(self, keep: int = 1) -> None:
        self.keep = keep

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the checkpoint; what was there before stays until it is complete."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "last.ckpt":
            keep_before(path, checkpoint["epoch"], self.keep)
        with aside(path) as file:
            torch.save(checkpoint, file)


def keep_before(last: Path, epoch: int, keep: int) -> None:
    """Give `last.ckpt`, which is about to be replaced, the name of its epoch, `epoch-012.ckpt`.

    Args:
        last: the file.
        epoch: number of its epoch, counted from 1: that of the next one, counted from 0.
        keep: how many checkpoints to have once it has been replaced; older ones are removed.
    """
    if keep > 1 and last.exists():
        kept = last.with_name(f"epoch-{epoch:03d}.ckpt")
        kept.unlink(missing_ok=True)
        try:
            os.link(last, kept)
        except OSError:  # a file system without links
            with aside(kept) as file:
                file.write(last.read_bytes())
    for path in last.parent.glob("epoch-*.ckpt"):
        if (number := path.stem.removeprefix("epoch-")).isdigit() and int(
            number
        ) <= epoch + 1 - keep:
            path.unlink()


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """If a run is stopped, or the disk refuses to write, let the error say how to continue it.

    Lightning turns a KeyboardInterrupt into a SystemExit, and forgets of which kind it was.
    """
    try:
        yield
    except OSError as error:
        how = f"estl fit --resume {folder}" if taken(folder) else "the same command"
        raise OSError(f"{' '.join(str(error).split())}; then go on with {how}") from error
    except (KeyboardInterrupt, SystemExit) as stop:
        cause = stop.__context__ if isinstance(stop, SystemExit) else stop
        kind = type(cause) if isinstance(cause, KeyboardInterrupt) else KeyboardInterrupt
        raise kind(f"estl fit --resume {folder}") from None


def kept_recipe(folder: Path) -> Path:
    """The recipe of a run that is to be continued, written anew from a checkpoint if it is damaged.

    If it merely differs from what the run was trained with so far, the differences are printed.

    Raises:
        ValueError: no run folder, or one without a whole recipe.
    """
    path = folder / "config.yaml"
    if not path.exists() and not taken(folder):
        raise ValueError(f"--resume {folder}: give a run folder (one that holds config.yaml)")
    try:
        recipe = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        recipe = None
    saved, source = None, folder
    newest = sorted(folder.glob("epoch-*.ckpt"), reverse=True)
    for source in (folder / "last.ckpt", *newest, *folder.glob("best*.ckpt")):
        with suppress(ValueError):
            saved = read_checkpoint(source)["recipe"]
            break
    if not isinstance(recipe, dict) or not {"data", "student"} <= recipe.keys():
        if saved is None:
            raise ValueError(f"{path} is damaged, and no checkpoint has the recipe: train anew")
        if rank() == 0:
            with aside(path) as file:
                file.write(yaml.safe_dump(saved, sort_keys=False).encode())
        print(f"{path} was damaged: written anew from {source}", file=sys.stderr)
    elif saved is not None:
        for key, old, new in _differences(saved, recipe, ""):
            told = f"{path} has {key[1:]} {str(new)[:60]}, and {source.name} was trained with"
            print(f"{told} {str(old)[:60]}: {str(new)[:60]} counts", file=sys.stderr)
    return path


def note_command(folder: Path, *, new: bool) -> None:
    """Add this process's command line to those that a run was trained with, in `commands.txt`.

    A launcher that restarts a run does not add another command.

    Args:
        folder: the run's.
        new: whether the run begins here; what the file held before is then dropped.
    """
    kept, line = [] if new else commands(folder), command_line()
    if not (restarted() and kept[-1:] == [line]):
        kept.append(line)
    with aside(folder / "commands.txt") as file:
        file.write("".join(f"{line}\n" for line in kept).encode())


def commands(folder: Path) -> list[str]:
    """The commands that a run was trained with, in order; empty if none were kept."""
    path = folder / "commands.txt"
    return path.read_bytes().decode().splitlines() if path.exists() else []


def taken(folder: Path) -> bool:
    """Whether a folder holds a run: from its first checkpoint on."""
    return any(folder.glob("*.ckpt")) or (folder / "results.json").exists()


def refuse_taken(folder: Path) -> None:
    """Raise ValueError if a new run would be written over one that a folder holds."""
    if taken(folder):
        raise ValueError(
            f"{folder} already holds a run: continue it with estl fit --resume {folder}, or "
            "choose another --output-dir"
        )


Saved = tuple[Path, dict[str, Any]]
"""A checkpoint's file, and what it holds."""


def newest_whole(folder: Path) -> Saved | None:
    """The newest checkpoint of a run that can be continued, and what it holds.

    That is `last.ckpt`; if it is damaged or gone, the whole one of the latest epoch, which the
    screen reports. None, also reported, if the run has not reached its first checkpoint.

    Raises:
        ValueError: checkpoints were written, and none is whole.
    """
    last = folder / "last.ckpt"
    others = [path for path in sorted(folder.glob("*.ckpt")) if path != last]
    problem = f"{last} is missing"
    if last.exists():
        try:
            return last, _with_state(last)
        except ValueError as error:
            problem = str(error)
    whole = []
    for path in others:
        try:
            saved = _with_state(path)
        except ValueError:
            continue
        whole.append((saved["epoch"], path, saved))
    if whole:
        epoch, path, saved = max(whole, key=lambda found: found[0])
        print(f"{problem}: going on from {path}, after epoch {epoch + 1}", file=sys.stderr)
        return path, saved
    if taken(folder) or epochs(folder) > 1:  # an epoch's line is written before its checkpoint
        raise ValueError(
            f"{problem}, and {folder} has no other whole checkpoint: train again with "
            f"estl fit --config {folder / 'config.yaml'} --output-dir NEW"
        )
    print(f"{folder} has no checkpoint yet: starting from the beginning", file=sys.stderr)
    return None


def _with_state(path: Path) -> dict[str, Any]:
    """A checkpoint that training can go on from."""
    saved = read_checkpoint(path)
    if absent := [key for key in STATE if key not in saved]:
        raise ValueError(f"{path} has no {absent[0]} to go on from")
    loop = saved["loops"]["fit_loop"]
    progress, steps = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    if progress["processed"] != progress["ready"] or not steps["is_last_batch"]:
        raise ValueError(f"{path} is of the middle of an epoch")
    return saved


def epochs(folder: Path) -> int:
    """How many epochs `history.csv` has."""
    path = folder / "history.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def refuse_another(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raise ValueError if the run of a folder would not be continued but become another one.

    Args:
        old: its recipe, complete.
        new: the recipe with which it is to be continued.
        folder: the run's.

    >>> old = {"seed": 0, "data": {"init_args": {"T": 6, "num_workers": 0}}}
    >>> new = {"seed": 0, "data": {"init_args": {"T": 9, "num_workers": 4}}}
    >>> refuse_another(old, new, Path("run"))
    Traceback (most recent call last):
    ValueError: run has data.init_args.T 6, not 9: leave it out, or train anew without --resume
    """
    for part in ("seed", "data", "student", "supervision", "init_from", "learner"):
        one, other = (_optimized(r) if part == "learner" else r.get(part) for r in (old, new))
        for key, a, b in _differences(one, other, part):
            raise ValueError(
                f"{folder} has {key} {str(a)[:60]}, not {str(b)[:60]}: leave it out, or train "
                "anew without --resume"
            )


def _optimized(recipe: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe's learner that determine an optimizer's state; rates may change."""
    learner = recipe.get("learner") or {}
    parts = sorted(learner.get("part_lr") or {})
    return {"optimizer": learner.get("optimizer"), "part_lr": ", ".join(parts) or None}


def refuse_finished(start: Saved, recipe: dict[str, Any]) -> None:
    """Raise ValueError where nothing would be trained, so that nothing is rewritten either.

    What can be done is to train on, to test a run that was stopped before its results, or to put a
    whole checkpoint in the place of a damaged `last.ckpt`. A launcher that starts a run again after
    its end is no mistake.

    Args:
        start: the checkpoint that the run is to be continued from.
        recipe: with which it is to be continued.

    >>> saved = {"epoch": 6, "recipe": {}}
    >>> refuse_finished((Path("run/last.ckpt"), saved), {"trainer": {"max_epochs": 3}})
    Traceback (most recent call last):
    ValueError: run has 7 epochs behind it, more than --epochs 3: give more, or leave it out
    """
    path, saved = start
    done, asked = saved["epoch"] + 1, recipe["trainer"]["max_epochs"]
    if asked is None or asked > done:
        return
    folder = path.parent
    if asked < done:
        raise ValueError(
            f"{folder} has {done} epochs behind it, more than --epochs {asked}: give more, or "
            "leave it out"
        )
    for key, a, b in _differences(saved["recipe"].get("learner"), recipe.get("learner"), "learner"):
        raise ValueError(
            f"{folder} was trained for all its {done} epochs with {key} {a}, not {b}: leave it "
            f"out, or train on with --epochs above {done}"
        )
    if path.name == "last.ckpt" and not restarted() and _has_results(folder, done):
        raise ValueError(
            f"{folder} is finished, after {done} epochs: train on with --epochs above {done}, or "
            f"test it with estl test --ckpt {path}"
        )


def _has_results(folder: Path, epochs: int) -> bool:
    """Whether a run's results exist and are those after this many epochs."""
    with suppress(OSError, ValueError):
        return Results.read(folder / "results.json").epochs >= epochs
    return False


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """What differs between two plain values; a key that is left out is None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted((old.keys() | new.keys()) - set(FREE)):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}")
    elif old != new:
        yield key, old, new
