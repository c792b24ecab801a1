"""Items: which recording belongs to which image, and what stands for their content.

A recording and the image it was made from are one item, named by class and number, so that no image
of the training split is the twin of a test recording.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from estl.data.catalog import IMAGES, PAIRS, RECORDING_SUFFIXES, Files

T = TypeVar("T")

_HEAD = 4096


@dataclass(frozen=True, order=True)
class Item:
    """One thing that was seen: a recording, and the image it was made from where there is one.

    Args:
        label: name of its class.
        number: its name within the class, the same for recording and image.
        events: file of the recording.
        image: file of the image.
        listed: where a table lists it, for messages.
    """

    label: str
    number: str
    events: Path | None = field(default=None, compare=False)
    image: Path | None = field(default=None, compare=False)
    listed: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.label}/{self.number}"


@dataclass(frozen=True)
class Pairing:
    """Recordings and images of the same class and name.

    Args:
        items: recordings, each with its image where images were asked for, sorted.
        alone: recordings without an image; they are no items.
        extra: images without a recording; a set may well have more images.
    """

    items: list[Item]
    alone: list[Path]
    extra: list[Path]

    def __str__(self) -> str:
        return f"{len(self.alone)} recordings have no image, the first {self.alone[0]}"


def find_pairs(
    files: Files,
    root: Path,
    *,
    images: bool = True,
    leave_out: Collection[str] = (),
    missing: Literal["raise", "skip"] = "raise",
) -> Pairing:
    """The recordings below `root`, with their images if they are asked for.

    Args:
        files: where they lie, from the catalog.
        root: the set's folder.
        images: whether every recording needs its image.
        leave_out: classes that are passed over.
        missing: "raise" if a recording has no image, or "skip" such recordings.

    Raises:
        FileNotFoundError: no recordings, or one without its image.
    """

    def named(paths: Iterable[Path]) -> dict[tuple[str, str], Path]:
        return {(p.parent.name, p.stem): p for p in paths if p.parent.name not in leave_out}

    events = named(files.find(root))
    if not images or files.images is None:
        return Pairing(sorted(Item(*key, events=path) for key, path in events.items()), [], [])
    partners = named((files.images.find if missing == "raise" else files.images.glob)(root))
    both = events.keys() & partners.keys()
    items = sorted(Item(*key, events=events[key], image=partners[key]) for key in both)
    alone, extra = ([x[k] for k in sorted(x.keys() - both)] for x in (events, partners))
    found = Pairing(items, alone, extra)
    if alone and missing == "raise":
        raise FileNotFoundError(f"{found}: point --data-path at {files.images.source}")
    return found


def missing_partners(root: Path) -> tuple[list[Path], list[Path]]:
    """Recordings below `root` without their image, and images without their recording.

    It looks into those folders of the catalog that hold both a recording and a folder of images; if
    the two are one folder, only if any image lies beside its recording.
    """
    found = [
        (recordings.places == images.places, find_pairs(recordings, root, missing="skip"))
        for _, recordings, images in PAIRS
        if recordings.folder(root) and any((root / place).is_dir() for place in images.places)
    ]
    pairings = [pairing for beside, pairing in found if pairing.items or not beside]
    return [x for p in pairings for x in p.alone], [x for p in pairings for x in p.extra]


def list_nested(root: Path) -> list[Path]:
    """Recordings below `root` that lie deeper than `<class>/<name>`, where no set looks, sorted."""
    paths = root.glob("*/*/**/*")
    return sorted(p for p in paths if p.suffix.lower() in RECORDING_SUFFIXES and p.is_file())


def list_images(root: Path, files: Files = IMAGES, option: str = "--data-path") -> list[Item]:
    """Items of the images `root/<class>/<name>.jpg`, or .png, .jpeg, .bmp, sorted.

    Raises:
        FileNotFoundError: no image there; the text names the `option` by which `root` was given.
    """
    return sorted(Item(p.parent.name, p.stem, image=p) for p in files.find(root, option))


def file_content(item: Item) -> Iterable[bytes]:
    """Size and first 4096 bytes of each of an item's files."""
    for path in (item.events, item.image):
        if path is not None:
            with path.open("rb") as file:
                yield path.stat().st_size.to_bytes(8, "big")
                yield file.read(_HEAD)


def fingerprint(
    splits: Mapping[str, Sequence[Item]],
    content: Callable[[Item], Iterable[bytes]] = file_content,
) -> str:
    """Twelve hexadecimal digits that stand for a data set and its splits.

    SHA-256 of the splits' names, the items' names and their `content`, in the given order of splits
    and the sorted order of items: another item, a changed file or another split gives another one.
    """
    digest = hashlib.sha256()

    def add(piece: bytes) -> None:  # with its length, so that "a", "bc" is not "ab", "c"
        digest.update(len(piece).to_bytes(8, "big") + piece)

    for name, items in splits.items():
        add(name.encode())
        add(len(items).to_bytes(8, "big"))
        for item in sorted(items):
            add(str(item).encode())
            for piece in content(item):
                add(piece)
    return digest.hexdigest()[:12]


def by_file(item: Item) -> tuple[str, Item]:
    """A key that brings the items of one recording together, which is then decoded once."""
    return str(item.events or ""), item


def evenly(things: Sequence[T], n: int | None) -> list[T]:
    """`n` of them, or all, spread evenly.

    >>> evenly("abcdef", 3), evenly("abc", None)
    (['a', 'c', 'e'], ['a', 'b', 'c'])
    """
    if n is None or n >= len(things):
        return list(things)
    return [things[i * len(things) // n] for i in range(n)]
