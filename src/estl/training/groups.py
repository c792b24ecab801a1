"""The optimizer's groups: the learning rate of each part, and what has weight decay."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn


def owner(name: str) -> str:
    """The part of the learner that a parameter belongs to.

    >>> owner("student.head.weight"), owner("supervision.supervisions.1.projector.weight")
    ('student', 'projector')
    """
    path = [word for word in name.split(".") if not word.isdigit()]
    below = [word for word in path[1:-1] if word != "supervisions"]
    return path[0] if path[0] == "student" or not below else below[0]


def part_of(name: str, part_lr: Mapping[str, float]) -> str:
    """The part that a parameter of the learner belongs to: the innermost one in `part_lr`, or its
    half of the learner.

    >>> part_of("student.head.weight", {"student.head": 1e-2}), part_of("student.head.weight", {})
    ('student.head', 'student')
    """
    path = name.split(".")
    own = path[0] == "student"  # whose layers may have a part's name
    parts = [".".join(path[:i]) for i in range(1, len(path))] if own else path
    return next((part for part in reversed(parts) if part in part_lr), path[0])


def parameter_groups(
    learner: nn.Module, lr: float, weight_decay: float, part_lr: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Each part of the learner with its learning rate; norms and biases without weight decay.

    Raises:
        ValueError: a frozen student; a part in `part_lr` that no parameter belongs to.
    """
    members: dict[tuple[str, bool], list[nn.Parameter]] = defaultdict(list)
    named = dict(learner.named_parameters())
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    for name, parameter in trained.items():
        members[part_of(name, part_lr), parameter.ndim > 1].append(parameter)
    if not any(name.startswith("student.") for name in trained):
        raise ValueError("nothing of the student is trained: set requires_grad on a part of it")
    if absent := set(part_lr) - {part_of(name, part_lr) for name in named}:
        raise ValueError(
            f"part_lr names {sorted(absent)}, which no parameter belongs to: "
            "correct learner.part_lr"
        )
    return [
        {
            "params": parameters,
            "lr": part_lr.get(part, lr),
            "weight_decay": weight_decay if decays else 0.0,
            "name": f"{part}/{'weights' if decays else 'biases'}",
        }
        for (part, decays), parameters in members.items()
    ]
