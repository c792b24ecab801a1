"""`estl predict`: classes of event files."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def predict(
    *files: Path,
    ckpt: Annotated[Path, Parameter(required=True)],
    trust: tuple[str, ...] = (),
) -> None:
    """Class of each event file and its probability, after each time step.

    Args:
        files: recordings of the kind that the student was trained on.
        ckpt: best*.ckpt or last.ckpt of a run folder.
        trust: a module that the checkpoint may name beside ESTL's own.
    """
    if not files:
        raise ValueError("no files: give the recordings to classify")
    from estl.training.predict import predict as run_predict

    for file, steps in run_predict(ckpt, files, trust):
        print(file)
        for t, (name, probability) in enumerate(steps, 1):
            print(f"  t={t}  {name}  {probability:.3f}")
