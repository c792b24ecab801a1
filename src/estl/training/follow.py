"""Classify events as they arrive, with one prediction per window."""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from estl.data.live import Live
from estl.data.recorded import view_of
from estl.data.windows import Cutter, microseconds
from estl.evaluation.early import check_threshold
from estl.training.predict import Prediction, Predictor


def follow(
    path: Path,
    source: str,
    window: str | None = None,
    stride: str | None = None,
    sensor: str | None = None,
    carry: bool = False,
    until_sure: float | None = None,
    trust: Sequence[str] = (),
) -> Iterator[Prediction]:
    """A student's prediction for each window of an event stream, once an event after it arrives.

    A window is cut, framed and answered as `predict` does it for the finished recording, with the
    same logits. Its frames go through the student one by one (`step`). A window starts from a state
    that has seen nothing, as training does; with `carry` it starts from where the last one ended,
    and the answer rests on all that was seen since the start.

    Args:
        path: the checkpoint.
        source: a file that grows, "-" for standard input, or "udp://host:port" (`Live`).
        window: length, "300ms"; that of the training if None.
        stride: time from one window's start to the next one's; a window's length if None, or that
            of the training if the window is.
        sensor: height and width in pixels, "720x1280", where the source does not state them.
        carry: whether each window continues from the last one; they must not overlap then.
        until_sure: probability at which no further step of a window is computed.
        trust: modules that the checkpoint may name besides ESTL's own.

    Raises:
        ValueError: no checkpoint of ESTL, no window or sensor, a source that cannot be read so.
    """
    check_threshold(until_sure)
    known = Predictor.open(path, trust)
    if window is None:
        window, stride = known.options.get("window"), stride or known.options.get("stride")
    if window is None:
        raise ValueError(f"--follow {source} needs the time of a window: add --window 300ms")
    length = microseconds(window)
    apart = length if stride is None else microseconds(stride)
    if carry and (apart < length or until_sure is not None):
        raise ValueError(
            "carry goes through every event once: leave until_sure out, and a stride below a window"
        )
    view = view_of(source, known.data["class_path"], known.options, sensor)
    live = Live(source)
    if (shape := live.sensor or view.sensor) is None:
        raise ValueError(
            f"{source}: it does not tell the sensor's size: give height and width, such as "
            "--sensor 720x1280"
        )
    cutter, state = Cutter(length, apart), None
    over = chain.from_iterable(cutter.add(events) for events in live)
    for span, events in chain(over, cutter.end()):
        frames = view.frames(events, shape)
        steps, seconds, after = known.answer(frames, until_sure or math.inf, state)
        state = after if carry else None
        yield Prediction(source, steps, seconds, span, time.perf_counter() - live.arrived)
