"""Labels by time: a table of which stretch of which recording is of which class.

A stretch is an `Item` whose number ends with its times in microseconds since the recording's first
event: "session1/walk/1500000-3000000", or "-end" where it goes on to the end.
"""

import csv
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from estl.data.items import Item
from estl.data.windows import Span, microseconds

TABLE = "labels.csv"

_COLUMNS = ("recording", "start", "end", "class")
_HEAD = re.compile(r"(recording|class|start|end)|(start|end)_(us|ms|s)")
_UNIT = "name the column start_us, start_ms or start_s, or write 1.5s"
_BEHIND = 10
"""A stretch may reach past the last event by one part in this many: sensors rest at the end."""


class _Row(NamedTuple):
    """A row of the table; `stop` is None where the recording's end is meant."""

    line: int
    recording: Path
    start: int
    stop: int | None
    label: str

    def item(self, root: Path) -> Item:
        name = self.recording.with_suffix("").as_posix()
        times = f"{self.start}-{'end' if self.stop is None else self.stop}"
        at = f"{root / TABLE} line {self.line}"
        return Item(self.label, f"{name}/{times}", events=root / self.recording, listed=at)


def read_table(root: Path) -> list[Item]:
    """The stretches that `root/labels.csv` names, sorted.

    Below a head "recording,start,end,class", in any order and beside other columns, a row holds a
    file by its path below `root`, two times since its first event and a class. An empty start is
    the beginning, an empty end the end. A time has a unit, 1.5s, 1500ms or 1500000us, or else its
    column: start_s, end_ms. Between cells are commas, or tabs or semicolons as Excel has them; with
    semicolons 1,5 is 1.5. Recordings are not opened.

    Raises:
        ValueError: not such a table; a file that is not there, two of the same name, an invalid
            time, an end before its start, two stretches of a file that overlap; the text names the
            table and the line.
    """
    path = root / TABLE
    places: dict[str, tuple[int, str]] = {}
    found: dict[Path, list[_Row]] = defaultdict(list)
    named: dict[Path, Path] = {}
    lines, comma = _lines(path)
    for line, cells in lines:
        at = f"{path} line {line}"
        if not places:
            places, width = _head(at, cells), len(cells)
            continue
        if len(cells) != width:
            raise ValueError(f"{at}: {len(cells)} cells, but the first line has {width}")
        row = _row(at, line, {name: (cells[i], unit) for name, (i, unit) in places.items()}, comma)
        if not (root / row.recording).is_file():
            raise ValueError(f"{at}: no recording {root / row.recording}: give its path in {root}")
        other = named.setdefault(row.recording.with_suffix(""), row.recording)
        if other != row.recording:
            raise ValueError(f"{at}: {row.recording} and {other} have the same name: rename one")
        found[row.recording].append(row)
    if not found:
        raise ValueError(f"{path}: no rows below a first line recording,start,end,class")
    for rows in found.values():
        rows.sort(key=lambda row: (row.start, row.line))
        for a, b in pairwise(rows):
            if a.stop is None or b.start < a.stop:
                lines_of = f"lines {min(a.line, b.line)} and {max(a.line, b.line)}"
                raise ValueError(
                    f"{path} {lines_of}: stretches of {a.recording} that overlap "
                    f"({a.label}, {b.label}): let one end where the next starts"
                )
    return sorted(row.item(root) for rows in found.values() for row in rows)


def recording_of(item: Item) -> Item:
    """The recording that a stretch, or a window of it, belongs to.

    >>> str(recording_of(Item("chair", "session1/walk/0-end")))
    'session1/walk'
    """
    folder, _, name = item.number.rpartition("/")[0].rpartition("/")
    return Item(folder or ".", name)


