"""Training: the learner, recipes, runs and their results, checkpoints.

Lightning, which takes seconds, is imported when `Learner` is first asked for, and the Hub's client
when `Pretrained` is.
"""

from typing import TYPE_CHECKING, Any

from estl.training.checkpoint import load_student, load_weights

if TYPE_CHECKING:
    from estl.training.hub import Pretrained
    from estl.training.learner import Learner

__all__ = ["Learner", "Pretrained", "load_student", "load_weights"]


def __getattr__(name: str) -> Any:
    if name == "Learner":
        from estl.training.learner import Learner

        return Learner
    if name == "Pretrained":
        from estl.training.hub import Pretrained

        return Pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
