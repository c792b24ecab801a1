"""Training: the learner, recipes, runs and their results, checkpoints.

Lightning, which takes seconds, is imported when `Learner` is first asked for.
"""

from typing import TYPE_CHECKING, Any

from estl.training.checkpoint import load_student

if TYPE_CHECKING:
    from estl.training.learner import Learner

__all__ = ["Learner", "load_student"]


def __getattr__(name: str) -> Any:
    if name != "Learner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from estl.training.learner import Learner

    return Learner
