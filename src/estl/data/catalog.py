"""One row per data set: its names, where its files lie, and where they are fetched from.

Readers, `estl data prepare`, `check` and `show`, the names that `--dataset` takes and the tables of
docs/data.md follow from it. The command line reads it first, so it imports nothing heavy.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
RECORDING_SUFFIXES = (
    *(".bin", ".aedat", ".aedat4", ".raw", ".dat", ".es", ".h5", ".hdf5", ".npz", ".csv"),
)
"""Suffixes of files that are looked into; their content tells how to read them."""


@dataclass(frozen=True)
class Files:
    """Files of a set, in the first of some folders that holds any of them.

    Args:
        what: "recordings", "images" or the like.
        places: folders below the root; `estl data prepare` fills the first.
        patterns: of the files below such a folder.
        source: where a user who has none is sent.
        images: those that recordings were made from: same class, same name.
    """

    what: str
    places: tuple[str, ...]
    patterns: tuple[str, ...]
    source: str
    images: "Files | None" = None

    def folder(self, root: Path) -> Path | None:
        """The first of the places below `root` that has such files, or None."""
        folders = (root / place for place in self.places)
        found = (f for f in folders if any(x.is_file() for p in self.patterns for x in f.glob(p)))
        return next(found, None)

    def glob(self, root: Path) -> list[Path]:
        """These files, sorted."""
        if (folder := self.folder(root)) is None:
            return []
        return sorted({path for pattern in self.patterns for path in folder.glob(pattern)})

    def find(self, root: Path, option: str = "--data-path") -> list[Path]:
        """These files, sorted; FileNotFoundError if there are none."""
        if not (found := self.glob(root)):
            raise FileNotFoundError(self.missing(root, option))
        return found

    def missing(self, root: Path, option: str = "--data-path") -> str:
        """What to tell a user who has none of these files below `root`, given by `option`."""
        name = self.patterns[0].replace("*/", "<class>/").replace("*", "<name>")
        places = " or ".join(self.places)
        return f"no {self.what} {name} in {root} ({places}): point {option} at {self.source}"

    def roots(self, path: Path) -> Iterator[Path]:
        """The root folders for which `path`, `<place>/<class>/<name>`, is one of these files."""
        if not any(path.match(pattern) for pattern in self.patterns):
            return
        above = path.parent.parent
        for parts in (Path(place).parts for place in self.places):
            if above.parts[len(above.parts) - len(parts) :] == parts:
                yield [above, *above.parents][len(parts)]


@dataclass(frozen=True)
class Archive:
    """One file to fetch and the folder that it becomes.

    Args:
        file: its name in the root folder.
        url: where it is; a page to be clicked through if `by_hand`.
        md5: its checksum, on which several published readers of the set agree; None if unknown.
        into: the folder under the root that it becomes. Inside the archive this is the folder of
            the same name, or else everything.
        also: other places where the unpacked folder may lie.
        inner: archive within the archive that holds this folder.
        by_hand: whether the page has no address that a program can fetch.
        labels: MNIST: the labels of these images, which become PNG files.
    """

    file: str
    url: str
    md5: str | None
    into: str
    also: tuple[str, ...] = ()
    inner: str | None = None
    by_hand: bool = False
    labels: "Archive | None" = None


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Args:
        name: what `--dataset` takes.
        home: where its class is, below `estl.data`; users name it by `class_path`.
        files: where its files lie, as "train" and "test" if it has a test split of its own.
        archives: what `estl data prepare` fetches.
        init_args: arguments of the class that make it this set.
        also: its other names in papers, in lower case without hyphens.
    """

    name: str
    home: str
    files: Mapping[str, Files] = field(default_factory=dict)
    archives: tuple[Archive, ...] = ()
    init_args: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def class_path(self) -> str:
        """The public path of its class, as recipes have it."""
        return f"estl.data.{self.home.rpartition('.')[2]}"

    def import_class(self) -> Any:
        """Its class; this imports Lightning."""
        module, _, name = self.home.rpartition(".")
        return getattr(import_module(f"estl.data.{module}"), name)

    def test_alone(self, root: Path) -> str | None:
        """What is missing where `root` holds the set's test split but not its training split."""
        train, test = self.files["train"], self.files["test"]
        return train.missing(root) if test.folder(root) and not train.folder(root) else None


