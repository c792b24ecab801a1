"""Students that answer otherwise after every step, without training, or that functions build."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from estl.students import VGGSNN


def annotated(classes: int = 2, in_channels: int = 2) -> nn.Module:
    """A student that a function builds."""
    return VGGSNN(classes, in_channels, layers=(4, "AP"), pooled=True)


def unannotated(classes=2, in_channels=2):  # type: ignore[no-untyped-def]
    """The same, but the command line cannot know what it returns."""
    return annotated(classes, in_channels)


def save_changeable(
    path: Path, events: Tensor, data: dict[str, Any], classes: list[str], **recipe: Any
) -> Path:
    """Its checkpoint; the norms have the statistics of `events` (B,T,2,H,W)."""
    options = {"layers": [8, "AP", 8], "pooled": True, "classes": 2}
    torch.manual_seed(0)
    student = VGGSNN(classes=2, layers=(8, "AP", 8), pooled=True)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    student(events)
    part = {"class_path": "estl.students.VGGSNN", "init_args": options}
    saved = {
        "state_dict": student.state_dict(),
        "classes": classes,
        "recipe": {"data": data, "student": part} | recipe,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, path)
    return path
