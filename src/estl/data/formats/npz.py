"""`.npz` files of four arrays t, x, y, p, as SpikingJelly keeps converted recordings."""

from pathlib import Path

import numpy as np

from estl.data.formats.columns import from_columns
from estl.data.formats.events import MAX_BYTES, checked_length


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
            columns = {name: archive[name] for name in "txyp"}
    except Exception as error:  # zipfile, zlib and numpy between them raise a dozen kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a .npz file of t, x, y, p ({reason})") from None
    return from_columns(path, columns)[0]
