"""`estl ladder`: what each part of the edge-guided distillation adds, one rung at a time.

The rungs are those of the written design: (1) events only, (2) fixed CLIP distillation, (3) dynamic
edges and fusion, (4) contrastive learning, (5) all terms; and (2s), the static variant that the
design argues against: edges of a fixed filter.
"""

import json
from typing import Any

from estl.experiments.sweep import Variant
from estl.supervision.distillation import WEIGHTS

GUIDED = "estl.supervision.EdgeGuidedDistillation"
RUNGS = {
    "1": ("events only", "none", ()),
    "2": ("+ fixed CLIP distillation", "none", ("cls", "global_distill")),
    "2s": ("+ fixed Sobel edges, fused", "sobel", ("cls", "global_distill")),
    "3": ("+ learned edges, fused", "learned", ("cls", "global_distill", "edge_reg")),
    "4": ("+ contrastive", "learned", ("cls", "global_distill", "edge_reg", "contrastive")),
    "5": ("all terms", "learned", tuple(WEIGHTS)),
}
"""By name: what it is, which edges, which terms."""


def rungs(recipe: dict[str, Any], names: list[str] | None = None) -> list[Variant]:
    """The rungs of a recipe whose supervision is the guided distillation.

    Every rung keeps the recipe's own arguments (teacher, temperature, weights) and differs in the
    edges and in which terms are there.

    Args:
        recipe: the resolved configuration of the fifth rung.
        names: which rungs; all if None.

    Raises:
        ValueError: another supervision, or an unknown name.

    >>> guided = {"supervision": {"class_path": GUIDED, "init_args": {"teacher": "t"}}}
    >>> [rung.name for rung in rungs(guided, ["1", "5"])]
    ['1', '5']
    """
    spec = recipe["supervision"]
    if not spec["class_path"].endswith(".EdgeGuidedDistillation"):
        raise ValueError(f"the ladder needs a recipe with {GUIDED}, not {spec['class_path']}")
    unknown = set(names or ()) - set(RUNGS)
    if unknown:
        raise ValueError(f"no rung {min(unknown)}: the rungs are {', '.join(RUNGS)}")
    chosen = []
    for name, (what, edges, terms) in RUNGS.items():
        if names is not None and name not in names:
            continue
        if not terms:
            words = ["--supervision=estl.supervision.MeanCE", "--learner.part_lr=null"]
        else:
            weights = WEIGHTS | (spec["init_args"].get("weights") or {})
            here = {term: weight if term in terms else 0.0 for term, weight in weights.items()}
            words = [
                f"--supervision.init_args.edges={edges}",
                f"--supervision.init_args.weights={json.dumps(here)}",
            ]
            # On these rungs nothing but the attached target trains the fusion.
            if edges != "none" and "contrastive" not in terms:
                words.append("--supervision.init_args.detach_target=false")
            if edges != "learned":
                words.append("--learner.part_lr=null")
        chosen.append(Variant(name, what, tuple(words)))
    return chosen
