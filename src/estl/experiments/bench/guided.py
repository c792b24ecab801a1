"""A training step of the guided distillation: events only, fixed CLIP, all terms, the bridge."""

from typing import Any, NamedTuple

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from estl.experiments.bench.race import Work
from estl.experiments.bench.students import BUILD, events
from estl.guidance import ClipTeacher
from estl.supervision import EdgeGuidedDistillation, MeanCE
from estl.supervision.terms import WRITTEN
from estl.types import Batch, Supervision


class Sizes(NamedTuple):
    """Of a guided run: student, (B,T,side) of the recordings, images, fusion grid, teacher."""

    student: str
    frames: tuple[int, int, int]
    image: int
    edge_grid: int
    tower: dict[str, Any]
    dim: int


SIZES = {
    "recipe": Sizes(
        "recipe", (25, 5, 34), 34, 9,
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
         "num_attention_heads": 4, "image_size": 36, "patch_size": 4}, 128,
    ),
    "design": Sizes(
        "spikformer", (4, 10, 48), 224, 28,
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
         "num_attention_heads": 12, "image_size": 224, "patch_size": 16}, 256,
    ),
}  # fmt: skip
"""N-MNIST's recipe, and the sizes of the written design with its ViT-B/16; weights are random."""

_ALL: dict[str, Any] = {
    "target": "fused",
    "weights": WRITTEN | {"edge_reg": 0.0, "logit_distill": 1.0},
}

_KEPT: dict[str, Any] = {"cache_teacher": True, "warm_up": 300}
_STAY = {"edge_events": 0.0}

KINDS: dict[str, dict[str, Any] | None] = {
    "events only": None,
    "fixed CLIP": {"edges": "none"},
    "all terms": _ALL,
    "fixed CLIP, bridge": {},
    "all terms, bridge": _ALL,
    "fixed CLIP, kept": _KEPT | {"edges": "none"},
    "all terms, kept": _KEPT | _ALL | {"weights": _ALL["weights"] | _STAY},
    "fixed CLIP, kept, bridge": _KEPT | {"weights": _STAY},
    "all terms, kept, bridge": _KEPT | _ALL | {"weights": _ALL["weights"] | _STAY},
}
"""What guides a step. With the bridge, fixed CLIP is the default of `EdgeGuidedDistillation`. Where
"kept", the teacher has seen the images before, and the edges are those of the warm-up.
"""


def teacher(tower: dict[str, Any]) -> ClipTeacher:
    """A tower of random weights."""
    torch.manual_seed(0)
    return ClipTeacher(CLIPVisionModel(CLIPVisionConfig(**tower)))


def step(sizes: str, kind: str) -> Work:
    """Forward, backward and AdamW of a step of `KINDS` at `SIZES`.

    The bridge adds as many images without a recording as the batch has pairs.
    """
    size, options = SIZES[sizes], KINDS[kind]
    B, T, _ = size.frames
    supervision: Supervision = MeanCE()
    if options is not None:
        supervision = EdgeGuidedDistillation(
            teacher(size.tower), student_dim=size.dim, T=T, classes=10, edge_grid=size.edge_grid,
            **options,
        )  # fmt: skip
    torch.manual_seed(0)
    student = BUILD[size.student]()
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(2, B, 3, size.image, size.image, generator=draw)
    unpaired = images[1] if kind.endswith("bridge") else None
    batch = Batch(events(*size.frames), torch.arange(B) % 10, images[0], unpaired=unpaired)
    optimizer = torch.optim.AdamW([*student.parameters(), *supervision.parameters()], lr=1e-4)

    def work() -> None:
        optimizer.zero_grad()
        whole = supervision.extend(batch)
        supervision(student(whole.events), whole).total.backward()
        optimizer.step()

    return work
