"""Classify event files with a checkpoint. Lightning, which takes seconds, is not imported."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from estl.data.frames import Standard, normalize
from estl.data.recorded import read_parts
from estl.data.windows import Span, microseconds, sensor_shape
from estl.evaluation.accuracy import running_mean
from estl.evaluation.early import check_threshold
from estl.students import step
from estl.students.stream import State
from estl.training.checkpoint import build_student, part_of, read_checkpoint
from estl.training.names import refuse_strangers


@dataclass(frozen=True)
class Prediction:
    """A student's prediction for a file, or for a window of a recording.

    Args:
        file: the recording, or the source that it came from.
        steps: the class and its probability after every time step that was computed.
        seconds: duration of the computation, without reading the file: of all steps, or of each.
        span: when what was seen begins and ends, in microseconds since the recording's first
            event; None for an image.
        latency: seconds from the arrival of a window's last events to its answer; None for files.
    """

    file: Path | str
    steps: list[tuple[str, float]]
    seconds: list[float]
    span: Span | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Predictor:
    """A student with what its checkpoint says about its data.

    Args:
        path: the checkpoint.
        student: in eval mode.
        classes: their names, by number.
        data: `class_path` and `init_args` of the data set.
    """

    path: Path
    student: nn.Module
    classes: list[str]
    data: dict[str, Any]

    @classmethod
    def open(cls, path: Path, trust: Sequence[str] = ()) -> "Predictor":
        """The predictor of a checkpoint.

        Raises:
            ValueError: no checkpoint of ESTL, or a class that is not trusted.
        """
        saved = read_checkpoint(path)
        data = part_of(saved, "data", path)
        refuse_strangers(data, trust)
        return cls(path, build_student(saved, path, trust), saved["classes"], data)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the data set."""
        options: dict[str, Any] = self.data["init_args"]
        return options

    def answer(
        self, frames: Tensor, until_sure: float | None, state: State | None = None
    ) -> tuple[list[tuple[str, float]], list[float], State | None]:
        """Class and probability after each step, the seconds they took, and the state after them.

        Without `until_sure` all steps are computed at once, and no state is kept.
        """
        how = self.options.get("normalize", "none")
        if isinstance(how, dict):  # a recipe's
            how = Standard(tuple(how["mean"]), tuple(how["std"]))
        frames = normalize(frames, how)
        logits, seconds, state = _answers(self.student, frames, until_sure, state)
        if logits.shape[-1] != len(self.classes):
            raise ValueError(
                f"{self.path} has names of {len(self.classes)} classes, but its student tells "
                f"{logits.shape[-1]} apart: give the checkpoint as estl fit wrote it"
            )
        probability, label = logits.softmax(-1).max(-1)
        names = [self.classes[k] for k in label.tolist()]
        return list(zip(names, probability.tolist(), strict=True)), seconds, state


def predict(
    path: Path,
    files: Sequence[Path],
    trust: Sequence[str] = (),
    until_sure: float | None = None,
    window: str | None = None,
    stride: str | None = None,
    sensor: str | None = None,
    failed: Callable[[Exception], None] | None = None,
) -> Iterator[Prediction]:
    """For each event file, or each of its windows, the class after every time step t = 1..T.

    Args:
        path: the checkpoint.
        files: recordings, or photographs for a student of images.
        trust: modules that the checkpoint may name besides ESTL's own.
        until_sure: probability at which no further step is computed; None for all steps.
        window: time that recordings are cut into, "300ms", as the data set `Recordings` cuts them.
        stride: time from one window's start to the next one's; a window's length if None.
        sensor: height and width in pixels, "720x1280", of files that do not tell them.
        failed: called with the error of each file that cannot be read, which is then skipped;
            None to raise it.

    Raises:
        ValueError: no checkpoint of ESTL, a class that is not trusted, a broken file, a threshold
            that is no probability, an invalid time.
    """
    check_threshold(until_sure)
    if window is None and stride is not None:
        raise ValueError(f"stride={stride} without a window: add window, such as 300ms")
    length, apart = (None if time is None else microseconds(time) for time in (window, stride))
    known = Predictor.open(path, trust)
    trained = known.options.get("window")
    sensor_shape(sensor)  # raises, once for all files
    for file in files:
        parts = read_parts(file, known.data["class_path"], known.options, length, apart, sensor)
        try:
            for span, frames in parts:
                if length is None and trained is not None and span is not None:
                    _say_long(file, span, trained)
                steps, seconds, _ = known.answer(frames, until_sure)
                yield Prediction(file, steps, seconds, span)
        except (OSError, ValueError) as error:
            if failed is None:
                raise
            failed(error)


def _say_long(file: Path, span: Span, trained: str) -> None:
    """Say so where a recording is at least twice as long as what the student was trained on."""
    if span[1] >= 2 * (length := microseconds(trained)):
        print(
            f"{file}: {span[1] / 1e6:.3g} s in one prediction, but the student was trained on "
            f"windows of {length / 1e6:.3g} s: give --window {trained}",
            file=sys.stderr,
        )


@torch.inference_mode()
def _answers(
    student: nn.Module, frames: Tensor, until_sure: float | None, state: State | None
) -> tuple[Tensor, list[float], State | None]:
    """Mean logits (t,K) after the steps that are computed, their seconds, and the state."""
    start = time.perf_counter()
    if until_sure is None:
        logits = running_mean(student(frames[None]).logits)[0]
        return logits, [time.perf_counter() - start], None
    found, seconds = [], []
    for frame in frames:
        start = time.perf_counter()
        mean, state = step(student, frame[None], state)
        sure = mean.softmax(-1).max() >= until_sure
        seconds.append(time.perf_counter() - start)
        found.append(mean[0])
        if sure:
            break
    return torch.stack(found), seconds, state
