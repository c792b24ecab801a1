"""A recording in any format that is read."""

from pathlib import Path

import numpy as np

from estl.data.formats.aedat import read_aedat
from estl.data.formats.atis import read_events
from estl.data.formats.npz import read_npz


def read_recording(path: str | Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Events of a recording, read by its suffix, and the sensor's (H,W) if the file tells it.

    `.bin` is ATIS (`read_events`), `.aedat` is AEDAT 2.0 or 3.1 (`read_aedat`), `.npz` holds the
    arrays t, x, y, p (`read_npz`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, or a broken file.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".bin":
            return read_events(path), None
        case ".aedat":
            return read_aedat(path)
        case ".npz":
            return read_npz(path), None
    raise ValueError(f"{path}: recordings are .bin (ATIS), .aedat or .npz (t, x, y, p) files")
