"""One row a data set: its names, where its files lie, and where they are fetched from.

Readers, `estl data prepare`, `check` and `show`, the names that `--dataset` takes and the tables of
docs/data.md follow from it. The command line reads it first, so it imports nothing heavy.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class Files:
    """Files of a set, in the first of some folders that holds any of them.

    Args:
        what: "recordings", "images" or the like.
        places: folders below the root; `estl data prepare` fills the first.
        patterns: of the files below such a folder; a class has a folder of its own.
        source: where a user who has none is sent.
    """

    what: str
    places: tuple[str, ...]
    patterns: tuple[str, ...]
    source: str

    def folder(self, root: Path) -> Path | None:
        """The first of the places below `root` that has such files, or None."""
        folders = (root / place for place in self.places)
        return next((f for f in folders if any(any(f.glob(p)) for p in self.patterns)), None)

    def find(self, root: Path) -> list[Path]:
        """These files, sorted.

        Raises:
            FileNotFoundError: there are none.
        """
        folder = self.folder(root)
        if folder is None:
            raise FileNotFoundError(self.missing(root))
        return sorted({path for pattern in self.patterns for path in folder.glob(pattern)})

    def roots(self, path: Path) -> Iterator[Path]:
        """The folders from which `path`, `<place>/<class>/<name>`, is one of these files."""
        above = path.parent.parent
        for parts in (Path(place).parts for place in self.places):
            if above.parts[len(above.parts) - len(parts) :] == parts:
                yield [above, *above.parents][len(parts)]

    def missing(self, root: Path) -> str:
        """What to tell a user who has none of these files below `root`."""
        name = self.patterns[0].replace("*/*", "<class>/<name>")
        places = " or ".join(self.places)
        return f"no {self.what} {name} in {root} ({places}): point --data-path at {self.source}"


@dataclass(frozen=True)
class Part:
    """The part of a set that is one of its splits, or from which splits are drawn.

    Args:
        split: "train" or "test" where the set has a test split of its own, otherwise "all".
        files: what is read.
        images: the images that the recordings were made from: same class, same name.
    """

    split: Literal["train", "test", "all"]
    files: Files
    images: Files | None = None


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


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Args:
        name: what `--dataset` takes.
        home: where its class is, below `estl.data`; users name it by `class_path`.
        init_args: arguments of the class that make it this set.
        parts: where its files lie.
        archives: what `estl data prepare` fetches; addresses and MD5 sums are those that several
            published readers of the set agree on.
    """

    name: str
    home: str
    init_args: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    archives: tuple[Archive, ...] = ()

    @property
    def class_path(self) -> str:
        """The public path of its class, as recipes have it."""
        return f"estl.data.{self.home.rpartition('.')[2]}"

    def part(self, split: str) -> Part:
        """The part for a split."""
        return next(part for part in self.parts if part.split == split)

    def test_alone(self, root: Path) -> str | None:
        """What is missing where `root` holds the set's test split but not its training split."""
        train, test = self.part("train").files, self.part("test").files
        alone = test.folder(root) is not None and train.folder(root) is None
        return train.missing(root) if alone else None

    def import_class(self) -> Any:
        """Its class; this imports Lightning."""
        module, _, name = self.home.rpartition(".")
        return getattr(import_module(f"estl.data.{module}"), name)


def recognize(root: Path) -> DataSet | None:
    """The set whose files lie in `root`, None if there are none of any set.

    >>> recognize(Path("no/such/folder"))
    """
    return next((s for s in CATALOG if any(part.files.folder(root) for part in s.parts)), None)


_IMAGES = tuple(f"*/*{s}" for suffix in IMAGE_SUFFIXES for s in (suffix, suffix.upper()))
_INDEX = Files("index", (".",), ("index.json",), "a folder of estl data shard")
IMAGES = Files("images", ("101_ObjectCategories", "."), _IMAGES, "a folder of such images")

_CALTECH101 = ("101_ObjectCategories", "caltech-101/101_ObjectCategories")
_N_CALTECH101 = ("Caltech101", "N-Caltech101", "N-Caltech101/Caltech101", ".")
_SOURCE = "N-Caltech101 (Orchard et al. 2015)"
_MENDELEY = "https://data.mendeley.com/public-files/datasets"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_WITHOUT = "or leave the images out with --data.init_args.images=false"


def _nmnist(split: Literal["train", "test"], folder: str) -> Part:
    source = "N-MNIST (Orchard et al. 2015)"
    recordings = Files("recordings", (f"N-MNIST/{folder}", folder), ("*/*.bin",), source)
    images = Files("images", (f"MNIST/{folder}",), _IMAGES, f"{source} and MNIST, {_WITHOUT}")
    return Part(split, recordings, images)


