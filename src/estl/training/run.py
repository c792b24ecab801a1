"""What the commands do: train into a run folder, test a checkpoint, predict files.

A run folder holds `config.yaml` (the resolved recipe), `best*.ckpt` and `last.ckpt`, TensorBoard
events, and `results.json`, which is written once, at the end.
"""

import itertools
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from estl.data.check import refuse_leaks
from estl.data.frames import normalize
from estl.data.reading import read_file
from estl.evaluation.accuracy import evaluate, running_mean
from estl.evaluation.attacks import attack, noise, robustness
from estl.evaluation.diagnostics import diagnose, plot, summary
from estl.report.pictures import Pictures
from estl.training.checkpoint import load_student, read_checkpoint
from estl.training.learner import Learner
from estl.training.recipe import Run, build, from_recipe


class ProgressBar(RichProgressBar):
    """Lightning's, without the logger's version number."""

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """What the bar shows beside the speed."""
        metrics = super().get_metrics(*args)
        metrics.pop("v_num", None)
        return metrics


def rank() -> int:
    """Number of this process among those that train together, 0 if it is alone."""
    return int(getattr(rank_zero_only, "rank", 0))


def run_folder(config: Namespace) -> Path:
    """The folder of a new run: the one asked for, or the next free one in `runs/`.

    Raises:
        ValueError: the folder asked for already holds a run.
    """
    if rank() > 0:  # the first process has made it
        folder = os.environ.get("ESTL_RUN_FOLDER", config.output_dir)
        if folder is None:
            raise ValueError("several processes share a run: say where with --output-dir FOLDER")
        return Path(folder)
    if config.output_dir is not None:
        path = Path(config.output_dir)
        if (path / "config.yaml").exists():
            raise ValueError(
                f"{path} already holds a run: continue it with estl fit --resume {path}, or "
                "choose another --output-dir"
            )
    else:
        parts = [config[part].class_path for part in ("data", "student", "supervision")]
        stem = "-".join([*(p.rpartition(".")[2] for p in parts), f"seed{config.seed}"]).lower()
        path = Path("runs", stem)
        for number in itertools.count(2):
            if not path.exists():
                break
            path = Path("runs", f"{stem}-{number}")
    path.mkdir(parents=True, exist_ok=True)
    os.environ["ESTL_RUN_FOLDER"] = str(path)  # for the processes that Lightning starts
    return path


def fit(
    config: Namespace,
    given: Namespace,
    resume: Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
) -> dict[str, Any]:
    """Train as the configuration says, test once at the end, and write the run folder.

    Args:
        config: the complete configuration.
        given: the part of it that was written down, by file or flag.
        resume: a run folder to continue from its `last.ckpt`.
        callbacks: of Lightning, beside the run's own.
        test: whether the test split is read at the end, and the student diagnosed on it.

    Returns:
        What `results.json` holds.
    """
    seed_everything(config.seed, verbose=False)
    run = build(config, given)
    run.data.require("train")
    if not run.data.allow_leaks:
        refuse_leaks(run.data)
    folder = resume or run_folder(config)
    if rank() == 0:
        (folder / "config.yaml").write_text(yaml.safe_dump(run.recipe, sort_keys=False))
    learner = Learner(
        run.student,
        run.supervision,
        **config.learner.as_dict(),
        recipe=run.recipe,
        classes=run.data.classes,
    )
    best = ModelCheckpoint(
        folder, "best-{epoch:03d}", monitor="val/rank", mode="max", auto_insert_metric_name=False
    )
    last = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    timer = Timer()
    trainer = Trainer(
        **config.trainer.as_dict(),
        default_root_dir=folder,
        logger=TensorBoardLogger(str(folder), name="", version="tensorboard"),
        callbacks=[best, last, timer, ProgressBar(), Pictures(folder / "pictures"), *callbacks],
    )
    checkpoint = folder / "last.ckpt"
    # Edges near 0 are denormal numbers, with which a processor computes several times slower.
    torch.set_flush_denormal(True)
    try:
        trainer.fit(learner, run.data, ckpt_path=checkpoint if checkpoint.exists() else None)
    finally:
        torch.set_flush_denormal(False)
    if not trainer.is_global_zero:
        return {}
    device = trainer.strategy.root_device
    results = describe(run) | {
        "epochs": trainer.current_epoch,
        "train_seconds": round(timer.time_elapsed("train"), 1),
        "peak_memory_mib": peak_memory(),
    }
    splits = ("val", "test") if test else ("val",)
    for split in splits:
        results[split] = {"samples": run.data.sizes[split]}
    weights = {"final": checkpoint, "best_on_validation": Path(best.best_model_path)}
    for name, path in weights.items():
        run.student.load_state_dict(read_checkpoint(path)["state_dict"])
        for split in splits:
            found = evaluate(run.student, run.data.loader(split), device)
            results[split][name] = {"accuracy": found.final, "per_step": found.per_step}
        if test and name == "final":
            results["diagnosis"] = _diagnose(run, folder, device)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results | {"folder": str(folder)}


