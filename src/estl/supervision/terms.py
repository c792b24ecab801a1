"""The terms of the edge-guided distillation: weights, and the parts that they train."""

import math
from collections.abc import Collection
from typing import Literal, get_args

from estl.guidance.terms import Activity

EdgeKind = Literal["learned", "written", "sobel", "none"]

WEIGHTS = {
    "cls": 1.0,
    "global_distill": 5.0,
    "patch_distill": 3.0,
    "edge_align": 0.0,
    "contrastive": 0.0,
    "edge_events": 1.0,
    "edge_reg": 0.0,
    "target_cls": 0.0,
    "logit_distill": 1.0,
}
"""The terms, in the order in which they are reported, and their weights: those that did best on
every data set tried (docs/results.md).
"""

WRITTEN = WEIGHTS | {
    "global_distill": 0.5,
    "patch_distill": 0.3,
    "edge_align": 0.2,
    "contrastive": 0.3,
    "edge_reg": 0.1,
    "logit_distill": 0.0,
}
"""The weights of the written design, which has no edge_events with its own edges."""

_CHOICES = {
    "target": ("pooled", "fused", "written"),
    "align": get_args(Activity),
    "bridge": ("rates", "sobel"),
}

_ABSENT = {
    "learned": set[str](),
    "written": {"edge_events"},
    "sobel": {"edge_events", "edge_reg"},
    "none": {"edge_align", "edge_events", "edge_reg", "target_cls"},
}
"""Terms that have nothing to act on, for each kind of edges."""


def trained_parts(terms: Collection[str], edges: str, target: str = "pooled") -> set[str]:
    """The parts that are built and trained for `terms`; DDP refuses parameters no loss reaches.

    >>> sorted(trained_parts(["cls", "global_distill"], edges="sobel", target="fused"))
    ['fusion', 'projector']
    """
    student = not {"global_distill", "contrastive"}.isdisjoint(terms)
    fused = target != "pooled" and edges != "none" and (student or "target_cls" in terms)
    asked = {
        "projector": student,
        "fusion": fused,
        "edge_detector": edges in ("learned", "written")
        and (fused or not {"edge_align", "edge_events", "edge_reg"}.isdisjoint(terms)),
        "projector_patches": "patch_distill" in terms,
        "target_head": "target_cls" in terms,
        "probe": "logit_distill" in terms,
    }
    return {part for part, needed in asked.items() if needed}


def term_weights(changes: dict[str, float], edges: str, target: str = "pooled") -> dict[str, float]:
    """`WEIGHTS` with `changes`, without zeros and the terms that `edges` does not have.

    >>> term_weights({"cls": 2.0, "patch_distill": 0.0}, edges="none")
    {'cls': 2.0, 'global_distill': 5.0, 'logit_distill': 1.0}

    Raises:
        ValueError: an unknown term, a negative weight, or a weight of a term that `edges` lacks.
    """
    if edges not in _ABSENT:
        raise ValueError(f"edges must be one of {', '.join(_ABSENT)}, got {edges!r}")
    absent = _ABSENT[edges]
    for name, weight in changes.items():
        if name not in WEIGHTS:
            raise ValueError(f"weights has no term {name!r}: the terms are {', '.join(WEIGHTS)}")
        if weight < 0 or not math.isfinite(weight):
            raise ValueError(f"the weight of {name} must be 0 or more, got {weight}")
        if weight and name in absent:
            raise ValueError(f"edges={edges!r} has no {name} to weigh: leave its weight out")
    merged = {name: w for name, w in WEIGHTS.items() if name not in absent} | changes
    if target == "pooled" and merged.get("target_cls"):
        raise ValueError('target="pooled" is fixed: leave the weight of target_cls out')
    return {name: merged[name] for name in WEIGHTS if merged.get(name, 0.0)}


def check_options(warm_up: int, **chosen: str) -> None:
    """Raise ValueError for an unknown choice, or a negative number of steps.

    >>> check_options(0, align="softmx")
    Traceback (most recent call last):
    ValueError: align must be one of energy, softmax, got 'softmx'
    """
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")
    if warm_up < 0:
        raise ValueError(f"warm_up must be 0 or more steps, got {warm_up}")


def parts_and_frozen(
    terms: Collection[str],
    edges: str,
    target: str,
    warm: bool,
    align_edges: bool,
    detach_target: bool,
) -> tuple[set[str], bool]:
    """`trained_parts`, and whether learned edges stay as a warm-up leaves them; their detector is
    then not among the parts.

    Raises:
        ValueError: a part that would get no gradient from `terms`.

    >>> options = {"align_edges": False, "detach_target": False}
    >>> parts_and_frozen(["cls", "edge_align"], "learned", "pooled", warm=True, **options)
    (set(), True)
    """
    parts = trained_parts(terms, edges, target)
    teach_edges = {"edge_events", "edge_reg"} | ({"edge_align"} if align_edges else set())
    untaught = teach_edges.isdisjoint(terms)
    if frozen := edges == "learned" and warm and untaught:
        parts -= {"edge_detector"}
    if "fusion" in parts and detach_target and {"contrastive", "target_cls"}.isdisjoint(terms):
        raise ValueError(
            "detach_target=True with contrastive and target_cls of weight 0 leaves the fusion "
            'untrained: give one of them a weight, or use target="pooled"'
        )
    if "edge_detector" in parts and "fusion" not in parts and untaught:
        raise ValueError(f"no term trains edges={edges!r}: give edge_events or edge_reg a weight")
    return parts, frozen
