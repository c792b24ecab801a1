"""Reading a checkpoint, and the student in it. Imports neither Lightning nor a data set."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of `estl fit` as plain tensors and values (no code in it is run).

    `state_dict` is the student's, `classes` the class names in the order of the labels, `recipe`
    the configuration it was trained with.

    Raises:
        ValueError: no such file, or not a checkpoint of ESTL.
    """
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}: give the best*.ckpt or last.ckpt of a run folder")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict) or "recipe" not in checkpoint:
        raise ValueError(f"{path} was not written by estl fit (it holds no recipe)")
    return checkpoint


def make(parser: ArgumentParser, part: str, config: Namespace) -> Any:
    """The object that the configuration of `part` describes.

    Raises:
        Exception: what its class raises, without what jsonargparse wraps around it.
    """
    try:
        return parser.instantiate(Namespace({part: config}))[part]
    except ValueError as error:
        if error.__cause__ is None or "Does not validate" not in str(error):
            raise
        wrapped = error.__cause__
    raise wrapped


def load_student(path: str | Path) -> nn.Module:
    """The trained student of a checkpoint, in eval mode, ready to deploy.

        student = load_student("runs/digits/last.ckpt")
        logits = student(events).logits.mean(1)         # events (B,T,C,H,W)

    Raises:
        ValueError: see `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    parser = ArgumentParser()
    parser.add_subclass_arguments(nn.Module, "student")
    config = parser.parse_object({"student": checkpoint["recipe"]["student"]})
    student: nn.Module = make(parser, "student", config.student)
    student.load_state_dict(checkpoint["state_dict"])
    return student.eval()