def _diagnose(run: Run, folder: Path, device: torch.device) -> dict[str, float | None]:
    """Diagnose the student on the test split into the run folder; return the summary."""
    found = diagnose(run.student, run.data.loader("test"), device, run.supervision)
    (folder / "diagnostics.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(found, folder / "diagnostics.png")
    return summary(found)


def describe(run: Run) -> dict[str, Any]:
    """What a figure has to stand with: seed, data, versions, machine, command."""
    names = ("estl", "torch", "lightning", "numpy")
    return {
        "command": " ".join(["estl", *sys.argv[1:]]),
        "seed": run.recipe["seed"],
        "data": {
            "name": type(run.data).__name__,
            "fingerprint": run.data.fingerprint,
            "sizes": run.data.sizes,
        },
        "student": {
            "name": type(run.student).__name__,
            "parameters": sum(p.numel() for p in run.student.parameters()),
        },
        "supervision": repr(run.supervision),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def peak_memory() -> int:
    """The most memory this process has held so far, in MiB: on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    try:  # getrusage would give at least the peak of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20  # bytes on macOS


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(s.partition(":")[2].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def test(
    path: Path,
    data_path: str | None,
    output_dir: Path | None,
    *,
    attacks: Sequence[str] = (),  # noqa: PT028
    eps: float = 8 / 255,  # noqa: PT028
    noisy: bool = False,  # noqa: PT028
) -> dict[str, Any]:
    """Test the checkpoint `path` on its own data, or on another root of the same layout.

    Args:
        path: the checkpoint.
        data_path: the other root, or None.
        output_dir: where to write `test.json`, or None.
        attacks: names of `attacks.attack`, under which accuracy is measured besides.
        eps: their size, a share of each sample's range.
        noisy: whether it is also measured under noise and with a frame dropped.

    Raises:
        ValueError: the data have a class that is not one of the checkpoint's.
    """
    saved = read_checkpoint(path)
    recipe = saved["recipe"]
    if data_path is not None:
        recipe["data"]["init_args"]["root"] = data_path
    config = from_recipe(recipe)
    run = build(config, config, saved["classes"])
    run.data.require("test")
    run.student.load_state_dict(saved["state_dict"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = evaluate(run.student, run.data.loader("test"), device)
    results = describe(run) | {
        "checkpoint": str(path),
        "test": {"samples": found.samples, "accuracy": found.final, "per_step": found.per_step},
    }
    if attacks or noisy:
        conditions = {k: v for name in attacks for k, v in attack(name, eps).items()}
        conditions |= noise(sigma=0.1, rate=0.05, dropped=1) if noisy else {}
        batches, seed = run.data.loader("test"), run.recipe["seed"]
        results["robustness"] = robustness(run.student, batches, device, conditions, seed)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "test.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


@torch.inference_mode()
def predict(path: Path, files: list[Path]) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """For each event file the class and its probability after every time step t = 1..T."""
    saved = read_checkpoint(path)
    student = load_student(path)
    data = saved["recipe"]["data"]
    how = data["init_args"].get("normalize", "none")
    for file in files:
        frames = normalize(read_file(file, data["class_path"], data["init_args"]), how)
        logits = student(frames.unsqueeze(0)).logits
        probability, label = running_mean(logits)[0].softmax(-1).max(-1)
        names = [saved["classes"][k] for k in label.tolist()]
        yield file, list(zip(names, probability.tolist(), strict=True))
