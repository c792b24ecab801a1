"""`estl ablate`: what each part of the edge-guided distillation adds, one rung at a time.

The rungs are those of the written design: (1) events only, (2) fixed CLIP distillation, (3) dynamic
edges and fusion, (4) contrastive learning, (5) all terms; and (2s), the static variant that the
design argues against: edges of a fixed filter.
"""

from collections.abc import Sequence
from typing import Any

from estl.experiments.sweep import Variant
from estl.supervision import EdgeGuidedDistillation, MeanCE
from estl.supervision.distillation import WEIGHTS, trained_parts
from estl.training.names import public_path

GUIDED = public_path(EdgeGuidedDistillation)
RUNGS = {
    "1": ("events only", "none", ()),
    "2": ("+ fixed CLIP distillation", "none", ("cls", "global_distill")),
    "2s": ("+ fixed Sobel edges, fused", "sobel", ("cls", "global_distill")),
    "3": ("+ learned edges, fused", "learned", ("cls", "global_distill", "edge_reg")),
    "4": ("+ contrastive", "learned", ("cls", "global_distill", "edge_reg", "contrastive")),
    "5": ("all terms", "learned", tuple(WEIGHTS)),
}
"""By name: what it is, which edges, which terms."""


def rungs(recipe: dict[str, Any], names: Sequence[str] = ()) -> list[Variant]:
    """The rungs of a recipe whose supervision is the guided distillation.

    Every rung keeps the recipe's own arguments (teacher, temperature, weights) and differs in the
    edges and in which terms are there.

    Args:
        recipe: plain values of the fifth rung.
        names: which rungs; all if empty.

    Raises:
        ValueError: another supervision, or an unknown name.

    >>> guided = {"supervision": {"class_path": GUIDED, "init_args": {"teacher": "t"}}}
    >>> [rung.name for rung in rungs(guided, ["1", "5"])]
    ['1', '5']
    """
    spec = recipe.get("supervision", {})
    if spec.get("class_path") != GUIDED:
        raise ValueError(f"an ablation needs a recipe with {GUIDED}, not {spec.get('class_path')}")
    unknown = set(names) - set(RUNGS)
    if unknown:
        raise ValueError(f"no rung {min(unknown)}: the rungs are {', '.join(RUNGS)}")
    weights = WEIGHTS | (spec.get("init_args", {}).get("weights") or {})
    rates = recipe.get("learner", {}).get("part_lr") or {}
    return [
        Variant(name, what, _overlay(edges, terms, weights, rates))
        for name, (what, edges, terms) in RUNGS.items()
        if not names or name in names
    ]


def _overlay(
    edges: str, terms: Sequence[str], weights: dict[str, float], rates: dict[str, float]
) -> dict[str, Any]:
    """What a rung changes; a part that it lacks has no learning rate."""
    parts = {"student", *trained_parts(terms, edges)}
    learner = {"part_lr": {part: lr for part, lr in rates.items() if part in parts} or None}
    if not terms:
        return {"supervision": {"class_path": public_path(MeanCE)}, "learner": learner}
    arguments: dict[str, Any] = {
        "edges": edges,
        "weights": {term: weight if term in terms else 0.0 for term, weight in weights.items()},
    }
    if edges != "none" and "contrastive" not in terms:
        arguments["detach_target"] = False  # nothing else trains the fusion on these rungs
    return {"supervision": {"init_args": arguments}, "learner": learner}
