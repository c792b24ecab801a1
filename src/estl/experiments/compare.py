"""`estl compare`: the supervisions of the written design side by side, on one recipe.

Five of the experiments are those of the comparison script: plain cross-entropy, TET, and TSE with
its default, aggressive and conservative thresholds. TRE and the sum of TSE and TET run when named.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from estl.experiments.sweep import Variant
from estl.supervision import TET, TRE, TSE, MeanCE, Sum
from estl.training.names import class_paths, public_path
from estl.training.results import CheckpointResults
from estl.training.run import test

MEAN = {"reduction": "mean"}
"""As TET's loss: rows differ in what is supervised, and not in the size of a step of SGD too."""

EXPERIMENTS: dict[str, tuple[str, type, dict[str, Any]]] = {
    "plain": ("cross-entropy of the mean over time", MeanCE, {}),
    "tet": ("TET, means 1, lamb 0.001", TET, {"means": 1.0, "lamb": 1e-3}),
    "tse": ("TSE, tau_f 0.5, kappa 1", TSE, {"tau_f": 0.5, "kappa": 1.0} | MEAN),
    "tse-aggressive": ("TSE, tau_f 0.3, kappa 0.5", TSE, {"tau_f": 0.3, "kappa": 0.5} | MEAN),
    "tse-conservative": ("TSE, tau_f 0.7, kappa 2", TSE, {"tau_f": 0.7, "kappa": 2.0} | MEAN),
}
"""By name: what it is, which supervision, its arguments."""

MORE: dict[str, tuple[str, type, dict[str, Any]]] = {
    "tre": ("TRE, theta0 0.5, lamb 1", TRE, {"theta0": 0.5, "lamb": 1.0} | MEAN),
    "tse+tet": (
        "half of tse and half of tet",
        Sum,
        {
            "supervisions": [
                {"class_path": public_path(TSE), "init_args": MEAN},
                {"class_path": public_path(TET)},
            ],
            "weights": [0.5, 0.5],
        },
    ),
}
"""Those that run only when they are named."""


def experiments(names: Sequence[str] = ()) -> list[Variant]:
    """Experiments as variants of a recipe without a supervision.

    Those named, or the design's five if `names` is empty.

    Raises:
        ValueError: an unknown name.

    >>> experiments(["tet"])[0].overlay["supervision"]
    {'class_path': 'estl.supervision.TET', 'init_args': {'means': 1.0, 'lamb': 0.001}}
    """
    known = EXPERIMENTS | MORE
    if unknown := set(names) - set(known):
        raise ValueError(f"no experiment {min(unknown)!r}: the experiments are {', '.join(known)}")
    return [
        Variant(name, what, _overlay(supervision, arguments))
        for name, (what, supervision, arguments) in known.items()
        if name in (names or EXPERIMENTS)
    ]


def _overlay(supervision: type, arguments: dict[str, Any]) -> dict[str, Any]:
    spec = {"class_path": public_path(supervision), "init_args": dict(arguments)}
    return {"supervision": spec, "learner": {"part_lr": None}}


def robustness(
    variants: Sequence[Variant], seeds: Sequence[int], folder: Path, eps: float
) -> dict[str, list[CheckpointResults]]:
    """Every finished run of a sweep under attacks and noise, by variant.

    The final weights are tested, once: what a run folder already holds for this `eps` is not
    computed again.

    Args:
        variants: the rows.
        seeds: their runs.
        folder: the sweep's.
        eps: of the attacks, a share of each sample's range (`evaluation.attacks`).
    """
    return {
        variant.name: [_attacked(folder / variant.name / f"seed{seed}", eps) for seed in seeds]
        for variant in variants
    }


def _attacked(run: Path, eps: float) -> CheckpointResults:
    path = run / "robustness.json"
    if path.exists() and (held := CheckpointResults.read(path)).eps == eps:
        return held
    recipe = yaml.safe_load(
        (run / "config.yaml").read_text()
    )  # the user's own: it was trained here
    trust = sorted({path.rpartition(".")[0] for path in class_paths(recipe)})
    attacks = ("fgsm", "pgd")
    results = test(run / "last.ckpt", attacks=attacks, eps=eps, noisy=True, trust=trust)
    path.write_text(results.to_json())
    return results
