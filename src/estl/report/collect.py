"""What a run keeps for its report, from the pass over the test split that diagnoses it anyway."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from estl.data.check import check
from estl.data.module import EventData, ItemData
from estl.data.show import event_picture
from estl.evaluation.confidence import confusion, predictions, reliability, stopping
from estl.report.drawing import spread
from estl.report.pictures import as_bytes
from estl.report.sources import COLLECTED
from estl.supervision import TRE, TSE
from estl.supervision.steps import eval_mode, of_true_class
from estl.supervision.tre import tre_keep
from estl.training.files import aside
from estl.training.recipe import Parts
from estl.types import Batch, Output, Supervision

_THRESHOLDS = torch.tensor([0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.1])
_DECODED, _TOLD = 20, 3  # items of each split that are decoded; findings of a kind that are told


class Collector:
    """Sees every test batch and keeps figures of all samples, and pictures of a few.

    Args:
        samples: number of samples, spread evenly over the classes, whose pictures are kept.
        mistakes: number of the most confident mistakes, likewise.
        most: number of samples of which TSE would erase most, likewise.
    """

    def __init__(self, samples: int = 8, mistakes: int = 8, most: int = 4) -> None:
        self.samples, self.mistakes, self.most = samples, mistakes, most
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.rate: Tensor | float = 0.0
        self.chosen: dict[int, dict[str, Any]] = {}
        self.wrong: list[dict[str, Any]] = []
        self.erased: list[tuple[int, dict[str, Any]]] = []
        self.facts: dict[str, Any] = {}
        self.failed: Exception | None = None

    def __call__(self, parts: Parts, output: Output, batch: Batch) -> None:
        """See a batch and what the student makes of it; an error must not end the run."""
        if self.failed is None:
            try:
                self.see(parts, output, batch)
            except Exception as error:
                self.failed = error

    @torch.no_grad()
    def see(self, parts: Parts, output: Output, batch: Batch) -> None:
        """The same, but errors are raised."""
        K = output.logits.shape[-1]
        if not self.facts:
            self.facts = {"classes": np.array(parts.data.classes, dtype=np.str_)}
            self.facts |= balance(parts.data) | findings(parts)
            self.wanted = set(spread(K, self.samples))
        self.logits.append(output.logits.float().cpu())
        self.labels.append(batch.label.cpu())
        if batch.events.shape[2] == 2:
            self.counts.append(batch.events.sum((1, 2, 3, 4)).cpu())
            self.rate = self.rate + batch.events.sum((0, 3, 4)).cpu()
        for i, label in enumerate(batch.label.tolist()):
            if label in self.wanted and label not in self.chosen:
                self.chosen[label] = sample(parts.supervision, output, batch, i)
        if (tse := erasing(parts.supervision, output)) is not None:
            gone = (~tse.keep(output, batch)).flatten(1).sum(1)
            for i in gone.topk(min(self.most, len(gone))).indices.tolist():
                if gone[i] > min((n for n, _ in self.erased[self.most - 1 :]), default=0):
                    kept = sample(parts.supervision, output, batch, i)
                    self.erased.append((int(gone[i]), kept))
                    self.erased.sort(key=lambda one: -one[0])
            del self.erased[self.most :]
        confidence, predicted = (x[:, -1] for x in predictions(output.logits))
        confidence = confidence.where(predicted != batch.label, -1.0)
        for i in confidence.topk(min(self.mistakes, len(confidence))).indices.tolist():
            if confidence[i] >= 0:
                told = {"predicted": int(predicted[i]), "confidence": float(confidence[i])}
                self.wrong.append(_pictures(batch, i) | told)
        self.wrong.sort(key=lambda one: -one["confidence"])
        del self.wrong[self.mistakes :]

    def arrays(self) -> dict[str, Any]:
        """What the file holds, by name.

        Raises:
            ValueError: no batch was seen.
            Exception: what went wrong while they were.
        """
        if self.failed is not None:
            raise self.failed
        if not self.logits:
            raise ValueError("no batches: there is nothing to report")
        logits, label = torch.cat(self.logits), torch.cat(self.labels)
        confidence, predicted = predictions(logits)
        stop = stopping(confidence, predicted == label[:, None], _THRESHOLDS)
        bins = reliability(logits, label)
        found = self.facts | {
            "samples": len(label),
            "confidence": confidence.mean(0),
            "confusion": confusion(predicted[:, -1], label, logits.shape[-1]),
            "stop_threshold": _THRESHOLDS,
            "stop_accuracy": stop.accuracy,
            "stop_steps": stop.steps,
            "bin_count": bins.samples,
            "bin_right": bins.right,
            "bin_confidence": bins.confidence,
            "ece": bins.error,
        }
        if self.counts:
            counts = torch.cat(self.counts).numpy()
            found["events_count"], found["events_edges"] = np.histogram(counts, bins=30)
            found["events_rate"] = self.rate / len(label)
        pictures = {
            "sample": list(self.chosen.values()),
            "mistake": self.wrong,
            "most": [kept for _, kept in self.erased],
        }
        for name, kept in pictures.items():
            for key in kept[0] if kept else ():
                found[f"{name}_{key}"] = np.stack([np.asarray(one[key]) for one in kept])
        return {name: np.asarray(value) for name, value in found.items()}

    def write(self, folder: Path) -> None:
        """Write the arrays as `report.npz` into a run folder."""
        arrays = self.arrays()
        with aside(folder / COLLECTED) as file:
            np.savez_compressed(file, **arrays)


def balance(data: EventData) -> dict[str, np.ndarray]:
    """How many items of each class every split has, where that is known without reading them."""
    if not isinstance(data, ItemData):
        return {}
    counted = {name: Counter(item.label for item in items) for name, items in data.splits.items()}
    return {
        f"balance_{name}": np.array([count[label] for label in data.classes])
        for name, count in counted.items()
    }


def findings(parts: Parts) -> dict[str, np.ndarray]:
    """What `estl data check` finds, as JSON, with a few items of each split decoded.

    The files of a large set are compared once, before the training.
    """
    if not isinstance(parts.data, ItemData):
        return {}
    root = (parts.recipe["data"].get("init_args") or {}).get("root")
    found = check(parts.data, Path(root) if root else None, limit=_DECODED, same=parts.same)
    told = {name: [len(all_), *all_[:_TOLD]] for name, all_ in found.entries().items()}
    total = sum(counts.total() for counts in found.counts.values())
    facts = {"wrong": found.wrong, "decoded": found.decoded, "total": total, "found": told}
    return {"check": np.array(json.dumps(facts))}


def sample(supervision: Supervision, output: Output, batch: Batch, i: int) -> dict[str, Any]:
    """Pictures and maps of one sample, each (T, ...)."""
    one = Batch(batch.events[i : i + 1], batch.label[i : i + 1])
    out = Output(
        output.logits[i : i + 1],
        output.features[i : i + 1],
        output.classify,
        output.class_token[i : i + 1],
        pooled_head=output.pooled_head,
    )
    confidence, predicted = predictions(out.logits)
    kept = _pictures(batch, i, steps=True)
    kept |= {"confidence": confidence[0].cpu(), "predicted": predicted[0].cpu()}
    if not out.pooled_head:
        return kept
    kept["activation"] = activation(out, one)[0].half().cpu()
    tse = erasing(supervision, out)
    if tse is not None and (past := tse.past(out, one)) is not None:
        kept["map"], kept["threshold"] = past[0][0].half().cpu(), past[1][0].flatten().cpu()
        kept["keep"] = tse.keep(out, one)[0].cpu()
    tre = next((m for m in supervision.modules() if isinstance(m, TRE)), None)
    if tre is not None:
        thresholds: dict[str, Any] = {"theta0": tre.now(tre.theta0), "lamb": tre.lamb}
        pooled = out.features.mean((-2, -1))
        kept["channels"] = tre_keep(pooled, out.classify, one.label, **thresholds)[0].cpu()
    return kept


def erasing(supervision: Supervision, output: Output) -> TSE | None:
    """The TSE in a supervision, if it can ask the head of this output about places."""
    found = (m for m in supervision.modules() if isinstance(m, TSE))
    return next(found, None) if output.pooled_head else None


def activation(output: Output, batch: Batch) -> Tensor:
    """The probability (B,T,H,W) of the true class at each place and step, by the head alone."""
    B, _, _, H, W = output.features.shape
    places = output.features.permute(0, 3, 4, 1, 2).flatten(0, 2)
    with eval_mode(output.classify):
        p = output.classify(places).float().softmax(-1).unflatten(0, (B, H, W))
    return of_true_class(p, batch.label).movedim(-1, 1)


def _pictures(batch: Batch, i: int, steps: bool = False) -> dict[str, Any]:
    """The label of a sample, its events (of all steps together, or of each), and its image."""
    events = batch.events[i].float().cpu()
    if not steps:
        events = events.sum(0) if events.shape[1] == 2 else events[0]
    full = events.max().clamp(min=1.0).item() if events.shape[-3] == 2 else None
    kept = {"label": int(batch.label[i]), "events": as_bytes(event_picture(events, full))}
    if batch.image is not None:
        kept["image"] = as_bytes(batch.image[i].float().cpu())
    return kept
