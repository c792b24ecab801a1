"""Reading a checkpoint, and the student in it. Imports neither Lightning nor a data set."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn

from estl.training.names import refuse_strangers

_SAME = "class, options and frame size have to be the same, but for the number of classes"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of `estl fit` as plain tensors and values (no code in it is run).

    `state_dict` is the student's, `classes` the class names in the order of the labels, `recipe`
    the configuration it was trained with. Every part of the file is checked against the checksum
    that `torch.save` has put beside it, which `torch.load` does not do.

    Raises:
        ValueError: no such file, damaged, or not a checkpoint of ESTL.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: give {Path(path) / 'last.ckpt'}")
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}: give the best*.ckpt or last.ckpt of a run folder")
    try:
        with zipfile.ZipFile(path) as file:
            if (part := file.testzip()) is not None:
                raise ValueError(f"{part} does not have its checksum")
            if any(part.external_attr & 0x10 for part in file.infolist()):
                raise ValueError("a part is a folder")  # torch would return whatever memory holds
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{path} is damaged, or cannot be read as a checkpoint: {reason}"
        ) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("recipe"), dict):
        raise ValueError(f"{path} was not written by estl fit (it holds no recipe)")
    for key, kind in (("state_dict", dict), ("classes", list)):
        if not isinstance(checkpoint.get(key), kind):
            raise ValueError(f"{path} was not written by estl fit (it holds no {key})")
    names = [*checkpoint["state_dict"], *checkpoint["classes"], *checkpoint["recipe"]]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} was not written by estl fit (a name in it is no text)")
    return checkpoint


def part_of(checkpoint: dict[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    """A part of a checkpoint's recipe: its `class_path` and `init_args`.

    Raises:
        ValueError: there is no such part.
    """
    part = checkpoint["recipe"].get(name)
    if not isinstance(part, dict) or not isinstance(part.get("class_path"), str):
        raise ValueError(
            f"{path} was not written by estl fit (its recipe has no {name}): of a Trainer of your "
            'own, build the student and load_state_dict(torch.load(path)["state_dict"])'
        )
    if not isinstance(part.setdefault("init_args", {}), dict):
        raise ValueError(f"{path} was not written by estl fit ({name}.init_args are no arguments)")
    return part


def load_student(path: str | Path, trust: Sequence[str] = ()) -> nn.Module:
    """The trained student of a checkpoint, in eval mode, ready to deploy.

        student = load_student("runs/digits/last.ckpt")
        logits = student(events).logits.mean(1)         # events (B,T,C,H,W)

    Args:
        path: a checkpoint of `estl fit`.
        trust: modules that the checkpoint may name besides ESTL's own, such as "mine" for a student
            `mine.Tiny`. Naming a class imports its module.

    Raises:
        ValueError: no checkpoint of ESTL; a class of a module that is not trusted; weights that
            are not those of the student.
    """
    return build_student(read_checkpoint(path), path, trust)


def build_student(
    checkpoint: dict[str, Any], path: str | Path, trust: Sequence[str] = ()
) -> nn.Module:
    """The student of `load_student`, from a checkpoint that was read already."""
    student = new_student(part_of(checkpoint, "student", path), path, trust)
    try:
        student.load_state_dict(checkpoint["state_dict"])
    except Exception as error:
        raise _no_student(path, error) from None
    return student.eval()


def new_student(part: dict[str, Any], path: str | Path, trust: Sequence[str] = ()) -> nn.Module:
    """The student that a recipe's part describes, untrained.

    Raises:
        ValueError: a class of a module that is not trusted; arguments that it does not take.
    """
    refuse_strangers(part, trust)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "student")
    try:
        config = parser.parse_object({"student": part})
        student: nn.Module = make(parser, "student", config.student)
    except Exception as error:
        raise _no_student(path, error) from None
    return student


def load_weights(student: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Initialize `student` with the weights of another training, for fine-tuning.

    Parameters and buffers are copied by name, including the statistics of norms. In a module named
    `head`, tensors with another first dimension, the number of classes, are left as they are.

        student = VGGSNN(classes=101, pooled=True)
        load_weights(student, load_student("runs/first/last.ckpt").state_dict())

    Args:
        student: is changed in place.
        weights: the whole `state_dict` of such a student.

    Returns:
        Names of the tensors that were left as they are, in their order.

    Raises:
        ValueError: a name that only one side has, or another shape; the text names the first.

    >>> from estl.students import VGGSNN
    >>> ten, three = (VGGSNN(classes, layers=(8,), pooled=True) for classes in (10, 3))
    >>> load_weights(three, ten.state_dict())
    ['head.weight', 'head.bias']
    >>> load_weights(VGGSNN(3, layers=(9,), pooled=True), ten.state_dict())
    Traceback (most recent call last):
    ValueError: layers.0.0.weight is (8, 2, 3, 3), but (9, 2, 3, 3) in VGGSNN: class, ...
    """
    own, name = student.state_dict(), type(student).__name__
    for key in own:
        if key not in weights:
            raise ValueError(f"no {key}, which {name} has: {_SAME}")
    for key in weights:
        if key not in own:
            raise ValueError(f"{key}, which {name} has not: {_SAME}")
    fresh = []
    for key, x in own.items():
        given = weights[key]
        if not isinstance(given, Tensor) or not isinstance(x, Tensor):
            raise ValueError(f"{key} is no tensor: {_SAME}")
        if given.shape == x.shape:
            continue
        resized = given.ndim == x.ndim and given.shape[1:] == x.shape[1:]
        if not resized or "head" not in key.split("."):
            there, here = tuple(given.shape), tuple(x.shape)
            raise ValueError(f"{key} is {there}, but {here} in {name}: {_SAME}")
        fresh.append(key)
    kept = {key: x for key, x in weights.items() if key not in fresh}
    try:
        student.load_state_dict(kept, strict=False)
    except Exception as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    return fresh


def _no_student(path: str | Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300]
    return ValueError(f"{path} does not give its student back: {reason}")


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
