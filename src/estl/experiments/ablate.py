"""`estl ablate`: what each part of the edge-guided distillation adds, one rung at a time.

The rungs are those of the written design: (1) events only, (2) fixed CLIP distillation, (3) edges
and fusion, (4) alignment, (5) contrastive learning; (2s) and (2w) beside (3), the edges of a fixed
filter and those that only the other terms define; and (6) the bridge. (2b) is the bridge on
(2) alone; (2k) and (2bk) distill the classes of a probe of the teacher into the mean over time,
(2kt) and (2bkt) into each time step; (1t) trains each time step on the label. The controls of (6)
and (2bk): (x) twice the steps without a bridge, (s) Sobel edges, (m) the simulator, (j) jittered
copies of the pairs' own images.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from estl.experiments.sweep import Variant
from estl.supervision import TET, EdgeGuidedDistillation, MeanCE
from estl.supervision.terms import WEIGHTS, WRITTEN, trained_parts
from estl.training.names import public_path

GUIDED = public_path(EdgeGuidedDistillation)


class Rung(NamedTuple):
    """One rung: what it is, its edges, its terms, its bridge (None for none, otherwise what it
    changes in `data.init_args.bridge`), and its target if that is not the recipe's.
    """

    what: str
    edges: str = "none"
    terms: tuple[str, ...] = ()
    bridge: dict[str, Any] | None = None
    target: str | None = None


_FIXED = ("cls", "global_distill", "patch_distill")
_SAID = (*_FIXED, "logit_distill")
_BRIDGED = (*_SAID, "edge_events")
_TRUE = (*_FIXED, "edge_events")
_ALIGNED = (*_TRUE, "edge_align")
_ALL = (*_ALIGNED, "contrastive")
_JITTER = {"shift": 0.1, "rotation": 15.0, "scale": 0.15}

RUNGS = {
    "1": Rung("events only"),
    "1t": Rung("(1), each time step asked: TET, lamb 0"),
    "2": Rung("fixed CLIP: + global_distill, patch_distill", "none", _FIXED),
    "2b": Rung("fixed CLIP and the bridge: (2) + edge_events", "learned", _TRUE, {}, "pooled"),
    "2k": Rung("fixed CLIP and its classes: (2) + logit_distill", "none", _SAID),
    "2bk": Rung("fixed CLIP, its classes, the bridge: (2b) + (2k)", "learned", _BRIDGED, {},
                "pooled"),
    "2kt": Rung("(2k) at each time step", "none", _SAID),
    "2bkt": Rung("fixed CLIP, its classes at each step, the bridge", "learned", _BRIDGED, {},
                 "pooled"),
    "2s": Rung("(2) + fixed Sobel edges, fused", "sobel", _FIXED),
    "2w": Rung("(2) + written edges, fused: + edge_reg", "written", (*_FIXED, "edge_reg")),
    "3": Rung("(2) + edges of events, fused: + edge_events", "learned", _TRUE),
    "4": Rung("(3) + edge_align", "learned", _ALIGNED),
    "5": Rung("(4) + contrastive", "learned", _ALL),
    "6": Rung("all terms (5) + the bridge", "learned", _ALL, {}),
    "6x": Rung("control: (2), twice the steps", "none", _FIXED),
    "6kx": Rung("control: (2k), twice the steps", "none", _SAID),
    "6s": Rung("control: (6), drawn from Sobel edges", "learned", _ALL, {}),
    "6m": Rung("control: (6), simulated", "learned", _ALL, {"recordings": "simulated"}),
    "6j": Rung("control: (6), of the pairs' own images, jittered", "learned", _ALL,
               {"images": None, "augment": _JITTER}),
    "2bks": Rung("control: (2bk), drawn from Sobel edges", "learned", _BRIDGED, {}, "pooled"),
    "2bkm": Rung("control: (2bk), simulated", "learned", _BRIDGED, {"recordings": "simulated"},
                 "pooled"),
    "2bkj": Rung("control: (2bk), of the pairs' own images, jittered", "learned", _BRIDGED,
                 {"images": None, "augment": _JITTER}, "pooled"),
}  # fmt: skip
"""By name."""

TWICE = ("6x", "6kx")
"""Rungs that train for twice the recipe's epochs."""

