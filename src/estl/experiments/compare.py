"""`estl compare`: the supervisions of the written design side by side, on one recipe.

Five of the experiments are those of the comparison script: plain cross-entropy, TET, and TSE with
its default, aggressive and conservative thresholds. TRE and the sum of TSE and TET run when named,
and so do a user's own supervisions, each described by a file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from estl.experiments.sweep import Variant, rates_of_the_student
from estl.supervision import TET, TRE, TSE, MeanCE, Sum
from estl.training.files import aside
from estl.training.names import class_paths, public_path
from estl.training.recipe import merge
from estl.training.results import CheckpointResults, Results
from estl.training.run import test

MEAN = {"reduction": "mean"}
"""As in TET's loss: rows differ in what is supervised, and not also in SGD's step size."""

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


FILES = (".yaml", ".yml")
"""Suffixes of names that are files, each describing a row."""

ITS_OWN = ("seed", "output_dir")
"""Keys of a recipe that a sweep gives every run."""


def experiments(names: Sequence[str] = (), recipe: dict[str, Any] | None = None) -> list[Variant]:
    """Experiments as variants of a recipe without a supervision, whose student keeps its rates.

    Those named, or the design's five if `names` is empty. A name that ends in .yaml or .yml is a
    file (`described`); these come last, in the order of `names`.

    Raises:
        ValueError: an unknown name, two files of one name, or what `described` raises.

    >>> experiments(["tet"])[0].overlay["supervision"]
    {'class_path': 'estl.supervision.TET', 'init_args': {'means': 1.0, 'lamb': 0.001}}
    """
    known = EXPERIMENTS | MORE
    files = [Path(name) for name in names if name.endswith(FILES)]
    if unknown := set(names) - set(known) - {name for name in names if name.endswith(FILES)}:
        raise ValueError(
            f"no experiment {min(unknown)!r}: the experiments are {', '.join(known)}, and files "
            "that end in .yaml"
        )
    for i, path in enumerate(files):
        if path.stem in [other.stem for other in files[:i]]:
            raise ValueError(f"--only {path}: a second row {path.stem}: rename it, or leave it out")
    return [
        *(
            Variant(name, what, _overlay(supervision, arguments, recipe or {}))
            for name, (what, supervision, arguments) in known.items()
            if name in (names or EXPERIMENTS)
        ),
        *(described(path, recipe) for path in files),
    ]


def described(path: Path, recipe: dict[str, Any] | None = None) -> Variant:
    """The variant that a file describes: keys of a recipe, its `supervision` among them.

    Its name is the file's without the suffix; its description is the file's first line that begins
    with `#`, or else the class path of its supervision. As in the experiments of this module, only
    the rates of the student's parts in the recipe's `part_lr` count: others are its supervision's.

    Raises:
        ValueError: a file that cannot be read or holds no keys, one without a supervision (that of
            the recipe is not compared, so that none would be plain cross-entropy), with an empty
            key or one that a sweep sets; a name that is an experiment's or cannot be a folder's.
    """
    if path.stem in EXPERIMENTS | MORE:
        raise ValueError(f"--only {path}: {path.stem} is an experiment already: rename the file")
    if not re.fullmatch(r"[^\W_][\w.+-]*", path.stem):
        raise ValueError(
            f"--only {path}: its row and folder would be {path.stem!r}: rename the file to letters "
            "and digits, with - _ + . between them"
        )
    text, values = _read(path)
    supervision = values.get("supervision")
    spec = supervision.get("class_path") if isinstance(supervision, dict) else supervision
    if not isinstance(spec, str):
        raise ValueError(
            f"{path} chooses no supervision, and the recipe's is not compared: add one, as "
            f"supervision: {{class_path: {public_path(TSE)}}}"
        )
    for key, value in values.items():
        if key in ITS_OWN or value is None:
            why = "which a sweep gives to each run" if key in ITS_OWN else "but no value for it"
            raise ValueError(f"{path} has {key}, {why}: leave it out")
    lines = (line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
    what = next(filter(None, lines), spec)
    return Variant(path.stem, what, merge(rates_of_the_student(recipe or {}), values))


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a file, and the keys that it holds."""
    try:
        text = path.read_text()
        values = yaml.safe_load(text)
    except OSError as error:
        why = error.strerror
        raise ValueError(f"--only {path} cannot be read ({why}): give a YAML file") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        raise ValueError(f"{path} is not valid YAML{line}: correct it") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no keys of a recipe: give it one such as supervision")
    return text, values


def _overlay(
    supervision: type, arguments: dict[str, Any], recipe: dict[str, Any]
) -> dict[str, Any]:
    spec = {"class_path": public_path(supervision), "init_args": dict(arguments)}
    return {"supervision": spec} | rates_of_the_student(recipe)


def robustness(
    variants: Sequence[Variant], seeds: Sequence[int], folder: Path, eps: float
) -> dict[str, list[CheckpointResults]]:
    """Every finished run of a sweep under attacks and noise, by variant.

    The final weights are tested only once: results that a run folder already holds for this `eps`
    are not computed again.

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
    if path.exists():
        held = CheckpointResults.read(path)
        if held.eps == eps and held.since(Results.read(run / "results.json")):
            return held
    recipe = yaml.safe_load(
        (run / "config.yaml").read_text()
    )  # the user's own: it was trained here
    trust = sorted({path.rpartition(".")[0] for path in class_paths(recipe)})
    attacks = ("fgsm", "pgd")
    results = test(run / "last.ckpt", attacks=attacks, eps=eps, noisy=True, trust=trust)
    with aside(path) as file:
        file.write(results.to_json().encode())
    return results
