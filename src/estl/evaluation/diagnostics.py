"""What a student does over its time steps and in its layers, and what that costs.

`diagnose` runs over a loader and returns numbers for a run folder's JSON; `plot` draws them. Energy
is an estimate by counting (`energy.py`).
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from estl.evaluation.accuracy import running_mean
from estl.evaluation.energy import MAC_PJ, Activity, watch
from estl.supervision import TSE, tse_keep
from estl.supervision.schedule import Positive
from estl.types import Batch, Supervision


def prediction_entropy(logits: Float[Tensor, "B T K"]) -> Float[Tensor, "B T"]:
    """Entropy in nats of the prediction after each step t, softmax(1/t sum_{s<=t} z_s); to ln K.

    >>> prediction_entropy(torch.zeros(1, 2, 4)).exp()
    tensor([[4., 4.]])
    """
    log_p = running_mean(logits).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def step_cosine(features: Float[Tensor, "B T *map"]) -> Float[Tensor, "T T"]:
    """Cosine of the angle between the flattened features of two steps, mean over the samples.

    A step without any feature (no spike) has cosine 0 with all steps, itself included.

    >>> step_cosine(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    tensor([[1.0000, 0.7071],
            [0.7071, 1.0000]])
    """
    x = F.normalize(features.flatten(2).float(), dim=-1)
    return (x @ x.mT).mean(0)


def step_cka(features: Float[Tensor, "n T D"]) -> Float[Tensor, "T T"]:
    """Linear centered kernel alignment of the features of two steps, in [0,1].

        CKA(X, Y) = |Y^T X|^2 / (|X^T X| |Y^T Y|)

    with Frobenius norms of centered X, Y (n samples, D) (Kornblith et al., ICML 2019, Eq. 3 and
    Section 4). Rotations and scales of a step's features do not change it. With few samples
    for D it is biased towards 1: compare figures of one n only. NaN where a step's features are the
    same for all samples.

    >>> x = torch.rand(20, 1, 3)
    >>> step_cka(torch.cat((x, 2 * x.flip(-1)), dim=1)).round(decimals=4).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    x = features.double().movedim(1, 0)
    x = x - x.mean(1, keepdim=True)
    if x.shape[1] < x.shape[2]:  # |Y^T X|^2 = <X X^T, Y Y^T>: the smaller of the two matrices
        grams = (x @ x.mT).flatten(1)
        products = grams @ grams.mT
    else:
        products = torch.stack([(x_t.mT @ x).square().sum((-2, -1)) for x_t in x])
    norms = products.diagonal().sqrt()
    return products / (norms[:, None] * norms)


def erased_per_step(
    keep: Bool[Tensor, "B T H W"],
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Of each step, the share of places that a mask of `tse_keep` erases, and the share of samples
    that it erases everywhere.

    >>> keep = torch.tensor([[[1, 1], [0, 1]], [[1, 1], [0, 0]]]).bool().unsqueeze(2)
    >>> erased_per_step(keep)
    (tensor([0.0000, 0.7500]), tensor([0.0000, 0.5000]))
    """
    gone = ~keep.flatten(2)
    return gone.float().mean((0, 2)), gone.all(-1).float().mean(0)


@torch.no_grad()
def diagnose(
    student: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    supervision: Supervision | None = None,
) -> dict[str, Any]:
    """Figures of `student` in eval mode over `batches`, as JSON takes them.

    Over steps t = 1..T: `accuracy` and `entropy` of the prediction after t steps; `cosine` of the
    maps and `cka` of the pooled features between steps (T x T, None where undefined); with a TSE in
    `supervision`, what it would erase here (`erased`, `erased_everywhere`), else None. By layer:
    `firing_rate`; `acs`, `macs` and `energy_uj` of one sample's T steps. Over all layers:
    `energy_uj_total`, and `energy_uj_dense` if every operation were a MAC.

    Args:
        student: events to an `Output`; it stays on `device` and in eval mode.
        batches: at least one.
        device: where.
        supervision: what it was trained with; a schedule of its counts at its present progress.

    Raises:
        ValueError: no batches.
    """
    student = student.to(device).eval()
    parts = [] if supervision is None else supervision.modules()
    tse = next((part for part in parts if isinstance(part, TSE)), None)
    activity, places, samples = Activity(), 0, 0
    sums: dict[str, Tensor] = {}
    pooled = []
    for batch in batches:
        batch = batch.to(device)
        B = len(batch.label)
        if places == 0:
            places = student(batch.events[:1]).features.shape[-2:].numel()
        with watch(student, activity, places):
            output = student(batch.events)
        hits = running_mean(output.logits).argmax(-1) == batch.label[:, None]
        found = {
            "accuracy": hits.double().mean(0),
            "entropy": prediction_entropy(output.logits).mean(0),
            "cosine": step_cosine(output.features),
        }
        if tse is not None:
            kappa = tse.kappa() if isinstance(tse.kappa, Positive) else tse.kappa
            keep = tse_keep(
                output.features,
                output.classify,
                batch.label,
                tau_f=tse.now(tse.tau_f),
                kappa=float(kappa),
            )
            found["erased"], found["erased_everywhere"] = erased_per_step(keep)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + B * value.double().cpu()
        pooled.append(output.features.mean((-2, -1)).float().cpu())
        samples += B
    if samples == 0:
        raise ValueError("batches is empty: there is nothing to diagnose")
    steps = {name: _numbers(value / samples) for name, value in sums.items()}
    layers = activity.operations
    microjoules = {name: layer.picojoules / samples / 1e6 for name, layer in layers.items()}
    return {
        "samples": samples,
        "erased": None,
        "erased_everywhere": None,
        **steps,
        "cka": _numbers(step_cka(torch.cat(pooled))),
        "firing_rate": activity.rates,
        "acs": {name: layer.acs / samples for name, layer in layers.items()},
        "macs": {name: layer.macs / samples for name, layer in layers.items()},
        "energy_uj": microjoules,
        "energy_uj_total": sum(microjoules.values()),
        "energy_uj_dense": sum(MAC_PJ * layer.dense for layer in layers.values()) / samples / 1e6,
    }


def summary(diagnosis: dict[str, Any]) -> dict[str, float | None]:
    """One figure each of what `diagnose` returned.

    `cosine` and `cka` are means over pairs of different steps (None where one is undefined, or T is
    1), `firing_rate` is the mean over layers, `erased` over steps 2..T.

    >>> summary({"cosine": [[1.0, 0.5], [0.5, 1.0]], "cka": [[1.0, None], [None, 1.0]],
    ...          "firing_rate": {"a": 0.1, "b": 0.3}, "energy_uj_total": 2.0, "erased": None})
    {'cosine': 0.5, 'cka': None, 'firing_rate': 0.2, 'energy_uj': 2.0, 'erased': None}
    """
    rates, erased = list(diagnosis["firing_rate"].values()), diagnosis["erased"]
    return {
        "cosine": _between(diagnosis["cosine"]),
        "cka": _between(diagnosis["cka"]),
        "firing_rate": sum(rates) / len(rates) if rates else None,
        "energy_uj": diagnosis["energy_uj_total"],
        "erased": sum(erased[1:]) / (len(erased) - 1) if erased and len(erased) > 1 else None,
    }


def _between(matrix: list[list[float | None]]) -> float | None:
    """Mean of the entries off the diagonal."""
    values = [v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def plot(diagnosis: dict[str, Any], path: Path) -> None:
    """Draw what `diagnose` returned as one PNG."""
    from matplotlib.figure import Figure

    rows = max(len(diagnosis["energy_uj"]), len(diagnosis["firing_rate"]))
    figure = Figure(figsize=(11, 4 + max(3.0, 0.16 * rows)), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=[3.5, max(3.0, 0.16 * rows)])
    T = len(diagnosis["accuracy"])
    steps = range(1, T + 1)

    over_steps, alike, rates, energy = axes.flat
    over_steps.plot(steps, [100 * a for a in diagnosis["accuracy"]], "o-", color="C0")
    over_steps.set(xlabel="steps t", xticks=steps)
    over_steps.set_ylabel("accuracy after t steps, %", color="C0")
    entropy = over_steps.twinx()
    entropy.plot(steps, diagnosis["entropy"], "s--", color="C1")
    entropy.set_ylabel("entropy of the prediction, nats", color="C1")

    cka = [[math.nan if v is None else v for v in row] for row in diagnosis["cka"]]
    image = alike.imshow(cka, vmin=0, vmax=1, cmap="viridis", origin="lower")
    alike.set(title="linear CKA of pooled features", xlabel="step", ylabel="step")
    alike.set(xticks=range(T), xticklabels=steps, yticks=range(T), yticklabels=steps)
    figure.colorbar(image, ax=alike)

    _bars(rates, {name: 100 * rate for name, rate in diagnosis["firing_rate"].items()}, "C2")
    rates.set(title="firing rate", xlabel="neurons that fire at a step, %")
    macs = {name for name, count in diagnosis["macs"].items() if count > 0}
    colors = ["C3" if name in macs else "C0" for name in diagnosis["energy_uj"]]
    _bars(energy, diagnosis["energy_uj"], colors)
    total, dense = diagnosis["energy_uj_total"], diagnosis["energy_uj_dense"]
    energy.set_title(f"energy of a sample: {total:.3g} µJ ({dense:.3g} µJ by MACs)")
    energy.set_xlabel("µJ (blue: additions, red: multiplications and additions)")
    figure.savefig(path, dpi=90)


def _bars(axis: Any, values: dict[str, float], color: str | list[str]) -> None:
    """One bar a layer, the first on top."""
    axis.barh(range(len(values)), list(values.values()), color=color)
    axis.set_yticks(range(len(values)), list(values), fontsize=6)
    axis.invert_yaxis()


def _numbers(x: Tensor) -> list[Any]:
    """Nested lists, None for NaN."""
    if x.ndim > 1:
        return [_numbers(row) for row in x]
    return [None if math.isnan(v) else v for v in x.tolist()]