EACH_STEP = ("2kt", "2bkt")
"""Rungs that distill the teacher's classes into each time step."""


def rungs(recipe: dict[str, Any], names: Sequence[str] = ()) -> list[Variant]:
    """The rungs of a recipe whose supervision is the guided distillation.

    Every rung keeps the recipe's own arguments (teacher, temperature, weights) and differs in the
    edges, in which terms are there, and in the bridge. A term without a weight gets that of
    `WRITTEN`, or 1; the recipe's further terms (edge_reg, target_cls) are kept on rungs with
    learned edges.

    Args:
        recipe: plain values of the last rung.
        names: which rungs; all that the recipe can have if empty.

    Raises:
        ValueError: another supervision, an unknown name, a rung that the recipe cannot have.

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
    bridged = bool(recipe.get("data", {}).get("init_args", {}).get("bridge"))
    epochs = recipe.get("trainer", {}).get("max_epochs")
    for name in names:
        if RUNGS[name].bridge is not None and not bridged:
            raise ValueError(
                f"rung {name} is about the bridge: give the recipe data.init_args.bridge"
            )
        if name in TWICE and not epochs:
            raise ValueError(f"rung {name} doubles the epochs: give --epochs")
    able = [
        name
        for name, rung in RUNGS.items()
        if (rung.bridge is None or bridged) and (name not in TWICE or (bridged and epochs))
    ]
    return [Variant(name, RUNGS[name].what, _overlay(recipe, name)) for name in names or able]


def _overlay(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """What a rung changes in the recipe; parts that it lacks have no learning rate."""
    rung = RUNGS[name]
    arguments = recipe["supervision"].get("init_args", {})
    given = WEIGHTS | (arguments.get("weights") or {})
    # Of the written edges edge_reg is their own, and on rung 2w anyway.
    asked = ("target_cls",) if arguments.get("edges") == "written" else ("edge_reg", "target_cls")
    further = [t for t in asked if (arguments.get("weights") or {}).get(t)]
    terms = {*rung.terms, *(further if rung.edges == "learned" else ())}
    rates = recipe.get("learner", {}).get("part_lr") or {}
    target = rung.target or arguments.get("target", "pooled")
    if rung.target is None and target == "pooled":  # as the best rung has it
        target = "fused"
    usual = {term: given[term] or WRITTEN[term] or 1.0 for term in given}
    if arguments.get("warm_up"):  # then it may train the edges alone
        usual["edge_events"] = given["edge_events"]
    terms = {term for term in terms if usual[term]}
    parts = {"student", *trained_parts(terms, rung.edges, target)}
    overlay: dict[str, Any] = {
        "learner": {
            "part_lr": {part: lr for part, lr in rates.items() if part.partition(".")[0] in parts}
            or None
        }
    }
    bridge = recipe.get("data", {}).get("init_args", {}).get("bridge")
    if bridge:
        kept = None if rung.bridge is None else bridge | rung.bridge
        overlay["data"] = {"init_args": {"bridge": kept}}
    if name in TWICE:
        overlay["trainer"] = {"max_epochs": 2 * recipe["trainer"]["max_epochs"]}
    if name == "1t":
        return overlay | {
            "supervision": {"class_path": public_path(TET), "init_args": {"lamb": 0.0}}
        }
    if not rung.terms:
        return overlay | {"supervision": {"class_path": public_path(MeanCE)}}
    changes: dict[str, Any] = {
        "edges": rung.edges,
        "weights": {term: usual[term] if term in terms else 0.0 for term in given},
        "target": target,
        "each_step": name in EACH_STEP,
        # Where nothing else trains the fusion, its target has to. Such a target gives way.
        "detach_target": rung.edges != "none"
        and bool({"contrastive", "target_cls"} & terms)
        and arguments.get("detach_target", True),
    }
    if name in ("6s", "2bks"):
        changes["bridge"] = "sobel"
    if arguments.get("cache_teacher") and "augment" in (rung.bridge or {}):  # which it refuses
        changes["cache_teacher"] = False
    return overlay | {"supervision": {"init_args": changes}}
