"""Which recording belongs to which image, and which item to which split.

A recording and the image it was made from are one item, named by class and number, and an item is
in one split: no image of the training split is the twin of a test recording. Every choice among
items is made by a hash of (seed, class, number), so it depends neither on the order in which a disk
lists its files nor on chance.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path

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


def list_items(events: Path, images: Path | None = None) -> list[Item]:
    """Items of a folder `events/<class>/<number>.bin`, sorted, each with its image if asked for.

    Args:
        events: folder with one folder of recordings a class.
        images: folder with `<class>/<number>.png` or `.jpg`; every recording must have one there.

    Raises:
        FileNotFoundError: `events` has no recordings, or a recording has no image.
    """
    recordings = sorted(events.glob("*/*.bin"))
    if not recordings:
        raise FileNotFoundError(f"no recordings {events}/<class>/<number>.bin")
    partners: dict[tuple[str, str], Path] = {}
    if images is not None:
        for suffix in ("png", "jpg"):
            partners |= {(p.parent.name, p.stem): p for p in images.glob(f"*/*.{suffix}")}
    items = []
    for path in recordings:
        key = (path.parent.name, path.stem)
        if images is not None and key not in partners:
            raise FileNotFoundError(
                f"recording {path} has no image {images / key[0] / key[1]}.png or .jpg"
            )
        items.append(Item(*key, events=path, image=partners.get(key)))
    return items


def split_items(
    items: Iterable[Item], fraction: float, seed: int = 0
) -> tuple[list[Item], list[Item]]:
    """Two parts of `items`, the second with `fraction` of each class, both sorted.

    Of n items of a class, the second part takes those with the smallest hashes: floor(fraction n +
    1/2), but at least one where n > 1 and `fraction` > 0.

    Args:
        items: in any order.
        fraction: in [0,1).
        seed: another one gives another split.

    Raises:
        ValueError: `fraction` out of range, or an item listed twice.

    >>> rest, part = split_items([Item("cat", str(i)) for i in range(10)], fraction=0.2)
    >>> len(rest), len(part), set(rest) & set(part)
    (8, 2, set())
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction}: in [0,1)")
    rest: list[Item] = []
    part: list[Item] = []
    for ranked in _ranked_classes(items, seed):
        n = math.floor(fraction * len(ranked) + 0.5)
        if fraction > 0 and len(ranked) > 1:
            n = max(n, 1)
        part += ranked[:n]
        rest += ranked[n:]
    return sorted(rest), sorted(part)


def select_items(items: Iterable[Item], per_class: int, seed: int = 0) -> list[Item]:
    """`per_class` items of each class, sorted. Fewer of the same seed are a subset of more.

    Raises:
        ValueError: `per_class` below 1 or above what a class has, or an item listed twice.

    >>> items = [Item("cat", str(i)) for i in range(10)]
    >>> set(select_items(items, 3)) <= set(select_items(items, 5))
    True
    """
    chosen: list[Item] = []
    for ranked in _ranked_classes(items, seed):
        if not 1 <= per_class <= len(ranked):
            raise ValueError(
                f"per_class={per_class}: class {ranked[0].label!r} has 1 to {len(ranked)} to give"
            )
        chosen += ranked[:per_class]
    return sorted(chosen)


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


def _ranked_classes(items: Iterable[Item], seed: int) -> list[list[Item]]:
    """The items class by class, each class in the order of its items' hashes."""
    ordered = sorted(items)
    for a, b in pairwise(ordered):
        if a == b:
            raise ValueError(f"item {a} is listed twice")

    def rank(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}/{item}".encode()).digest()

    return [sorted(group, key=rank) for _, group in groupby(ordered, key=lambda item: item.label)]
