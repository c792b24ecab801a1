"""`init_from` of a recipe: a training that begins with the weights of an earlier one."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from estl.training.checkpoint import load_weights, read_checkpoint
from estl.training.processes import rank
from estl.training.recipe import Parts


def with_weights(config: Namespace, parts: Parts) -> Parts:
    """The parts of a new run, with the student's weights taken from the checkpoint `init_from`.

    Only tensors are read, so that no class has to be trusted. The file's checksum goes into the
    recipe; if the configuration already has one, the file must match it. A line is printed.

    Raises:
        ValueError: no such checkpoint, one that does not match the checksum, or one of another
            student (`load_weights`).
    """
    if config.init_from is None:
        return parts
    path = Path(config.init_from)
    path = path / "last.ckpt" if path.is_dir() else path
    weights, classes = read_weights(path)
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    told = config.init_from_sha256
    if told not in (None, checksum):
        raise ValueError(
            f"--init-from {path} has the checksum {checksum[:12]}..., but init_from_sha256 is "
            f"{told[:12]}...: give the file that it is of, or --init_from_sha256 null"
        )
    try:
        fresh = load_weights(parts.student, weights)
    except ValueError as error:
        raise ValueError(f"--init-from {path}: {error}") from None
    if rank() == 0:
        print(
            f"beginning with the weights of {path}{_head(fresh, classes, parts)}", file=sys.stderr
        )
    return replace(parts, recipe=parts.recipe | {"init_from_sha256": checksum})


def read_weights(path: Path) -> tuple[dict[str, Any], list[str] | None]:
    """The tensors of a checkpoint, or of `student.safetensors` of `estl export`, and its classes.

    Raises:
        ValueError: as `read_checkpoint`. `student.safetensors` states no classes.
    """
    if path.suffix != ".safetensors":
        saved = read_checkpoint(path)
        return saved["state_dict"], saved["classes"]
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path), None
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as safetensors: {reason}") from None


def _head(fresh: list[str], classes: list[str] | None, parts: Parts) -> str:
    """What there is to say about the head."""
    if fresh:
        K = len(parts.data.classes)
        return f", but for {', '.join(fresh)}, which start fresh: {K} classes here"
    if classes not in (None, list(parts.data.classes)):
        return ", the head's too, whose classes had other names or another order"
    return ""
