"""What a run must not hold out: things of its own training split, and what its teacher has seen."""

from dataclasses import replace

from estl.data.check import refuse_leaks, refuse_seen
from estl.guidance.teacher import ClipTeacher
from estl.training.recipe import Parts


def without_leaks(parts: Parts) -> Parts:
    """`parts`, with what is repeated within a split added; unchanged with `allow_leaks`.

    Raises:
        ValueError: one thing is in two splits, or an image that is held out is one that the
            supervision's teacher was trained on.
    """
    if parts.data.allow_leaks:
        return parts
    for module in parts.supervision.modules():
        if isinstance(module, ClipTeacher):
            refuse_seen(parts.data, module.trained_on, module.name_or_folder)
    return replace(parts, same=refuse_leaks(parts.data))
