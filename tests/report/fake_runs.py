"""Run folders as `estl fit` leaves them, of a network that was never trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from estl.data.module import ItemData
from estl.data.sets.digits import Digits
from estl.evaluation.accuracy import evaluate
from estl.evaluation.diagnostics import diagnose, summary
from estl.report.collect import Collector
from estl.report.html import sections_of
from estl.report.parts import Figure, Section
from estl.report.sources import read_variants
from estl.report.start import Start
from estl.students import VGGSNN
from estl.supervision import TSE, MeanCE
from estl.training.history import write
from estl.training.learner import Learner
from estl.training.recipe import Parts
from estl.training.results import Results, provenance
from estl.types import Supervision

BAD_NAME = "<img src=x onerror=alert(1)>"
DEVICE = torch.device("cpu")


def parts(supervision: Supervision | None = None, seed: int = 0) -> Parts:
    """A pooled network on small digits, one class of which is named to break pages."""
    torch.manual_seed(seed)
    data = Digits(T=3, size=16, per_class=3)
    data.splits = data.splits | {"test": data.splits["test"][::9]}  # 40 samples
    student = VGGSNN(
        classes=10, in_channels=2, frame_size=(16, 16), layers=(8, "AP", 8), pooled=True
    )
    recipe = {
        "seed": seed,
        "data": {"class_path": "estl.data.Digits", "init_args": {"T": 3}},
        "supervision": {"class_path": "estl.supervision.TSE", "init_args": {"tau_f": 0.05}},
        "trainer": {"max_epochs": 4},
    }
    if isinstance(supervision, MeanCE):
        recipe["supervision"] = {"class_path": "estl.supervision.MeanCE"}
    return Parts(data, student, supervision or TSE(tau_f=0.05), recipe)


def write_run(
    folder: Path,
    seed: int = 0,
    supervision: Supervision | None = None,
    epochs: int = 4,
    **columns: float,
) -> Path:
    """Fill a run folder; `columns` of the history grow by their epoch."""
    run, untrained = parts(supervision, seed), parts(supervision, seed + 100)
    seen, collector = list(run.data.loader("test")), Collector()
    folder.mkdir(parents=True)
    assert isinstance(run.data, ItemData)
    Start().write(Learner(untrained.student, untrained.supervision), run.data, folder)
    run.data.classes = (BAD_NAME, *run.data.classes[1:])
    for epoch in range(1, epochs + 1):
        row = {"epoch": float(epoch), "train/tse": 2.0 / epoch, "train/loss": 2.0 / epoch}
        row |= {name: value * epoch for name, value in columns.items()}
        row |= {"watch/erased": 0.1, "gradient/student": 0.5, "train/acc": epoch / 10}
        row |= {"val/acc": epoch / 20, "lr": 0.01, "seconds": 1.0}
        write(row | {"step_seconds": 0.1, "memory_mib": 90 + epoch}, folder / "history.csv")
    student: nn.Module = run.student
    diagnosis = diagnose(
        student, seen, DEVICE, run.supervision, lambda output, batch: collector(run, output, batch)
    )
    (folder / "diagnostics.json").write_text(json.dumps(diagnosis))
    (folder / "config.yaml").write_text(yaml.safe_dump(run.recipe))
    accuracy = evaluate(student, seen, DEVICE)
    results = Results(
        provenance(run.data, student, run.supervision, run.recipe),
        epochs=epochs,
        train_seconds=4.0,
        peak_memory_mib=100,
        val={"final": accuracy},
        test={"final": accuracy, "best_on_validation": accuracy},
        diagnosis=summary(diagnosis),
    )
    (folder / "results.json").write_text(results.to_json())
    collector.write(folder)
    return folder


def write_sweep(folder: Path, variants: tuple[str, ...] = ("1", "6"), seeds: int = 2) -> Path:
    """A sweep's folder of such runs."""
    for name in variants:
        for seed in range(seeds):
            write_run(folder / name / f"seed{seed}", seed, MeanCE() if name == "1" else None)
        (folder / name / "overlay.yaml").write_text(f"# {name}: what {name} is\n{{}}\n")
    (folder / "results.json").write_text(json.dumps({"runs": {name: [] for name in variants}}))
    (folder / "results.md").write_text("")
    return folder


def write_page(folder: Path, epoch: int, gate: bool = True) -> None:
    """A page of a guided run; its edges and attention grow with the epoch."""
    (folder / "pictures").mkdir(exist_ok=True)
    ramp = np.linspace(0, 1, 36, dtype=np.float16).reshape(6, 6)
    two = np.stack([ramp, ramp.T])
    even = np.ones((2, 3, 3), np.float16)
    held: dict[str, Any] = {
        "names": np.array([BAD_NAME, "1"]),
        "image": np.full((2, 8, 8, 3), 90, np.uint8),
        "events": np.full((2, 8, 8, 3), 200, np.uint8),
        "edges": two * epoch / 10,
        "sobel": two / 2,
        "counts": 40 * two,
        "teacher": even * np.array([0.25, 1.0, 4.0], np.float16),
        "student": even * (1 + epoch / 10),
    }
    if gate:
        held |= {"gate": even / 4, "added": even * epoch}
    np.savez_compressed(folder / "pictures" / f"epoch_{epoch:03d}.npz", **held)


def sections(*paths: Path) -> dict[str, Section]:
    """The sections of a report by name."""
    return {section.name: section for section in sections_of(read_variants(paths))}


def drawn(*paths: Path) -> dict[str, Figure]:
    """The figures of a report by name."""
    found = [part for section in sections(*paths).values() for part in section.parts]
    return {part.name: part for part in found if isinstance(part, Figure)}


def shown_at(figure: Figure, position: int) -> list[dict[str, Any]]:
    """All traces of a figure where its slider is at a position."""
    frame = figure.frames[position]
    moved = dict(zip(frame["traces"], frame["data"], strict=True))
    return [moved.get(i, trace) for i, trace in enumerate(figure.data)]
