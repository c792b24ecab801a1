"""`estl predict`: classes of event files."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def predict(
    *files: Path,
    ckpt: Annotated[Path, Parameter(required=True)],
    until_sure: float | None = None,
    json_lines: Annotated[bool, Parameter(name="--json", negative="")] = False,
    trust: tuple[str, ...] = (),
) -> None:
    """Class of each event file and its probability, after each time step.

    Args:
        files: recordings of the kind that the student was trained on.
        ckpt: best*.ckpt or last.ckpt of a run folder.
        until_sure: stop at this probability, such as 0.95 (`estl calibrate` chooses one); latencies
            of the steps follow.
        json_lines: a line of JSON a file.
        trust: a module that the checkpoint may name beside ESTL's own.
    """
    if not files:
        raise ValueError("no files: give the recordings to classify")
    from estl.training.predict import predict as run_predict

    seconds, steps = [], []
    for found in run_predict(ckpt, files, trust, until_sure):
        seconds += found.seconds
        steps.append(len(found.steps))
        if json_lines:
            name, probability = found.steps[-1]
            line = {"file": str(found.file), "class": name, "probability": probability}
            line |= {"step": len(found.steps), "steps": found.steps, "seconds": found.seconds}
            print(json.dumps(line), flush=True)
            continue
        print(found.file)
        for t, (name, probability) in enumerate(found.steps, 1):
            print(f"  t={t}  {name}  {probability:.3f}")
    if until_sure is not None and not json_lines:
        print(f"{sum(steps) / len(steps):.2f} steps a file on average; {latency(seconds)}")


def latency(seconds: list[float]) -> str:
    """Percentiles of the time that steps took.

    >>> latency([0.001, 0.002, 0.009])
    'milliseconds a step: 2.0 (median), 9.0 (90 %), 9.0 (99 %)'
    """
    ordered = sorted(seconds)
    median, most, nearly_all = (
        1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for share in (0.5, 0.9, 0.99)
    )
    return f"milliseconds a step: {median:.1f} (median), {most:.1f} (90 %), {nearly_all:.1f} (99 %)"
