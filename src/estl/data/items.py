"""Which recording belongs to which image, and which item to which split.

A recording and the image it was made from are one item, named by class and number, and an item is
in one split: no image of the training split is the twin of a test recording. Every choice among
items is made by a hash of (seed, class, number), so it depends neither on the order in which a disk
lists its files nor on chance.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path

from estl.data.formats.images import SUFFIXES

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
    """What two folders hold.

    Args:
        items: recordings, each with its image where images were asked for, sorted.
        alone: recordings without an image; they are no items.
        extra_images: number of images without a recording; a set may well have more images.
    """

    items: list[Item]
    alone: list[Path]
    extra_images: int


def pair_items(
    events: Path, images: Path | None = None, leave_out: Collection[str] = ()
) -> Pairing:
    """Recordings `events/<class>/<number>.bin` and images `images/<class>/<number>.png` or `.jpg`.

    Args:
        events: folder with one folder of recordings a class.
        images: folder with one folder of images a class; None if images are not asked for.
        leave_out: classes that are not looked at.

    Raises:
        FileNotFoundError: `events` has no recordings.
    """

    def files(folder: Path, suffix: str) -> list[Path]:
        found = folder.glob(f"*/*.{suffix}")
        return sorted(path for path in found if path.parent.name not in leave_out)

    recordings = files(events, "bin")
    if not recordings:
        raise FileNotFoundError(f"no recordings {events}/<class>/<number>.bin")
    partners: dict[tuple[str, str], Path] = {}
    if images is not None:
        for suffix in ("png", "jpg"):
            partners |= {(p.parent.name, p.stem): p for p in files(images, suffix)}
    items, alone = [], []
    for path in recordings:
        key = (path.parent.name, path.stem)
        image = partners.pop(key, None)
        if images is not None and image is None:
            alone.append(path)
        else:
            items.append(Item(*key, events=path, image=image))
    return Pairing(sorted(items), alone, len(partners))


def list_items(events: Path, images: Path | None = None) -> list[Item]:
    """The items of `pair_items`, where every recording must have an image if images are asked for.

    Raises:
        FileNotFoundError: `events` has no recordings, or a recording has no image.
    """
    pairing = pair_items(events, images)
    if images is not None:
        check_partners(pairing, images)
    return pairing.items


def list_images(root: Path) -> list[Item]:
    """Items of a folder `root/<class>/<name>.png` (or .jpg, .jpeg, .bmp), sorted.

    Raises:
        FileNotFoundError: no image there.
    """
    paths = (p for p in root.glob("*/*") if p.suffix.lower() in SUFFIXES)
    items = sorted(Item(p.parent.name, p.stem, image=p) for p in paths)
    if not items:
        raise FileNotFoundError(
            f"no images {root}/<class>/<name>.jpg or .png: point --data-path at such a folder"
        )
    return items


def check_partners(pairing: Pairing, images: Path) -> None:
    """Raise FileNotFoundError, with the file that is missing, if a recording is alone."""
    if pairing.alone:
        first, more = pairing.alone[0], len(pairing.alone) - 1
        raise FileNotFoundError(
            f"recording {first} has no image {images / first.parent.name / first.stem}.png or .jpg"
            + (f" ({more} more have none)" if more else "")
        )


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


def read_splits(
    folder: Path,
    items: Iterable[Item],
    *,
    val_fraction: float = 0.0,
    seed: int = 0,
    left_out: Collection[str] = (),
) -> dict[str, list[Item]]:
    """Splits that others published: lists of names in `train.txt`, `val.txt` and `test.txt`.

    A line is `class/number`, with or without a suffix such as `.bin`; empty lines do not count.
    Items that no list names are in no split. Without `val.txt`, the validation split is taken from
    the training list by `split_items`.

    Args:
        folder: where the lists are.
        items: all items that there are.
        val_fraction: share of the training list, where there is no `val.txt`.
        seed: of that choice.
        left_out: names, or whole classes as `class/`, that the lists may hold although they are no
            items.

    Raises:
        FileNotFoundError: no `train.txt` or no `test.txt`.
        ValueError: an unknown name, a name listed twice, or a list without items; the text names
            the file and the line.
    """
    by_name = {str(item): item for item in items}
    where: dict[Item, str] = {}
    splits: dict[str, list[Item]] = {}
    for split in ("train", "val", "test"):
        path = folder / f"{split}.txt"
        if not path.is_file():
            if split == "val":
                continue
            raise FileNotFoundError(f"no list {path}: a folder of splits has train.txt, test.txt")
        splits[split] = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text file (byte {error.start})") from None
        for i, line in enumerate(lines, start=1):
            name = line.strip().replace("\\", "/")
            short = name.rsplit(".", 1)[0]
            if not name or not {name, short, name.split("/")[0] + "/"}.isdisjoint(left_out):
                continue
            item = by_name.get(name) or by_name.get(short)
            if item is None:
                raise ValueError(
                    f"{path} line {i}: {name!r} is no item of this data set, such as "
                    f"{next(iter(by_name), None)!r}"
                )
            if item in where:
                raise ValueError(f"{path} line {i}: {name!r} is already in {where[item]}")
            where[item] = f"{path.name} line {i}"
            splits[split].append(item)
        if not splits[split]:
            raise ValueError(f"{path}: no items in this list")
    if "val" not in splits:
        splits["train"], splits["val"] = split_items(splits["train"], val_fraction, seed)
    return {split: sorted(splits[split]) for split in ("train", "val", "test")}


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
