"""Fetch the archives of the catalog, verify them, unpack them where the readers look."""

import gzip
import math
import struct
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pooch
from PIL import Image

from estl.data.catalog import BY_NAME, CATALOG, Archive
from estl.data.formats.archives import unpack

SETS = {row.name: row.archives for row in CATALOG if row.archives}
"""The archives of each data set by its name on the command line."""


def prepare(name: str, root: str | Path, download: bool = True) -> None:
    """Make `root` the folder that the reader of a data set takes: fetch, verify and unpack.

    What is unpacked already is left alone, and an archive that is in `root` is not fetched again.
    Archives are unpacked into a temporary folder, which is renamed at the end, so that what was
    interrupted is not taken for complete.

    Raises:
        ValueError: unknown name, a wrong checksum, or a broken or dangerous archive.
        FileNotFoundError: an archive is missing and may not, or cannot, be fetched by a program.
        ConnectionError: an archive could not be fetched.
    """
    if name not in SETS:
        raise ValueError(f"no data set {name!r}: choose from {', '.join(SETS)}")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    for archive in SETS[name]:
        places = (root / folder for folder in (archive.into, *archive.also))
        if any(place.is_dir() and any(place.iterdir()) for place in places):
            continue
        path = fetch(archive, root, download)
        labels = fetch(archive.labels, root, download) if archive.labels else None
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as temporary:
            inside = Path(temporary) / "all"
            if labels is not None:
                write_digits(path, labels, inside, _first_number(root, archive.into))
            else:
                unpack(path, inside)
            if archive.inner is not None:
                inner = next(iter(sorted(inside.rglob(archive.inner))), None)
                if inner is None:
                    raise ValueError(f"{path} has no {archive.inner}: fetch the archive again")
                inside = Path(temporary) / "inner"
                unpack(inner, inside)
            target = root / archive.into
            target.parent.mkdir(parents=True, exist_ok=True)
            _content(inside, target.name).rename(target)


def fetch(archive: Archive, root: Path, download: bool = True) -> Path:
    """The verified file of an archive in `root`, fetched if it is not there."""
    path = root / archive.file
    if not path.is_file():
        if archive.by_hand:
            raise FileNotFoundError(
                f"{archive.file} cannot be fetched by a program: open {archive.url}, download "
                f"{archive.file} there, put it into {root} and run this again"
            )
        if not download:
            raise FileNotFoundError(f"no {path}: get it from {archive.url}, or allow the download")
        pooch.get_logger().setLevel("WARNING")
        bar = sys.stderr.isatty()
        try:
            pooch.retrieve(archive.url, None, archive.file, root, progressbar=bar)
        except OSError as error:  # of requests too
            raise ConnectionError(
                f"{archive.url} could not be fetched ({type(error).__name__}): try again, or "
                f"download it elsewhere and put it into {root} as {archive.file}"
            ) from error
    if archive.md5 is None:
        warnings.warn(f"{path} is not verified: its checksum is not known", stacklevel=2)
    elif (found := pooch.file_hash(str(path), "md5")) != archive.md5:
        what = f"has the MD5 sum {found}, not {archive.md5}"
        raise ValueError(f"{path} {what}: delete the file and run this again")
    return path


def _content(folder: Path, name: str) -> Path:
    """The folder of this name nearest to the top of `folder`, or else `folder`."""
    found = (path for path in folder.rglob(name) if path.is_dir() and not path.is_symlink())
    return min(found, key=lambda path: (len(path.parts), path), default=folder)


def write_digits(images: Path, labels: Path, folder: Path, first: int = 1) -> None:
    """Write MNIST's gzipped idx files as `folder/<digit>/<number>.png`, numbered from `first`.

    N-MNIST numbers its recordings by their place in MNIST, counted from 1, with five digits.
    """
    digits, names = read_idx(images, 3), read_idx(labels, 1)
    if len(digits) != len(names) or (len(names) and names.max() > 9):
        raise ValueError(
            f"{labels}: {len(names)} labels of 0 to 9 do not fit {len(digits)} images in {images}"
        )
    for name in set(names.tolist()):
        (folder / str(name)).mkdir(parents=True, exist_ok=True)
    for number, (digit, name) in enumerate(zip(digits, names.tolist(), strict=True), start=first):
        Image.fromarray(digit).save(folder / str(name) / f"{number:05d}.png")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of a gzipped idx file: 0, 0, 8, dimensions, their sizes (big endian), the array.

    For any other file, a ValueError names it.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(1 << 28)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}): fetch it again") from None
    head = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:head].ljust(4 * dimensions, b"\0"))
    size = head + math.prod(shape)
    if content[:4] != bytes([0, 0, 8, dimensions]) or size != len(content):
        raise ValueError(f"{path} is no idx file of {dimensions} dimensions: fetch it again")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _first_number(root: Path, into: str) -> int:
    """1, or 60001 where test recordings are numbered after those of the training set."""
    tests = BY_NAME["nmnist"].files["test"].glob(root) if into == "MNIST/Test" else []
    return 60001 if any(path.stem > "10000" for path in tests) else 1