def span_of(item: Item, t: np.ndarray) -> Span:
    """When a stretch, or a window of it, begins and ends in its recording.

    Args:
        item: the stretch.
        t: times of all events of the recording, in order, at least one.

    Raises:
        ValueError: a stretch that is not in the recording, or has no events; a tenth of it may lie
            past the last event, and is left out.

    >>> span_of(Item("chair", "walk/4-end"), np.array([10, 14, 19]))
    (4, 10)
    """
    first, _, last = item.number.rpartition("/")[2].partition("-")
    length = int(t[-1] - t[0]) + 1
    start, stop = int(first), length if last == "end" else int(last)
    end = "the end" if last == "end" else _said(stop)
    what = f"{item.listed}: {item.label!r} from {_said(start)} to {end}"
    if start >= length or _BEHIND * (stop - length) > stop - start:
        raise ValueError(
            f"{what} is not in {item.events}, which takes {_said(length)}: mend the times, which "
            f"count from its first event ({t[0]} us of its clock), or leave the end empty"
        )
    stop = min(stop, length)
    a, b = np.searchsorted(t, (t[0] + start, t[0] + stop)).tolist()
    if a == b:
        raise ValueError(f"{what} has no events in {item.events}: mend or remove the row")
    return start, stop


def _said(time: int) -> str:
    """A time as a user reads it."""
    return f"{time / 1e6:.6f}".rstrip("0").rstrip(".") + " s"


def _lines(path: Path) -> tuple[list[tuple[int, list[str]]], bool]:
    """Numbers and cells of the lines that are not empty; whether 1,5 is meant as 1.5."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8: save it as CSV UTF-8") from None
    head = text.lstrip().partition("\n")[0]
    between = next((mark for mark in ";\t" if mark in head), ",")
    reader = csv.reader(text.splitlines(), delimiter=between)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: {error}") from None
    return [(line, cells) for line, cells in lines if any(cells)], between == ";"


def _head(at: str, cells: list[str]) -> dict[str, tuple[int, str]]:
    """Where each column is, and its unit or ""."""
    places: dict[str, tuple[int, str]] = {}
    for i, cell in enumerate(cells):
        if (known := _HEAD.fullmatch(cell.lower())) is None:
            continue
        name = known[1] or known[2]
        if name in places:
            raise ValueError(f"{at}: two columns for {name}: remove one")
        places[name] = i, known[3] or ""
    if missing := [name for name in _COLUMNS if name not in places]:
        raise ValueError(
            f"{at}: no column {missing[0]} in {','.join(cells)[:60]!r}: "
            "let the first line be recording,start,end,class or recording,start_s,end_s,class"
        )
    return places


def _row(at: str, line: int, cells: dict[str, tuple[str, str]], comma: bool) -> _Row:
    """One row, checked for itself; `cells` and their units by the columns' names."""
    recording, label = (cells[name][0] for name in ("recording", "class"))
    if not recording or not label:
        empty = "class" if recording else "recording"
        raise ValueError(f"{at}: an empty {empty}: fill it in, or remove the row")
    path = Path(recording.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{at}: {recording} is not below the folder of {TABLE}: move it there")
    start = _time(f"{at}: start", *cells["start"], comma)
    stop = _time(f"{at}: end", *cells["end"], comma)
    if stop is not None and stop <= (start or 0):
        raise ValueError(f"{at}: the end, {cells['end'][0]}, is not after the start")
    return _Row(line, path, start or 0, stop, label)


def _time(at: str, cell: str, unit: str, comma: bool) -> int | None:
    """A time in microseconds, None if the cell is empty."""
    number = cell.replace(",", ".") if comma else cell
    bare = re.fullmatch(r"[0-9.]+", number)
    if not number:
        return None
    if unit and not bare:
        raise ValueError(f"{at}_{unit} is {cell!r}: give a number of {unit}")
    if bare and not unit and number.strip("0."):
        raise ValueError(f"{at} is {cell}, a time without a unit: {_UNIT}")
    try:
        return microseconds(number + (unit or "s" * bool(bare)), least=0)
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from None