def recognize(root: Path) -> DataSet | None:
    """The set whose files lie in `root`, None if there are none of any set.

    >>> recognize(Path("no/such/folder"))
    """
    return next((s for s in CATALOG if any(f.folder(root) for f in s.files.values())), None)


_IMAGES = tuple(f"*/*{s}" for suffix in IMAGE_SUFFIXES for s in (suffix, suffix.upper()))
_RECORDINGS = tuple(f"*/*{s}" for suffix in RECORDING_SUFFIXES for s in (suffix, suffix.upper()))
IMAGES = Files("images", ("101_ObjectCategories", "."), _IMAGES, "a folder of such images")

_MENDELEY = "https://data.mendeley.com/public-files/datasets"
_N_MNIST, _N_CALTECH101 = "N-MNIST (Orchard et al. 2015)", "N-Caltech101 (Orchard et al. 2015)"
_WITHOUT = "or leave the images out with --data.init_args.images=false"


def _nmnist(folder: str) -> Files:
    images = Files("images", (f"MNIST/{folder}",), _IMAGES, f"{_N_MNIST} and MNIST, {_WITHOUT}")
    return Files("recordings", (f"N-MNIST/{folder}", folder), ("*/*.bin",), _N_MNIST, images)


def _own(place: str) -> Files:
    images = Files("images", (place,), _IMAGES, f"recordings and images, {_WITHOUT}")
    source = f"a folder of recordings ({', '.join(RECORDING_SUFFIXES)}) in a folder for each class"
    return Files("recordings", (place,), _RECORDINGS, source, images)


def _zip(folder: str, file: str, md5: str) -> Archive:
    url = f"{_MENDELEY}/468j46mzdv/files/{file}/file_downloaded"
    return Archive(f"{folder}.zip", url, md5, f"N-MNIST/{folder}", (folder,))


