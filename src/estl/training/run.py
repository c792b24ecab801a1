"""What the commands do: train into a run folder, test a checkpoint, predict files.

A run folder holds `config.yaml` (the resolved recipe), `best*.ckpt` and `last.ckpt`, `history.csv`,
what the logger writes (TensorBoard's events), and `results.json`, which is written once, at the
end.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer

from estl.data.folders import only_one
from estl.data.loader import batch_share
from estl.evaluation.accuracy import Accuracy, evaluate
from estl.evaluation.attacks import attack, noise, robustness
from estl.evaluation.diagnostics import diagnose, summary
from estl.evaluation.early import at, check_threshold, confidences
from estl.training.checkpoint import read_checkpoint
from estl.training.files import aside
from estl.training.history import History
from estl.training.init_from import with_weights
from estl.training.keeping import Best, Here, ValidateLast, WholeEpochs
from estl.training.leaks import without_leaks
from estl.training.processes import rank, restarted
from estl.training.recipe import Parts, build, make_callbacks, make_learner, parse_recipe, plain
from estl.training.reopen import reopen
from estl.training.results import CheckpointResults, Results, Weights, peak_memory, provenance
from estl.training.resume import (
    Aside,
    Saved,
    commands,
    going_on,
    newest_whole,
    note_command,
    refuse_another,
    refuse_finished,
    refuse_taken,
)
from estl.training.screen import progress_bars, quiet
from estl.training.trainer import make_logger, make_trainer, plainly
from estl.training.trouble import Firing, NotFiniteError
from estl.types import Batch, Output


def run_folder(config: Namespace) -> Path:
    """The folder of a new run, not made yet: the one asked for, or the next free one in `runs/`.

    Raises:
        ValueError: the folder asked for already holds a run.
    """
    if rank() > 0:  # the first process chooses, and Lightning tells the others
        return Path(os.environ.get("ESTL_RUN_FOLDER") or config.output_dir or "runs")
    if config.output_dir is not None:
        path = Path(config.output_dir)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is no folder: choose another --output-dir")
        refuse_taken(path)
    else:
        parts = [config[part].class_path for part in ("data", "student", "supervision")]
        stem = "-".join([*(p.rpartition(".")[2] for p in parts), f"seed{config.seed}"]).lower()
        path = Path("runs", stem)
        for number in itertools.count(2):
            if not path.exists():
                break
            path = Path("runs", f"{stem}-{number}")
    os.environ["ESTL_RUN_FOLDER"] = str(path)  # for the processes that Lightning starts
    return path


@quiet()
def fit(
    config: Namespace,
    given: Namespace,
    resume: Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
    see: Callable[[Parts, Output, Batch], None] | None = None,
) -> tuple[Path, Results] | None:
    """Train as the configuration says, test once at the end, and write the run folder.

    Args:
        config: the complete configuration.
        given: the part of it that was written down, by file or flag.
        resume: a run folder to continue from its `last.ckpt`, or from another checkpoint there
            where that is damaged (`training.resume`).
        callbacks: Lightning callbacks besides the run's own and the recipe's.
        test: whether the test split is read at the end, and the student diagnosed on it.
        see: called with the final weights' output for every batch of the test split.

    Returns:
        The run folder and what its `results.json` holds; None in all processes but the first.

    Raises:
        ValueError: a mistake in the configuration, or a run that cannot be continued so; nothing
            has been written then.
        KeyboardInterrupt: the run was stopped; the text says how to continue it.
    """
    seed_everything(config.seed, verbose=False)
    parts = build(config, given)
    parts.data.require("train")
    if test:
        parts.data.require("test")
    parts = without_leaks(parts)
    folder = resume or run_folder(config)
    start = newest_whole(folder) if resume else None
    if start is None:
        parts = with_weights(config, parts)
    learner = make_learner(config, parts)
    learner.groups()  # refuses rates of parts that there are not, before anything is written
    if start is not None:
        old, data = start[1]["recipe"], parts.data.fingerprint
        refuse_another(plain(parse_recipe(old)[0]), parts.recipe, folder)
        if start[1].get("fingerprint", data) != data:
            raise ValueError(f"{folder} was trained on other data: give the same files")
        refuse_finished(start, parts.recipe)
    last = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    best = Best(
        folder,
        "best-{epoch:03d}",
        monitor="val/rank",
        mode="max",
        auto_insert_metric_name=False,
        enable_version_counter=False,  # a resumed run writes the same file again
    )
    selects = parts.data.sizes["val"] > 0
    options = config.trainer.as_dict() | ({} if selects else {"limit_val_batches": 0})
    bars = [] if options["enable_progress_bar"] is False else progress_bars()
    options["enable_progress_bar"] = bool(bars)
    plugins = options.pop("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    options["enable_model_summary"] = bool(options["enable_model_summary"])  # None: a line instead
    trainer = make_trainer(
        options,
        plugins=[*plugins, Aside(config.keep_checkpoints)],
        default_root_dir=folder,
        logger=make_logger(config.trainer.logger, folder),
        callbacks=[
            WholeEpochs(),
            *([best, ValidateLast()] if selects else []),
            last,
            Here(last),
            Timer(),
            History(folder),
            Firing(),
            *bars,
            *callbacks,
            *make_callbacks(config),
        ],
    )
    batch_share(parts.data.batch_size, trainer.world_size)  # before other processes are started
    with only_one(folder, wait=restarted()) if rank() == 0 else nullcontext():
        if rank() == 0:
            _begin(folder, parts, start, new=resume is None)
        # Edges near 0 are denormal numbers, with which a processor computes several times slower.
        torch.set_flush_denormal(True)
        try:
            with going_on(folder), plainly():
                trainer.fit(learner, parts.data, ckpt_path=start[0] if start else None)
        except NotFiniteError as error:
            raise error.kept(Path(last.dirpath or folder)) from None
        finally:
            torch.set_flush_denormal(False)
        if not trainer.is_global_zero:
            return None
        paths: dict[Weights, Path] = {"final": folder / "last.ckpt"}
        if best.best_model_path:  # none where training ended before the first validation
            paths["best_on_validation"] = Path(best.best_model_path)
        device = trainer.strategy.root_device
        return folder, _results(parts, paths, device, test, folder, see)


def _begin(folder: Path, parts: Parts, start: Saved | None, *, new: bool) -> None:
    """Write what is in a run folder before its first epoch."""
    if new:  # it was free before the lock was had
        refuse_taken(folder)
    for rest in folder.glob("*.new"):  # of a run that was killed while it wrote
        rest.unlink()
    with aside(folder / "config.yaml") as file:
        file.write(yaml.safe_dump(parts.recipe, sort_keys=False).encode())
    note_command(folder, new=new)
    if start is not None and start[0].name != "last.ckpt":
        with aside(folder / "last.ckpt") as file:
            file.write(start[0].read_bytes())


def _results(
    parts: Parts,
    paths: dict[Weights, Path],
    device: torch.device,
    test: bool,
    folder: Path,
    see: Callable[[Parts, Output, Batch], None] | None,
) -> Results:
    """What `results.json` holds, which is written."""
    saved = read_checkpoint(paths["final"])  # with `ddp_spawn`, the trainer here knows nothing
    with going_on(folder):
        found, seen = _evaluate(parts, paths, device, test, folder, see)
    results = Results(
        provenance(parts.data, parts.student, parts.supervision, parts.recipe, commands(folder)),
        epochs=saved["epoch"] + 1,
        train_seconds=round(saved["callbacks"]["Timer"]["time_elapsed"]["train"], 1),
        peak_memory_mib=peak_memory(),
        val=found["val"],
        test=found["test"] or None,
        diagnosis=None if seen is None else summary(seen),
        uncounted=() if seen is None else tuple(seen["uncounted"]),
    )
    with going_on(folder), aside(folder / "results.json") as file:
        file.write(results.to_json().encode())
    return results


def _evaluate(
    parts: Parts,
    paths: dict[Weights, Path],
    device: torch.device,
    test: bool,
    folder: Path,
    see: Callable[[Parts, Output, Batch], None] | None,
) -> tuple[dict[str, dict[Weights, Accuracy]], dict[str, Any] | None]:
    """Accuracies by split and weights; the final weights are diagnosed too, into the run folder."""
    splits = (["val"] if parts.data.sizes["val"] else []) + (["test"] if test else [])
    found: dict[str, dict[Weights, Accuracy]] = {"val": {}, "test": {}}
    seen = None
    for weights, path in paths.items():
        parts.student.load_state_dict(read_checkpoint(path)["state_dict"])
        for split in splits:
            found[split][weights] = evaluate(parts.student, parts.data.loader(split), device)
        if test and weights == "final":
            each = None if see is None else partial(see, parts)
            batches = parts.data.loader("test")
            seen = diagnose(parts.student, batches, device, parts.supervision, each)
            (folder / "diagnostics.json").write_text(json.dumps(seen, indent=2) + "\n")
            if seen["uncounted"]:
                names = ", ".join(seen["uncounted"])
                print(f"the energy is without {names}, which cannot be counted", file=sys.stderr)
    return found, seen


def test(
    path: Path,
    data_path: str | None = None,  # noqa: PT028
    *,
    attacks: Sequence[str] = (),  # noqa: PT028
    eps: float = 8 / 255,  # noqa: PT028
    noisy: bool = False,  # noqa: PT028
    until_sure: float | None = None,  # noqa: PT028
    trust: Sequence[str] = (),  # noqa: PT028
) -> CheckpointResults:
    """Test the checkpoint `path` on its own data, or on another root of the same layout.

    Args:
        path: the checkpoint.
        data_path: the other root, or None; see `reopen`.
        attacks: names of `attacks.attack`, under which accuracy is measured as well.
        eps: their size, a share of each sample's range.
        noisy: whether it is also measured under noise and with a frame dropped.
        until_sure: probability at which a sample is answered early, for a second accuracy.
        trust: modules that the checkpoint may name besides ESTL's own.

    Raises:
        ValueError: no checkpoint of ESTL, a class that is not trusted, data of other classes, a
            threshold that is no probability.
    """
    check_threshold(until_sure)
    opened = reopen(path, data_path, trust=trust)
    student, data, recipe = opened.student, opened.data, opened.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    disturbed = {}
    if attacks or noisy:
        rows = {k: v for name in attacks for k, v in attack(name, eps).items()}
        counts = data.normalize == "none" and data.in_channels == 2  # where an event adds 1
        rows |= noise(sigma=0.1, rate=0.05 if counts else None, dropped=1) if noisy else {}
        disturbed = robustness(student, data.loader("test"), device, rows, recipe["seed"])
    early = None
    if until_sure is not None:
        early = at(*confidences(student, data.loader("test"), device), until_sure)
    return CheckpointResults(
        provenance(data, student, opened.supervision, recipe),
        checkpoint=str(path),
        test=evaluate(student, data.loader("test"), device),
        eps=eps,
        robustness=disturbed,
        early=early,
    )
