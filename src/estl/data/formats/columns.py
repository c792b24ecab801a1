"""Columns t, x, y, p as events, whatever file they come from, and the text files among these."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from estl.data.formats.events import broken, checked_length, event_array, finish

_RANGES = {"t": (-1 << 63, (1 << 63) - 1), "x": (0, 32767), "y": (0, 32767), "p": (-1, 1)}
_NAMES = {
    **dict.fromkeys(("t", "time", "timestamp", "ts"), "t"),
    **dict.fromkeys(("p", "polarity", "pol", "on"), "p"),
    **{"x": "x", "y": "y"},
}
_METAVISION = "xypt"
_BOM = "\xef\xbb\xbf"
"""What Excel puts before UTF-8 text, read as Latin-1."""


def from_columns(
    path: str | Path, columns: Mapping[str, np.ndarray], size: tuple[int, int] | None = None
) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of four columns of integers, t in microseconds, p above 0 ON, and `size`.

    Raises:
        ValueError: columns of other kinds or lengths, a value out of range, no events, time that
            runs backwards, an event outside `size`; the text names the file and the event.
    """
    t = columns["t"]
    for name, (low, high) in _RANGES.items():
        column = columns[name]
        if column.dtype.kind not in "iub":
            whole = "microseconds" if name == "t" else "numbers"
            raise ValueError(f"{path}: {name} is {column.dtype}: give whole {whole}")
        if column.ndim != 1 or len(column) != len(t):
            raise ValueError(
                f"{path}: {name} has shape {column.shape} of {column.dtype}, t {t.shape}"
                ": four arrays of integers of the same length are needed"
            )
        if len(t) and (int(column.min()) < low or int(column.max()) > high):
            i = int(((column < low) | (column > high)).argmax())
            raise ValueError(
                f"{path}: event {i} has {name}={column[i]}, outside {low} to {high}: "
                "convert the recording again"
            )
    if len(t) == 0:
        raise ValueError(f"{path}: no events: convert the recording again")
    events = event_array(t, columns["x"], columns["y"], columns["p"] > 0)
    return finish(path, events, size, lambda i: f"event {i}")


def read_csv(path: str | Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of a text file of columns, and the sensor's (H,W) if a line has it.

    The first line names the columns, t, x, y and p in any order and beside others, with commas
    between them; t is in microseconds. Names with the sensor's size, as faery has them, are x@1280
    and y@720. Metavision's files instead begin with the line "%geometry:1280,720" and have x, y, p
    and t. Other lines at the top that start with % or # are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no names, a line that does not have such numbers, no events, time that runs
            backwards, an event outside the sensor; the text names the file and the line or event.
    """
    path = Path(path)
    checked_length(path)
    with path.open(encoding="latin1") as file:
        size, use, skip = read_head(path, file)
    try:
        if _is_bare(path, skip):
            raise broken(path, "no events")
        table = whole_numbers(path, use, skip)
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        reason = " ".join(str(error).split())[:200]
        raise broken(path, f"below line {skip} not four whole numbers a line ({reason})") from None
    return from_columns(path, dict(zip("txyp", table.T, strict=True)), size)


def whole_numbers(lines: Path | Sequence[str], columns: Sequence[int], skip: int = 0) -> np.ndarray:
    """These columns (n,4) of a text file, or of its lines, below `skip` lines.

    Raises:
        ValueError: something that is no whole number.
    """
    how = {"delimiter": ",", "usecols": columns, "skiprows": skip, "ndmin": 2, "comments": None}
    with warnings.catch_warnings():  # numpy before 2.4 reads 0.1 as 0, and only warns of it
        warnings.simplefilter("error", DeprecationWarning)
        found: np.ndarray = np.loadtxt(lines, np.int64, encoding="latin1", **how)  # type: ignore[call-overload]
    return found


def read_head(
    path: str | Path, lines: Iterable[str]
) -> tuple[tuple[int, int] | None, list[int], int]:
    """What the first lines of a text file say: the sensor's (H,W), the numbers of the columns t,
    x, y and p, and how many lines they are.

    >>> read_head("x.csv", ["x@4,y@3,t,p", "0,0,17,1"])
    ((3, 4), [2, 0, 1, 3], 1)
    """
    size, names, skip, line = None, list[str](), 0, ""
    for line in lines:
        line = line.removeprefix(_BOM)
        if not line.startswith(("%", "#")):
            break
        skip += 1
        if found := re.match(r"[%#]\s*geometry:\s*(\d+),(\d+)\s*$", line):
            size, names = (int(found[2]), int(found[1])), list(_METAVISION)
    if not names:
        words = [word.strip().lower().partition("@") for word in line.split(",")]
        names = [_NAMES.get(word, "") for word, _, _ in words]
        sides = {word: int(side) for word, _, side in words if side.isdecimal()}
        size = (sides["y"], sides["x"]) if {*"xy"} <= sides.keys() else None
        skip += 1
        if sorted(filter(None, names)) != sorted("txyp"):
            raise ValueError(
                f"{path}: line {skip} is {line.strip()[:60]!r}: "
                "let it name the columns, such as t,x,y,p"
            )
    return size, [names.index(name) for name in "txyp"], skip


def _is_bare(path: Path, skip: int) -> bool:
    """Whether only blank lines follow, of which numpy warns."""
    with path.open(encoding="latin1") as file:
        return not any(line.strip() for i, line in enumerate(file) if i >= skip)
