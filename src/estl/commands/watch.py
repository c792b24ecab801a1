"""`estl watch`: the report of runs that are still being trained."""

import time
from pathlib import Path

NAMES = ("history.csv", "results.json", "report.npz")
"""Files that change in a folder when there is more to see."""


def watch(run: Path, *runs: Path, every: float = 10.0) -> None:
    """Rewrite the report after every epoch, until the runs are finished; reload it to see more.

    The command ends when they are and nothing has changed since the last look.

    Args:
        run: a run folder that estl fit is filling, or the folder of an ablation or a comparison.
        runs: more such folders, to show beside it.
        every: seconds between two looks at the folders.
    """
    from estl.report.html import write
    from estl.report.sources import finished, runs_in

    paths, output = [run, *runs], run / "report.html"
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"no folder {path}: give that of a run or of a sweep")
    seen: dict[Path, int] | None = None
    while True:
        begun = [path for path in paths if runs_in(path)]
        folders = dict.fromkeys(f for path in begun for f in [path, *runs_in(path)])
        files = [folder / name for folder in folders for name in NAMES]
        times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
        if begun and times != seen:
            write(begun, output)
            print(f"report: {output}, {time.strftime('%H:%M:%S')}", flush=True)
            seen = times
        elif all(finished(path) for path in paths):
            return
        time.sleep(every)