def _idx(name: str, md5: str, labels: str) -> Archive:
    home = "https://ossci-datasets.s3.amazonaws.com/mnist"
    files = [f"{name}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    into = "MNIST/Train" if name == "train" else "MNIST/Test"
    of = Archive(files[1], f"{home}/{files[1]}", labels, "")
    return Archive(files[0], f"{home}/{files[0]}", md5, into, labels=of)


def _cifar(classes: int, folder: str, md5: str, train: tuple[str, ...], test: str) -> DataSet:
    file, source = f"cifar-{classes}-python.tar.gz", f"CIFAR-{classes}, the Python version"
    batches = {
        split: Files("CIFAR batch", (folder, "."), names, source)
        for split, names in (("train", train), ("test", (test,)))
    }
    archive = Archive(file, f"https://www.cs.toronto.edu/~kriz/{file}", md5, folder)
    return DataSet(f"cifar{classes}", "sets.cifar.CIFAR", batches, (archive,), {"classes": classes})


def _gesture(split: str) -> Files:
    return Files("list", ("DvsGesture", "."), (f"trials_to_{split}.txt",), "DVS128 Gesture")


def _cifar10dvs(suffix: str, *places: str) -> Files:
    patterns = tuple(f"{level}/cifar10_*.{suffix}" for level in ("*", "*/*", "*/*/*"))
    return Files("recordings", places, patterns, "CIFAR10-DVS (Li et al. 2017)")


def _figshare(name: str, number: int, md5: str) -> Archive:
    url = f"https://ndownloader.figshare.com/files/{number}"
    return Archive(f"{name}.zip", url, md5, f"CIFAR10-DVS/{name}", (name,))


_EVENTS = ("Caltech101", "N-Caltech101", "N-Caltech101/Caltech101", ".")
_PHOTOGRAPHS = ("101_ObjectCategories", "caltech-101/101_ObjectCategories")
_SOURCE = f"{_N_CALTECH101} and Caltech101, {_WITHOUT}"
_CALTECH101 = Files("photographs", _PHOTOGRAPHS, _IMAGES, _SOURCE)
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_NMNIST_ARCHIVES = (
    _zip("Train", "39c25547-014b-4137-a934-9d29fa53c7a0", "20959b8e626244a1b502305a9e6e2031"),
    _zip("Test", "05a4d654-7e03-4c15-bdfa-9bb2bcbea494", "69ca8762b2fe404d9b9bad1103e97832"),
    _idx("train", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
    _idx("t10k", "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
)

CATALOG = (
    DataSet("digits", "sets.digits.Digits"),
    DataSet(
        "nmnist",
        "sets.nmnist.NMNISTPairs",
        {"train": _nmnist("Train"), "test": _nmnist("Test")},
        _NMNIST_ARCHIVES,
    ),
    DataSet(
        "ncaltech101",
        "sets.ncaltech101.NCaltech101Pairs",
        {"all": Files("recordings", _EVENTS, ("*/image_*.bin",), _N_CALTECH101, _CALTECH101)},
        (
            Archive(
                "Caltech101.zip",
                f"{_MENDELEY}/cy6cvx3ryv/files/36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
                "66201824eabb0239c7ab992480b50ba3",
                _EVENTS[0],
                _EVENTS[1:-1],
            ),
            Archive(
                "caltech-101.zip",
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                _PHOTOGRAPHS[0],
                _PHOTOGRAPHS[1:],
                inner="101_ObjectCategories.tar.gz",
            ),
        ),
    ),
    _cifar(10, "cifar-10-batches-py", "c58f30108f718f92721af3b95e74349a", _BATCHES, "test_batch"),
    _cifar(100, "cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85", ("train",), "test"),
    DataSet(
        "dvsgesture",
        "sets.gesture.DVSGesture",
        {split: _gesture(split) for split in ("train", "test")},
        (
            Archive(
                "DvsGesture.tar.gz",
                "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
                "8a5c71fb11e24e5ca5b11866ca6c00a1",
                "DvsGesture",
                by_hand=True,
            ),
        ),
        also=("dvs128gesture", "dvs128"),
    ),
    DataSet(
        "cifar10dvs",
        "sets.cifar10dvs.CIFAR10DVS",
        {"raw": _cifar10dvs("aedat", "."), "converted": _cifar10dvs("npz", "events_np", ".")},
        (
            _figshare("airplane", 7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
            _figshare("automobile", 7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
            _figshare("bird", 7712794, "a9c207c91c55b9dc2002dc21c684d785"),
            _figshare("cat", 7712812, "52c63c677c2b15fa5146a8daf4d56687"),
            _figshare("deer", 7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
            _figshare("dog", 7712818, "f379ebdf6703d16e0a690782e62639c3"),
            _figshare("frog", 7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
            _figshare("horse", 7712851, "e7cbbf77bec584ffbf913f00e682782a"),
            _figshare("ship", 7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
            _figshare("truck", 7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
        ),
        also=("dvscifar10",),
    ),
    DataSet(
        "recordings",
        "sets.recordings.Recordings",
        {
            "labels": Files("table", (".",), ("labels.csv",), "a folder with it"),
            "all": _own("."),
            **{split: _own(split) for split in ("train", "val", "test")},
        },
    ),
    DataSet(
        "folder",
        "sets.folder.ImageFolder",
        {"all": IMAGES} | {x: replace(IMAGES, places=(x,)) for x in ("train", "test")},
    ),
    DataSet("shards", "stream.Shards", {"all": Files("index", (".",), ("index.json",), "shards")}),
)
"""All data sets. If a folder holds the files of several, the first is meant."""

BY_NAME = {row.name: row for row in CATALOG}

PAIRS = [(s.name, f, f.images) for s in CATALOG for f in s.files.values() if f.images is not None]
"""(name of the set, recordings, images) of all that belong together."""
