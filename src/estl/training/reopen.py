"""A checkpoint's student and data, built again as they were trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from estl.data.module import EventData
from estl.data.published import AbsentItemsError
from estl.training.checkpoint import build_student, part_of, read_checkpoint
from estl.training.names import refuse_strangers
from estl.training.recipe import build_data, parse_recipe
from estl.training.screen import quiet


@dataclass(frozen=True)
class Reopened:
    """What a checkpoint was trained with.

    Args:
        student: in eval mode.
        data: its labels are numbered as the checkpoint's classes.
        recipe: plain values.
        supervision: its class path.
    """

    student: nn.Module
    data: EventData
    recipe: dict[str, Any]
    supervision: str


def reopen(
    path: Path, data_path: str | None = None, *, split: str = "test", trust: Sequence[str] = ()
) -> Reopened:
    """Student and data of a checkpoint.

    Args:
        path: the checkpoint.
        data_path: another root of the same layout, or None. If the published lists that the recipe
            names do not fit it, its whole test split is used.
        split: the split that must not be empty.
        trust: modules that the checkpoint may name besides ESTL's own.

    Raises:
        ValueError: no checkpoint of ESTL, a class that is not trusted, data of other classes, an
            empty split.
    """
    saved = read_checkpoint(path)
    recipe = {"seed": 0} | saved["recipe"]
    refuse_strangers([part_of(saved, name, path) for name in ("data", "student")], trust)
    supervision = part_of(saved, "supervision", path)["class_path"]
    if data_path is not None:
        recipe["data"]["init_args"]["root"] = data_path
    try:
        data = _data_of(recipe)
    except AbsentItemsError:
        if data_path is None:
            raise
        # The list is of the recordings that were trained on; here are others.
        recipe["data"]["init_args"]["splits"] = None
        data = _data_of(recipe)
    data.follow(saved["classes"])
    data.require(split)
    return Reopened(build_student(saved, path, trust), data, recipe, supervision)


@quiet()
def _data_of(recipe: dict[str, Any]) -> EventData:
    """The data set of a checkpoint's recipe."""
    return build_data(*parse_recipe({key: recipe[key] for key in ("seed", "data")}))
