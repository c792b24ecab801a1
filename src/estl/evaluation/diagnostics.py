"""What a student does over its time steps and in its layers, and what that costs.

`diagnose` returns numbers for a run folder's JSON. Energy is an estimate by counting (`energy.py`).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from estl.evaluation.accuracy import hits, running_mean
from estl.evaluation.energy import MAC_PJ, Activity, watch
from estl.types import Batch, Output, Supervision


def prediction_entropy(logits: Float[Tensor, "B T K"]) -> Float[Tensor, "B T"]:
    """Entropy in nats of the prediction after each step t, softmax(1/t sum_{s<=t} z_s); up to ln K.

    >>> entropy = prediction_entropy(torch.zeros(1, 2, 4))
    >>> torch.testing.assert_close(entropy.exp(), torch.full((1, 2), 4.0))
    """
    log_p = running_mean(logits).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def step_cosine(features: Float[Tensor, "B T *map"]) -> Float[Tensor, "T T"]:
    """Cosine of the angle between the flattened features of two steps, mean over the samples.

    A step without any spike has cosine 0 with all steps, itself included.

    >>> cosine = step_cosine(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    >>> torch.testing.assert_close(cosine, torch.tensor([[1.0, 0.5**0.5], [0.5**0.5, 1.0]]))
    """
    x = F.normalize(features.flatten(2).float(), dim=-1)
    return (x @ x.mT).mean(0)


def step_cka(features: Float[Tensor, "n T D"]) -> Float[Tensor, "T T"]:
    """Linear centered kernel alignment of the features of two steps, in [0,1].

        CKA(X, Y) = |Y^T X|^2 / (|X^T X| |Y^T Y|)

    with Frobenius norms of the centered X, Y (n samples, D) (Kornblith et al., ICML 2019, Eq. 3 and
    Section 4). Rotations and scales of a step's features do not change it. With few samples
    for D, it is biased towards 1: compare only values for the same n. NaN where a step's features
    are the same for all samples.

    >>> x = torch.rand(20, 1, 3)
    >>> cka = step_cka(torch.cat((x, 2 * x.flip(-1)), dim=1))
    >>> torch.testing.assert_close(cka, torch.ones(2, 2).double())
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
    """At each step, the share of places that a mask erases, and of samples that lose all places.

    >>> keep = torch.tensor([[[1, 1], [0, 1]], [[1, 1], [0, 0]]]).bool().unsqueeze(2)
    >>> [share.tolist() for share in erased_per_step(keep)]
    [[0.0, 0.75], [0.0, 0.5]]
    """
    gone = ~keep.flatten(2)
    return gone.float().mean((0, 2)), gone.all(-1).float().mean(0)


@torch.no_grad()
def diagnose(
    student: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    supervision: Supervision | None = None,
    see: Callable[[Output, Batch], None] | None = None,
) -> dict[str, Any]:
    """Metrics of `student` in eval mode over `batches`, as values that JSON can hold.

    Over steps t = 1..T: `accuracy` and `entropy` of the prediction after t steps; `cosine` of the
    maps and `cka` of the pooled features between steps (T x T, None where undefined); what the
    `supervision` would erase here (`erased`, `erased_everywhere`), None if it erases no places. Per
    layer: `firing_rate`, and `firing_rate_steps` at each step if the layer is a `LIF`; `acs`,
    `macs` and `energy_uj` of one sample's T steps. Over all layers: `energy_uj_total`, and
    `energy_uj_dense`, if every operation were a MAC; `uncounted` names the layers with weights that
    are in neither.

    `see` is called with every output and its batch, so that other uses need no second pass. The
    student stays on `device` and in eval mode; the supervision's schedules are taken at their
    current progress.

    Raises:
        ValueError: no batches.
    """
    student = student.to(device).eval()
    activity, places, samples = Activity(), 0, 0
    sums: dict[str, Tensor] = {}
    pooled = []
    for batch in batches:
        batch = batch.to(device)
        B = len(batch.label)
        if samples == 0:
            places = student(batch.events[:1]).features.shape[-2:].numel()
        with watch(student, activity, places):
            output = student(batch.events)
        found = {
            "accuracy": hits(output.logits, batch.label).double().mean(0),
            "entropy": prediction_entropy(output.logits).mean(0),
            "cosine": step_cosine(output.features),
        }
        keep = None if supervision is None else supervision.keep(output, batch)
        if keep is not None:
            found["erased"], found["erased_everywhere"] = erased_per_step(keep)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + B * value.double().cpu()
        pooled.append(output.features.mean((-2, -1)).float().cpu())
        samples += B
        if see is not None:
            see(output, batch)
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
        "firing_rate_steps": activity.step_rates,
        "acs": {name: layer.acs / samples for name, layer in layers.items()},
        "macs": {name: layer.macs / samples for name, layer in layers.items()},
        "energy_uj": microjoules,
        "energy_uj_total": sum(microjoules.values()),
        "energy_uj_dense": sum(MAC_PJ * layer.dense for layer in layers.values()) / samples / 1e6,
        "uncounted": activity.uncounted,
    }


def summary(diagnosis: dict[str, Any]) -> dict[str, float | None]:
    """One number per quantity of `diagnose`.

    `cosine` and `cka` are means over pairs of different steps (None if any is undefined, or T is
    1), `firing_rate` is the mean over layers, `erased` over steps 2..T.

    >>> summary({"cosine": [[1.0, 0.5], [0.5, 1.0]], "cka": [[1.0, None], [None, 1.0]],
    ...          "firing_rate": {"a": 0.25, "b": 0.75}, "energy_uj_total": 2.0, "erased": None})
    {'cosine': 0.5, 'cka': None, 'firing_rate': 0.5, 'energy_uj': 2.0, 'erased': None}
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
    """Mean of the entries off the diagonal, None if there are none or one is undefined."""
    values = [v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _numbers(x: Tensor) -> list[Any]:
    """Nested lists, with None for NaN."""
    if x.ndim > 1:
        return [_numbers(row) for row in x]
    return [None if math.isnan(v) else v for v in x.tolist()]
