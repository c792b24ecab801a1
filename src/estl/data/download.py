"""The data sets' public homes: fetch an archive, verify it, unpack it where the readers look.

Addresses and MD5 sums are those that several published readers of these sets agree on.
"""

import gzip
import hashlib
import math
import struct
import sys
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
from PIL import Image

from estl.data.formats.archives import unpack


@dataclass(frozen=True)
class Archive:
    """One file to fetch and the folder that it becomes.

    Args:
        file: its name in the root folder.
        url: where it is; a page to be clicked through if `by_hand`.
        md5: its checksum, None if none is known.
        into: the folder under the root that it becomes. Inside the archive this is the folder of
            the same name, or else everything.
        inner: archive within the archive that holds this folder.
        also: other places where the unpacked folder may lie.
        by_hand: whether the page has no address that a program can fetch.
        labels: MNIST: the labels of these images, which become PNG files.
    """

    file: str
    url: str
    md5: str | None
    into: str
    inner: str | None = None
    also: tuple[str, ...] = ()
    by_hand: bool = False
    labels: "Archive | None" = None


_MENDELEY = "https://data.mendeley.com/public-files/datasets"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FIGSHARE = "https://ndownloader.figshare.com/files"


def _mnist(part: str, images: str, labels: str, image_md5: str, label_md5: str) -> Archive:
    return Archive(
        images,
        f"{_MNIST}/{images}",
        image_md5,
        f"MNIST/{part}",
        labels=Archive(labels, f"{_MNIST}/{labels}", label_md5, ""),
    )


N_CALTECH101 = Archive(
    "Caltech101.zip",
    f"{_MENDELEY}/cy6cvx3ryv/files/36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
    "66201824eabb0239c7ab992480b50ba3",
    "Caltech101",
    also=("N-Caltech101", "N-Caltech101/Caltech101"),
)
CALTECH101 = Archive(
    "caltech-101.zip",
    "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
    "3138e1922a9193bfa496528edbbc45d0",
    "101_ObjectCategories",
    inner="101_ObjectCategories.tar.gz",
    also=("caltech-101/101_ObjectCategories",),
)
N_MNIST = (
    Archive(
        "Train.zip",
        f"{_MENDELEY}/468j46mzdv/files/39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
        "20959b8e626244a1b502305a9e6e2031",
        "N-MNIST/Train",
        also=("Train",),
    ),
    Archive(
        "Test.zip",
        f"{_MENDELEY}/468j46mzdv/files/05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
        "69ca8762b2fe404d9b9bad1103e97832",
        "N-MNIST/Test",
        also=("Test",),
    ),
)
MNIST = (
    _mnist(
        "Train",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    _mnist(
        "Test",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
CIFAR10_DVS = tuple(
    Archive(f"{name}.zip", f"{_FIGSHARE}/{number}", md5, f"CIFAR10-DVS/{name}", also=(name,))
    for name, number, md5 in (
        ("airplane", 7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
        ("automobile", 7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
        ("bird", 7712794, "a9c207c91c55b9dc2002dc21c684d785"),
        ("cat", 7712812, "52c63c677c2b15fa5146a8daf4d56687"),
        ("deer", 7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
        ("dog", 7712818, "f379ebdf6703d16e0a690782e62639c3"),
        ("frog", 7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
        ("horse", 7712851, "e7cbbf77bec584ffbf913f00e682782a"),
        ("ship", 7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
        ("truck", 7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
    )
)

SETS: dict[str, tuple[Archive, ...]] = {
    "ncaltech101": (N_CALTECH101, CALTECH101),
    "nmnist": (*N_MNIST, *MNIST),
    "cifar10": (
        Archive(
            "cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            "cifar-10-batches-py",
        ),
    ),
    "cifar100": (
        Archive(
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-python",
        ),
    ),
    "cifar10dvs": CIFAR10_DVS,
    "dvsgesture": (
        Archive(
            "DvsGesture.tar.gz",
            "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
            "8a5c71fb11e24e5ca5b11866ca6c00a1",
            "DvsGesture",
            by_hand=True,
        ),
    ),
}
"""The archives of each data set by its name on the command line."""


def prepare(name: str, root: str | Path, download: bool = True) -> None:
    """Make `root` the folder that the reader of a data set takes: fetch, verify and unpack.

    What is unpacked already is left alone, and an archive that lies in `root` is not fetched again.
    Unpacking is done in a temporary folder, which is renamed at the end: what was interrupted is
    not taken for complete.

    Args:
        name: of `SETS`.
        root: folder for the archives and for what they hold; it is made.
        download: whether archives may be fetched.

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
        if any(_has_files(root / folder) for folder in (archive.into, *archive.also)):
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
        progress = sys.stderr.isatty()
        try:
            pooch.retrieve(archive.url, None, archive.file, root, progressbar=progress)
        except OSError as error:  # of requests too
            raise ConnectionError(
                f"{archive.url} could not be fetched ({type(error).__name__}): try again, or "
                f"download it elsewhere and put it into {root} as {archive.file}"
            ) from error
    verify(path, archive.md5)
    return path


def verify(path: Path, md5: str | None) -> None:
    """Raise ValueError if a file has another checksum; warn if none is known."""
    if md5 is None:
        warnings.warn(f"{path} is not verified: its checksum is not known", stacklevel=2)
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise ValueError(
            f"{path} has the MD5 sum {found}, not {md5}: delete the file and run this again"
        )


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is not None


def _content(folder: Path, name: str) -> Path:
    """The folder of this name nearest to the top of `folder`, or else `folder`."""
    found = (path for path in folder.rglob(name) if path.is_dir() and not path.is_symlink())
    return min(found, key=lambda path: (len(path.parts), path), default=folder)


def write_digits(images: Path, labels: Path, folder: Path, first: int = 1) -> None:
    """Write MNIST's gzipped idx files as `folder/<digit>/<number>.png`.

    N-MNIST numbers its recordings by their place in MNIST, counted from 1, with five digits.

    Args:
        images: idx file (n,28,28).
        labels: idx file (n,).
        folder: to write to.
        first: number of the first image.

    Raises:
        ValueError: not such files; the text names the file.
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

    Raises:
        ValueError: not such a file; the text names it.
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
    part = Path(into).name
    folders = (root / "N-MNIST" / part, root / part)
    numbers = (path.stem for folder in folders for path in folder.glob("*/*.bin"))
    return 60001 if part == "Test" and next(numbers, "0") > "10000" else 1
