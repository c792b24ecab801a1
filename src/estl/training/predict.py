"""Classes of event files by a checkpoint. Lightning, which takes seconds, is not imported."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from estl.data.frames import normalize
from estl.data.reading import read_file
from estl.evaluation.accuracy import running_mean
from estl.students import step
from estl.training.checkpoint import build_student, part_of, read_checkpoint
from estl.training.names import refuse_strangers


@dataclass(frozen=True)
class Prediction:
    """What a student says of a file.

    Args:
        file: the recording.
        steps: the class and its probability after every time step that was computed.
        seconds: the computation took, without reading the file: of all steps at once, or of each.
    """

    file: Path
    steps: list[tuple[str, float]]
    seconds: list[float]


def predict(
    path: Path, files: Sequence[Path], trust: Sequence[str] = (), until_sure: float | None = None
) -> Iterator[Prediction]:
    """For each event file the class and its probability after every time step t = 1..T.

    Args:
        path: the checkpoint.
        files: recordings, of the kind that the student was trained on.
        trust: modules that the checkpoint may name beside ESTL's own.
        until_sure: probability at which no further step is computed; None for all steps.

    Raises:
        ValueError: no checkpoint of ESTL, a class that is not trusted, a broken file, a threshold
            that is no probability.
    """
    if until_sure is not None and not until_sure > 0:
        raise ValueError(f"until_sure={until_sure}: give a probability, such as 0.95")
    saved = read_checkpoint(path)
    data = part_of(saved, "data", path)
    refuse_strangers(data, trust)
    student = build_student(saved, path, trust)
    options = data["init_args"]
    for file in files:
        frames = read_file(file, data["class_path"], options)
        frames = normalize(frames, options.get("normalize", "none"))
        logits, seconds = _answers(student, frames, until_sure)
        if logits.shape[-1] != len(saved["classes"]):
            raise ValueError(
                f"{path} has names of {len(saved['classes'])} classes, but its student tells "
                f"{logits.shape[-1]} apart: give the checkpoint as estl fit wrote it"
            )
        probability, label = logits.softmax(-1).max(-1)
        names = [saved["classes"][k] for k in label.tolist()]
        yield Prediction(file, list(zip(names, probability.tolist(), strict=True)), seconds)


@torch.inference_mode()
def _answers(
    student: nn.Module, frames: Tensor, until_sure: float | None
) -> tuple[Tensor, list[float]]:
    """Mean logits (t,K) after the steps that are computed, and the seconds they took."""
    start = time.perf_counter()
    if until_sure is None:
        logits = running_mean(student(frames[None]).logits)[0]
        return logits, [time.perf_counter() - start]
    found, seconds, state = [], [], None
    for frame in frames:
        start = time.perf_counter()
        mean, state = step(student, frame[None], state)
        sure = mean.softmax(-1).max() >= until_sure
        seconds.append(time.perf_counter() - start)
        found.append(mean[0])
        if sure:
            break
    return torch.stack(found), seconds
