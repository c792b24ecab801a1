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
    """Write what runs learned as one HTML file that opens anywhere, without a network.

    Args:
        run: a run folder, or the folder of an ablation or a comparison.
        runs: more such folders, to show beside it.
        output: file to write (default: report.html in RUN, or here if there are several).
        figures: folder to also write the figures to, for a paper, as PNG and SVG.
    """
    from estl.report.html import write

    paths = [run, *runs]
    output = output or (Path("report.html") if runs else run / "report.html")
    write(paths, output, figures)
    print(f"report: {output}" + (f"; figures: {figures}" if figures else ""))
