"""HDF5 recordings: Prophesee's, DSEC's, and plain columns t, x, y, p."""

import contextlib
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np

from estl.data.formats.columns import from_columns
from estl.data.formats.events import MAX_BYTES, checked_length, library

MAGIC = b"\x89HDF\r\n\x1a\n"
_LAYOUTS = "CD/events (Prophesee), events/t, x, y, p (DSEC), or t, x, y, p"
_HEAP = b"GCOL\1\0\0\0"
_ECF = 0x8ECF


def read_hdf5(path: str | Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of an HDF5 recording, and the sensor's (H,W) if an attribute has it.

    Columns t, x, y, p, in microseconds, are the fields of the data set `CD/events` or `events`, or
    data sets of the group `events` or of the file itself. DSEC's `t_offset` is added to t. The size
    is the attribute `geometry`, "1280x720", or the attributes `width` and `height`, of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another layout, a truncated or oversized file, no events, time that runs
            backwards, an event outside the sensor, or a library that is missing.
    """
    path = Path(path)
    checked_length(path)
    h5py = library("h5py", path, "HDF5")
    with contextlib.suppress(ImportError):  # filters such as DSEC's Blosc
        import hdf5plugin  # noqa: F401
    try:
        with h5py.File(path, "r") as file:
            columns, sensor = _columns(file, path), _size(file.attrs, path)
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise _refused(path, error) from None
    except Exception as error:  # what h5py raises for broken bytes
        raise _refused(path, error) from None
    return from_columns(path, columns, sensor)


def _refused(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"{path}: not a whole HDF5 recording ({reason}): get the recording again")


def _columns(file: Any, path: Path) -> dict[str, np.ndarray]:
    table = file.get("CD/events", file.get("events", file))
    if getattr(table, "dtype", None) is not None and table.dtype.names:
        if not {*"txyp"} <= {*table.dtype.names}:
            raise ValueError(f"{path}: {table.name} has {table.dtype.names}, not t, x, y, p")
        _affordable(path, table)
        whole = table[:]
        return {name: whole[name] for name in "txyp"}
    names = list(table) if hasattr(table, "keys") else []
    if not {*"txyp"} <= {*names}:
        raise ValueError(f"{path}: it has {', '.join(map(str, file))[:80]}, not {_LAYOUTS}")
    for name in "txyp":
        _affordable(path, table[name])
    columns = {name: np.asarray(table[name][:]) for name in "txyp"}
    if "t_offset" in file and np.issubdtype(columns["t"].dtype, np.integer):
        if file["t_offset"].dtype.kind not in "iu":
            raise ValueError(f"{path}: t_offset is no whole number")
        columns["t"] = columns["t"].astype(np.int64) + int(file["t_offset"][()])
    return columns


def _affordable(path: Path, data: Any) -> None:
    """Raise ValueError for a data set that is too large, or packed by a filter that is not here.

    Or one that holds no numbers: for such data HDF5 follows addresses in the file, and bad ones end
    the process.
    """
    kinds = [data.dtype[name] for name in data.dtype.names or ()] or [data.dtype]
    if data.ndim != 1 or data.nbytes > MAX_BYTES or any(k.kind not in "iubf" for k in kinds):
        raise ValueError(f"{path}: {data.name} has shape {data.shape} of {data.dtype}")
    import h5py

    plan = data.id.get_create_plist()
    for number in (plan.get_filter(i)[0] for i in range(plan.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            how = "Prophesee's plugin hdf5_ecf, and set HDF5_PLUGIN_PATH to its folder"
            how = how if number == _ECF else "hdf5plugin: pip install 'estl[recordings]'"
            raise ValueError(f"{path}: {data.name} is packed by HDF5's filter {number}: add {how}")


def _check_heaps(path: Path) -> None:
    """Raise ValueError for a damaged heap of texts of any length, which HDF5 may read for ever.

    A heap is "GCOL", a version, its own size, then objects: a number, a size, and as many bytes up
    to a multiple of 8. Number 0 is the free rest, of which the size counts the head too; where that
    is 0, HDF5 finds it again and again (HDF5 File Format Specification, III.E).
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_HEAP)
        while start >= 0:
            place = start + 16
            end = min(start + int.from_bytes(data[start + 8 : place], "little"), len(data))
            while place + 16 <= end:
                number, size = data[place : place + 2], data[place + 8 : place + 16]
                held = int.from_bytes(size, "little")
                if number == b"\0\0" and held < 16:
                    raise ValueError(f"the heap at byte {start} is damaged at byte {place}")
                place += held if number == b"\0\0" else 16 + held + -held % 8
            start = data.find(_HEAP, start + 1)


def _size(attributes: Any, path: Path) -> tuple[int, int] | None:
    import h5py

    for name in ("geometry", "width", "height"):
        if name in attributes:
            of = attributes.get_id(name).get_type()
            kind = of.get_class()
            if kind == h5py.h5t.STRING and of.is_variable_str():
                _check_heaps(path)
            if kind not in (h5py.h5t.STRING, h5py.h5t.INTEGER):
                raise ValueError(f"its attribute {name} is neither a text nor a number")
    geometry = attributes.get("geometry", "")
    text = geometry.decode("latin1") if isinstance(geometry, bytes) else str(geometry)
    if found := re.fullmatch(r"(\d+)x(\d+)", text):
        return int(found[2]), int(found[1])
    if "width" in attributes and "height" in attributes:
        return int(attributes["height"]), int(attributes["width"])
    return None