def _idx(name: str, images: str, labels: str) -> Archive:
    """MNIST's images with their labels, by their MD5 sums."""
    files = [f"{name}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    of = Archive(files[1], f"{_MNIST}/{files[1]}", labels, "")
    into = "MNIST/Train" if name == "train" else "MNIST/Test"
    return Archive(files[0], f"{_MNIST}/{files[0]}", images, into, labels=of)


def _cifar(classes: int, folder: str, md5: str, train: tuple[str, ...], test: str) -> DataSet:
    file, source = f"cifar-{classes}-python.tar.gz", f"CIFAR-{classes}, the Python version"
    return DataSet(
        f"cifar{classes}",
        "sets.cifar.CIFAR",
        {"classes": classes},
        parts=(
            Part("train", Files("CIFAR batch", (folder, "."), train, source)),
            Part("test", Files("CIFAR batch", (folder, "."), (test,), source)),
        ),
        archives=(Archive(file, f"https://www.cs.toronto.edu/~kriz/{file}", md5, folder),),
    )


def _recordings(suffix: str, *places: str) -> Part:
    patterns = tuple(f"{level}/*.{suffix}" for level in ("*", "*/*", "*/*/*"))
    return Part("all", Files("recordings", places, patterns, "CIFAR10-DVS (Li et al. 2017)"))


def _cifar10dvs(name: str, number: int, md5: str) -> Archive:
    url = f"https://ndownloader.figshare.com/files/{number}"
    return Archive(f"{name}.zip", url, md5, f"CIFAR10-DVS/{name}", also=(name,))


def _gesture(split: Literal["train", "test"]) -> Part:
    lists = (f"trials_to_{split}.txt",)
    return Part(split, Files("list", ("DvsGesture", "."), lists, "DVS128 Gesture"))


CATALOG = (
    DataSet("digits", "sets.digits.Digits"),
    DataSet(
        "nmnist",
        "sets.nmnist.NMNISTPairs",
        parts=(_nmnist("train", "Train"), _nmnist("test", "Test")),
        archives=(
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
            _idx("train", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
            _idx("t10k", "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
    ),
    DataSet(
        "ncaltech101",
        "sets.ncaltech101.NCaltech101Pairs",
        parts=(
            Part(
                "all",
                Files("recordings", _N_CALTECH101, ("*/*.bin",), _SOURCE),
                Files("photographs", _CALTECH101, _IMAGES, f"{_SOURCE} and Caltech101, {_WITHOUT}"),
            ),
        ),
        archives=(
            Archive(
                "Caltech101.zip",
                f"{_MENDELEY}/cy6cvx3ryv/files/36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
                "66201824eabb0239c7ab992480b50ba3",
                "Caltech101",
                also=_N_CALTECH101[1:-1],
            ),
            Archive(
                "caltech-101.zip",
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                "101_ObjectCategories",
                inner="101_ObjectCategories.tar.gz",
                also=_CALTECH101[1:],
            ),
        ),
    ),
    _cifar(
        10,
        "cifar-10-batches-py",
        "c58f30108f718f92721af3b95e74349a",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
    ),
    _cifar(100, "cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85", ("train",), "test"),
    DataSet(
        "dvsgesture",
        "sets.gesture.DVSGesture",
        parts=(_gesture("train"), _gesture("test")),
        archives=(
            Archive(
                "DvsGesture.tar.gz",
                "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
                "8a5c71fb11e24e5ca5b11866ca6c00a1",
                "DvsGesture",
                by_hand=True,
            ),
        ),
    ),
    DataSet(
        "cifar10dvs",
        "sets.cifar10dvs.CIFAR10DVS",
        parts=(_recordings("aedat", "."), _recordings("npz", "events_np", ".")),
        archives=(
            _cifar10dvs("airplane", 7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
            _cifar10dvs("automobile", 7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
            _cifar10dvs("bird", 7712794, "a9c207c91c55b9dc2002dc21c684d785"),
            _cifar10dvs("cat", 7712812, "52c63c677c2b15fa5146a8daf4d56687"),
            _cifar10dvs("deer", 7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
            _cifar10dvs("dog", 7712818, "f379ebdf6703d16e0a690782e62639c3"),
            _cifar10dvs("frog", 7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
            _cifar10dvs("horse", 7712851, "e7cbbf77bec584ffbf913f00e682782a"),
            _cifar10dvs("ship", 7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
            _cifar10dvs("truck", 7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
        ),
    ),
    DataSet("folder", "sets.folder.ImageFolder", parts=(Part("all", IMAGES),)),
    DataSet("shards", "stream.Shards", parts=(Part("all", _INDEX),)),
)
"""All of them. Where the files of several lie in a folder, the first is meant."""

BY_NAME = {row.name: row for row in CATALOG}

PAIRS = [(s.name, p.files, p.images) for s in CATALOG for p in s.parts if p.images is not None]
"""The sets of recordings and images that belong together, with both kinds of files."""
