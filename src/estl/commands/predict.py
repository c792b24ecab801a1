"""`estl predict`: classify event files, and events as they arrive."""

import json
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from estl.training.predict import Prediction

LAST = 100_000
"""Number of latest latencies that percentiles cover when events are followed."""


def predict(
    *files: Path,
    ckpt: Annotated[Path, Parameter(required=True)],
    window: str | None = None,
    stride: str | None = None,
    sensor: str | None = None,
    follow: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    carry: Annotated[bool, Parameter(negative="")] = False,
    until_sure: float | None = None,
    json_lines: Annotated[bool, Parameter(name="--json", negative="")] = False,
    trust: tuple[str, ...] = (),
) -> int:
    """Print the class of each event file, or of each of its windows, and its probability.

    A whole file gets one line per time step, a window one line. A file that cannot be read is
    named on standard error; the others are still classified, and the exit status is 2.

    Args:
        files: recordings; for a student trained on photographs, also photographs.
        ckpt: best*.ckpt or last.ckpt of a run folder.
        window: cut recordings into windows of this length: 300ms.
        stride: time from one window's start to the next one's.
        sensor: height by width of recordings that lack it: 720x1280.
        follow: instead of files, classify events as they arrive, by
            windows: from a growing file, standard input (-), or
            packets at udp://HOST:PORT. Ctrl-C ends it.
        carry: carry the state from window to window: an answer rests on all events since the start.
        until_sure: stop at a probability such as 0.95 (`estl calibrate`
            chooses one); step latencies are printed at the end.
        json_lines: print one line of JSON per file, or per window.
        trust: a module that the checkpoint may name besides ESTL's own.
    """
    if follow is not None:
        if files:
            raise ValueError(f"--follow {follow} takes no files: leave {files[0]} out")
        _follow(ckpt, follow, window, stride, sensor, carry, until_sure, json_lines, trust)
        return 0
    if carry:
        raise ValueError("--carry is an option of --follow: add --follow SOURCE, or leave it out")
    if not files:
        raise ValueError("no files: give the recordings to classify")
    from estl.commands import said
    from estl.training.predict import predict as run_predict

    status, seconds, steps, shown = 0, [], [], None

    def failed(error: Exception) -> None:
        nonlocal status
        status = 2
        print(f"estl predict: {said(error)}", file=sys.stderr)

    for found in run_predict(ckpt, files, trust, until_sure, window, stride, sensor, failed):
        seconds += found.seconds
        steps.append(len(found.steps))
        if json_lines:
            print(as_json(found), flush=True)
            continue
        if found.file != shown:
            print(found.file)
            shown = found.file
        if window is not None:
            print(as_line(found))
            continue
        for t, (name, probability) in enumerate(found.steps, 1):
            print(f"  t={t}  {name}  {probability:.3f}")
        shown = None
    if until_sure is not None and steps and not json_lines:
        what = "file" if window is None else "window"
        print(f"{sum(steps) / len(steps):.2f} steps a {what} on average; {latency(seconds)}")
    return status


def _follow(
    ckpt: Path,
    source: str,
    window: str | None,
    stride: str | None,
    sensor: str | None,
    carry: bool,
    until_sure: float | None,
    json_lines: bool,
    trust: tuple[str, ...],
) -> None:
    from estl.training.follow import follow

    # Of the last ones: it may go on for days.
    steps, waits, windows = deque[float](maxlen=LAST), deque[float](maxlen=LAST), 0
    try:
        for found in follow(ckpt, source, window, stride, sensor, carry, until_sure, trust):
            print(as_json(found) if json_lines else as_line(found), flush=True)
            steps += found.seconds
            waits.append(found.latency or 0.0)
            windows += 1
    finally:
        if waits:
            where = sys.stderr if json_lines else sys.stdout
            print(f"{windows} windows; {latency(steps)}", file=where)
            print(latency(waits, "from a window's last events to its answer"), file=where)


def as_line(found: "Prediction") -> str:
    """A window's time, in seconds, and the student's prediction for it."""
    name, probability = found.steps[-1]
    begin, end = (f"{time / 1e6:.3f} s" for time in found.span or (0, 0))
    return f"  {begin} to {end}  {name}  {probability:.3f}"


def as_json(found: "Prediction") -> str:
    """A line of JSON; begin and end are in microseconds since the first event."""
    name, probability = found.steps[-1]
    line = {"file": str(found.file), "class": name, "probability": probability}
    line |= {"step": len(found.steps), "steps": found.steps, "seconds": found.seconds}
    if found.span is not None:
        line |= {"begin": found.span[0], "end": found.span[1]}
    if found.latency is not None:
        line |= {"latency": found.latency}
    return json.dumps(line)


def latency(seconds: Iterable[float], of: str = "a step") -> str:
    """Percentiles of the time that something took.

    >>> latency([0.001, 0.002, 0.009])
    'milliseconds a step: 2.0 (median), 9.0 (90 %), 9.0 (99 %)'
    """
    ordered = sorted(seconds)
    median, most, nearly_all = (
        1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for share in (0.5, 0.9, 0.99)
    )
    return f"milliseconds {of}: {median:.1f} (median), {most:.1f} (90 %), {nearly_all:.1f} (99 %)"
