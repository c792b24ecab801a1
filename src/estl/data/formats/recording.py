"""A recording in any format that is read, told by its first bytes."""

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from estl.data.formats.aedat import read_aedat
from estl.data.formats.aedat4 import MAGIC as AEDAT_4
from estl.data.formats.aedat4 import read_aedat4
from estl.data.formats.atis import read_events
from estl.data.formats.columns import read_csv
from estl.data.formats.dat import read_dat
from estl.data.formats.event_stream import MAGIC as EVENT_STREAM
from estl.data.formats.event_stream import read_event_stream
from estl.data.formats.events import checked_length
from estl.data.formats.evt import read_evt
from estl.data.formats.hdf5 import MAGIC as HDF5
from estl.data.formats.hdf5 import read_hdf5
from estl.data.formats.npz import read_npz

Read = Callable[[Path], tuple[np.ndarray, Any]]

_HEAD = 1 << 16
_TEXT = re.compile(rb"[\t\r\n\x20-\x7e]*")
_LINES = re.compile(rb"(?:%[\t\r\x20-\x7e]*\n)+")
"""What a file of Prophesee's begins with."""


def read_atis(path: Path) -> tuple[np.ndarray, None]:
    """Events of an ATIS file, which tells no sensor."""
    return read_events(path), None


def _npz(path: Path) -> tuple[np.ndarray, None]:
    return read_npz(path), None


_STARTS: dict[bytes, Read] = {
    AEDAT_4[:11]: read_aedat4,
    b"#!AER-DAT": read_aedat,
    EVENT_STREAM: read_event_stream,
    HDF5: read_hdf5,
    b"PK\x03\x04": _npz,
}
SUFFIXES: dict[str, Read] = {
    ".bin": read_atis,
    ".aedat": read_aedat,
    ".aedat4": read_aedat4,
    ".npz": _npz,
    ".csv": read_csv,
}
"""Readers whose error is shown if the first bytes fit no format; ATIS may begin with any bytes."""

KNOWN = (
    "ATIS (.bin), AEDAT 2.0, 3.1 and 4, EVT 2.0, 2.1 and 3.0 (.raw), DAT, Event Stream (.es), "
    "HDF5, .npz or CSV"
)


def read_recording(path: str | Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of a recording, and the sensor's (H,W) if the file tells it.

    The format is told by the first bytes: AEDAT 2.0 and 3.1 (`read_aedat`) and 4 (`read_aedat4`),
    EVT 2.0, 2.1 and 3.0 (`read_evt`), DAT (`read_dat`), Event Stream (`read_event_stream`), HDF5
    (`read_hdf5`), arrays t, x, y, p in `.npz` (`read_npz`), columns in CSV (`read_csv`). A file
    that begins like none of them is read as ATIS (`read_events`), which has no head, if it can be.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a broken file, or a library that is missing.
    """
    path = Path(path)
    checked_length(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    read = told(head) or SUFFIXES.get(path.suffix.lower())
    if read is not None:
        return read(path)
    try:
        return read_atis(path)
    except ValueError:
        raise ValueError(
            f"{path}: its first bytes {head[:12]!r} begin no recording that is read: {KNOWN}"
        ) from None


def told(head: bytes) -> Read | None:
    """The reader of a file with these first bytes, None if it may be any format without a head."""
    for start, read in _STARTS.items():
        if head.startswith(start):
            return read
    if lines := _LINES.match(head):
        if re.search(rb"^% *(evt |format +EVT)", lines[0], re.MULTILINE):
            return read_evt
        if re.search(rb"^% *(Version |Data file )", lines[0], re.MULTILINE):
            return read_dat
    first = head[:256].removeprefix(codecs.BOM_UTF8)
    return read_csv if b"," in first and _TEXT.fullmatch(first) else None
