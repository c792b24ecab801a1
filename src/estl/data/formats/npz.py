"""`.npz` files of four arrays t, x, y, p, as SpikingJelly keeps converted recordings."""

from pathlib import Path

import numpy as np

from estl.data.formats.events import MAX_BYTES, check_order, checked_length, event_array

_RANGES = {"t": (-1 << 63, (1 << 63) - 1), "x": (0, 32767), "y": (0, 32767), "p": (-1, 1)}


def read_npz(path: str | Path) -> np.ndarray:
    """Events of a `.npz` file of four arrays of equal length: t, x, y, p, in order of time.

    t is in microseconds; p above 0 is ON. Pickled arrays are refused, not executed.

    Returns:
        Structured array of `EVENT`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, no events, time that runs backwards, or a value that `EVENT`
            cannot hold; the text names the file and the event.
    """
    checked_length(path)
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
            columns = {name: archive[name] for name in _RANGES}
    except Exception as error:  # zipfile, zlib and numpy between them raise a dozen kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a .npz file of t, x, y, p ({reason})") from None
    for name, (low, high) in _RANGES.items():
        column, t = columns[name], columns["t"]
        if column.ndim != 1 or column.dtype.kind not in "iub" or len(column) != len(t):
            raise ValueError(
                f"{path}: {name} has shape {column.shape} of {column.dtype}, t {t.shape}"
                ": four arrays of integers of the same length are needed"
            )
        if len(column) == 0:
            raise ValueError(f"{path}: no events: convert the recording again")
        if int(column.min()) < low or int(column.max()) > high:
            i = int(((column < low) | (column > high)).argmax())
            raise ValueError(
                f"{path}: event {i} has {name}={column[i]}, outside {low} to {high}: "
                "convert the recording again"
            )
    t = columns["t"].astype(np.int64)
    check_order(path, t, lambda i: f"event {i}")
    return event_array(t, columns["x"], columns["y"], columns["p"] > 0)
