"""`.npz` files of four arrays t, x, y, p, as SpikingJelly keeps converted recordings."""

from pathlib import Path

import numpy as np

from estl.data.formats.events import EVENT, MAX_BYTES, checked_length, runs_back


def read_npz(path: str | Path) -> np.ndarray:
    """Events of a `.npz` file of four arrays of equal length: t, x, y, p, in order of time.

    So SpikingJelly keeps converted recordings. t is in microseconds; p above 0 is ON. Pickled
    arrays are refused, not executed.

    Returns:
        Structured array of `EVENT`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, no events, time that runs backwards, or a value that `EVENT`
            cannot hold; the text names the file and the event.
    """
    checked_length(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
            columns = {name: archive[name] for name in "txyp"}
    except Exception as error:  # zipfile, zlib and numpy between them raise a dozen kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a .npz file of t, x, y, p ({reason})") from None
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "iub" or len(column) != len(columns["t"]):
            raise ValueError(
                f"{path}: {name} has shape {column.shape} of {column.dtype}, t {columns['t'].shape}"
                f": four arrays of integers of the same length are needed"
            )
        if len(column) == 0:
            raise ValueError(f"{path}: no events: convert the recording again")
        low, high = (0, np.iinfo(EVENT[name]).max) if name in "xy" else (-1, 1)
        if name == "t":
            low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
        if int(column.min()) < low or int(column.max()) > high:
            i = int(((column < low) | (column > high)).argmax())
            raise ValueError(
                f"{path}: event {i} has {name}={column[i]}, outside {low} to {high}: "
                "convert the recording again"
            )
    t = columns["t"].astype(np.int64)
    if (back := runs_back(t)) is not None:
        raise ValueError(
            f"{path}: time runs backwards at event {back}, from {t[back - 1]} to {t[back]} "
            "microseconds: convert the recording again"
        )
    events = np.empty(len(t), EVENT)
    events["t"], events["x"], events["y"] = t, columns["x"], columns["y"]
    events["p"] = columns["p"] > 0
    return events
