"""`estl calibrate`: how sure a student has to be to answer early."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def calibrate(
    *,
    ckpt: Annotated[Path, Parameter(required=True)],
    tolerance: float = 0.005,
    data_path: Path | None = None,
    output: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Choose the threshold of `estl predict --until-sure`, on the validation split.

    It is the lowest at which early answers are expected to lose no more than the tolerance on
    recordings that nobody has seen. The test split is not read.

    Args:
        ckpt: best*.ckpt or last.ckpt of a run folder.
        tolerance: accuracy that may be lost, as a fraction: 0.005 is half a point.
        data_path: another root folder with the same layout.
        output: file to write the figures to, as JSON.
        trust: a module that the checkpoint may name besides ESTL's own.
    """
    import math

    import torch
    from pydantic import TypeAdapter

    from estl.data.recorded import has_files
    from estl.evaluation import early
    from estl.training.reopen import reopen

    early.check_tolerance(tolerance)
    root = None if data_path is None else str(data_path)
    opened = reopen(ckpt, root, split="val", trust=trust)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    confidence, right = early.confidences(opened.student, opened.data.loader("val"), device)
    found = early.calibrate(confidence, right, tolerance)
    if found.threshold > 1:
        least = math.ceil(1 / tolerance) - 1
        if found.samples < least:
            enough = math.ceil(1e4 / (found.samples + 1)) / 1e4
            raise ValueError(
                f"tolerance {tolerance:g}: {found.samples} validation samples cannot show that no "
                f"more is lost: give at least {least} of them, or --tolerance {enough:g}"
            )
    if output is not None:
        output.write_bytes(TypeAdapter(early.EarlyExit).dump_json(found, indent=2) + b"\n")
    print(f"validation accuracy after all {found.steps} steps: {100 * found.all_steps:.2f} %")
    if found.threshold > 1:
        print(f"no threshold keeps within --tolerance {tolerance:g}: answer after all steps")
        return
    print(f"at threshold {found.threshold:.6g}: {100 * found.accuracy:.2f} % ", end="")
    print(f"after {found.mean_steps:.2f} steps on average ({found.samples} samples)")
    trusted = "".join(f" --trust {module}" for module in trust)
    options = f"--ckpt {ckpt} --until-sure {found.threshold:.6g}{trusted}"
    if has_files(opened.recipe["data"]["class_path"], opened.recipe["data"]["init_args"]):
        print(f"estl predict {options} FILES")
    print(f"estl test {options}")
