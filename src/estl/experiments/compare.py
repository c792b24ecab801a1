"""`estl compare`: the supervisions of the written design side by side, on one recipe.

The five experiments are those of the comparison script: plain cross-entropy, TET, and TSE with its
default, aggressive and conservative thresholds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from estl.experiments.sweep import Variant, spread

EXPERIMENTS = {
    "plain": ("cross-entropy of the mean over time", "MeanCE", {}),
    "tet": ("TET, means 1, lamb 0.001", "TET", {"means": 1.0, "lamb": 1e-3}),
    "tse": ("TSE, tau_f 0.5, kappa 1", "TSE", {"tau_f": 0.5, "kappa": 1.0}),
    "tse-aggressive": ("TSE, tau_f 0.3, kappa 0.5", "TSE", {"tau_f": 0.3, "kappa": 0.5}),
    "tse-conservative": ("TSE, tau_f 0.7, kappa 2", "TSE", {"tau_f": 0.7, "kappa": 2.0}),
}
"""By name: what it is, which supervision, its arguments."""


def experiments(names: Sequence[str] | None = None) -> list[Variant]:
    """The experiments as words for `estl fit`; all if `names` is None.

    Raises:
        ValueError: an unknown name.

    >>> experiments(["tet"])[0].words
    ('--learner.part_lr=null', '--supervision=estl.supervision.TET',
     '--supervision.init_args.means=1.0', '--supervision.init_args.lamb=0.001')
    """
    unknown = set(names or ()) - set(EXPERIMENTS)
    if unknown:
        raise ValueError(
            f"no experiment {min(unknown)!r}: the experiments are {', '.join(EXPERIMENTS)}"
        )
    return [
        Variant(
            name,
            what,
            (
                "--learner.part_lr=null",
                f"--supervision=estl.supervision.{supervision}",
                *(f"--supervision.init_args.{key}={value}" for key, value in arguments.items()),
            ),
        )
        for name, (what, supervision, arguments) in EXPERIMENTS.items()
        if names is None or name in names
    ]


def robustness(variants: Sequence[Variant], seeds: Sequence[int], folder: Path, eps: float) -> str:
    """Accuracy of every finished run under attacks and noise; writes `robustness.md` and `.json`.

    The final weights are tested, once: what a run folder already holds for this `eps` is not
    computed again.

    Args:
        variants: the rows.
        seeds: their runs.
        folder: the sweep's.
        eps: of the attacks, a share of each sample's range (`attacks`).

    Returns:
        The Markdown: mean and standard deviation over seeds, in percent.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for variant in variants:
        runs = (folder / variant.name / f"seed{seed}" for seed in seeds)
        found[variant.name] = [_under_attack(run, eps) for run in runs]
    conditions = list(next(iter(found.values()))[0])
    lines = [
        f"Accuracy (%), final weights, under attack (eps {eps:.4f} of a sample's range) and noise:",
        "",
        "| |" + "|".join(f" {condition} " for condition in conditions) + "|",
        "|---|" + "---|" * len(conditions),
    ]
    for name, runs_found in found.items():
        cells = [
            "{:.1f} ± {:.1f}".format(*spread([100 * run[condition] for run in runs_found]))
            for condition in conditions
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join([*lines, ""])
    (folder / "robustness.md").write_text(text)
    (folder / "robustness.json").write_text(json.dumps({"eps": eps, "runs": found}, indent=2))
    return text


def _under_attack(run: Path, eps: float) -> dict[str, float]:
    from estl.training.run import test

    path = run / "robustness.json"
    if path.exists():
        held: dict[str, Any] = json.loads(path.read_text())
        if held["eps"] == eps:
            return dict(held["robustness"])
    results = test(run / "last.ckpt", None, None, attacks=("fgsm", "pgd"), eps=eps, noisy=True)
    path.write_text(json.dumps({"eps": eps} | results, indent=2) + "\n")
    return dict(results["robustness"])
