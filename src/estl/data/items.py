"""Items: which recording belongs to which image, and what stands for their content.

A recording and the image it was made from are one item, named by class and number, so that no image
of the training split is the twin of a test recording.
"""

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from estl.data.catalog import IMAGES, Files

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
    """

    label: str
    number: str
    events: Path | None = field(default=None, compare=False)
    image: Path | None = field(default=None, compare=False)

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


def pair(
    recordings: Iterable[Path], images: Iterable[Path] | None, leave_out: Collection[str] = ()
) -> Pairing:
    """Files `<class>/<name>`, paired; classes in `leave_out` are passed over.

    >>> found = pair([Path("cat/1.bin"), Path("cat/2.bin")], [Path("cat/2.png")])
    >>> [str(item) for item in found.items], [path.name for path in found.alone]
    (['cat/2'], ['1.bin'])
    """

    def named(paths: Iterable[Path]) -> dict[tuple[str, str], Path]:
        return {(p.parent.name, p.stem): p for p in paths if p.parent.name not in leave_out}

    events, partners = named(recordings), named(images or ())
    pairs = [Item(*key, events=path, image=partners.get(key)) for key, path in events.items()]
    alone = [] if images is None else sorted(events[key] for key in events.keys() - partners.keys())
    extra = sorted(partners[key] for key in partners.keys() - events.keys())
    items = pairs if images is None else [item for item in pairs if item.image is not None]
    return Pairing(sorted(items), alone, extra)


def find_pairs(
    files: Files,
    root: Path,
    *,
    images: bool = True,
    leave_out: Collection[str] = (),
    missing: Literal["raise", "skip"] = "raise",
) -> Pairing:
    """The recordings of a set below `root`, with their images if they are asked for.

    Args:
        files: where they lie, from the catalog.
        root: the set's folder.
        images: whether every recording needs its image.
        leave_out: classes that are passed over.
        missing: "raise" if a recording has no image, or "skip" such recordings with a warning.

    Raises:
        FileNotFoundError: no recordings, no images, or a recording without its image.
    """
    recordings = files.find(root)
    if not images or files.images is None:
        return pair(recordings, None, leave_out)
    found = pair(recordings, files.images.find(root), leave_out)
    if found.alone:
        what = f"{len(found.alone)} recordings have no image, the first {found.alone[0]}"
        if missing == "raise":
            raise FileNotFoundError(f"{what}: point --data-path at {files.images.source}")
        warnings.warn(f"{what}: they are left out", stacklevel=3)
    return found


def list_images(root: Path) -> list[Item]:
    """Items of the images `root/<class>/<name>.jpg`, or .png, .jpeg, .bmp, sorted.

    Raises:
        FileNotFoundError: no image there.
    """
    return sorted(Item(p.parent.name, p.stem, image=p) for p in IMAGES.find(root))


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

    SHA-256 of the splits' names, the items' names and their content, in the given order of splits
    and the sorted order of items: another item, a changed file or another split gives another one.

    Args:
        splits: the items by name of split.
        content: what an item holds, in pieces.
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


def evenly(things: Sequence[T], n: int | None) -> list[T]:
    """`n` of them, or all, spread evenly.

    >>> evenly("abcdef", 3), evenly("abc", None)
    (['a', 'c', 'e'], ['a', 'b', 'c'])
    """
    if n is None or n >= len(things):
        return list(things)
    return [things[i * len(things) // n] for i in range(n)]
