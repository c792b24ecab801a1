"""`estl watch`: the report of a run that is still being trained."""

import time
from pathlib import Path


def watch(run: Path, *runs: Path, every: float = 10.0) -> None:
    """Write the report again after every epoch, until the runs are finished; reload it to see more.

    Args:
        run: a run folder that estl fit is filling.
        runs: further ones, to be laid beside it.
        every: seconds between two looks at the folders.
    """
    from estl.report.html import write
    from estl.report.sources import find_runs

    paths, seen = [run, *runs], None
    output = run / "report.html"
    while True:
        folders = find_runs(paths)
        files = [folder / name for folder in folders for name in ("history.csv", "results.json")]
        times = [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
        if times != seen:
            write(paths, output)
            print(f"report: {output}, {time.strftime('%H:%M:%S')}", flush=True)
            seen = times
        if all((folder / "results.json").exists() for folder in folders):
            return
        time.sleep(every)
