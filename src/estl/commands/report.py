"""`estl report`: runs as one HTML file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(
    run: Path,
    *runs: Path,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    figures: Path | None = None,
) -> None:
    """What runs learned, as one HTML file that opens anywhere, without a network.

    Args:
        run: a run folder, or that of an ablation or a comparison.
        runs: further ones, to be laid beside it.
        output: the file (default: report.html in RUN, or here if there are several).
        figures: also write the figures for a paper there, as PNG and SVG.
    """
    from estl.report.html import write

    paths = [run, *runs]
    output = output or (Path("report.html") if runs else run / "report.html")
    write(paths, output, figures)
    print(f"report: {output}" + (f"; figures: {figures}" if figures else ""))
