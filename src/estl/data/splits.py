"""Which item is in which split: drawn by shares of each class, or read from published lists.

Every choice among items is made by a hash of (seed, class, number): it depends neither on the order
in which a disk lists its files nor on chance.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from estl.data.cache import Load
from estl.data.items import Item
from estl.data.module import ItemData

LISTS = Path(__file__).parent / "lists"
"""The lists that come with the package."""

WORDS = ("train", "val", "test", "extra")
"""What items of a list are for."""


class SplitData(ItemData):
    """A set of items whose splits are drawn by shares of each class, or are published lists.

    Args:
        items: those that training items are taken from.
        load: loads one item, see `ItemData`.
        test: the items of the test split, where the set has one of its own.
        left_out: names that published lists may hold although they are no items.
        splits: published lists in place of fractions (`read_lists`): a YAML or JSON file, a folder
            of text files, or the name of a list of the package. In a folder that holds the set's
            test split alone, only the test list counts.
        val_fraction: share of each class, outside the test split, that is the validation split.
        test_fraction: share of each class that is the test split, 0.2 if None; refused where the
            set has a test split of its own.
        per_class: training items a class, all if None; the rest is unused.
        split_seed: of the choice of test, validation and `per_class` items.
        loading: arguments of `ItemData` and `EventData`.

    Attributes:
        group: in a subclass, whom an item belongs to: validation is then a share of these.
        extra: what `splits` lists as "extra" (`estl.data.sets.photographs`), or None.

    Raises:
        ValueError: a fraction out of range, fewer items than `per_class`, a bad list.
    """

    group: Callable[[Item], Item] | None = None

    def __init__(
        self,
        items: Sequence[Item],
        load: Load,
        *,
        test: Sequence[Item] | None = None,
        left_out: Collection[str] = (),
        splits: str | Path | None = None,
        val_fraction: float = 0.1,
        test_fraction: float | None = None,
        per_class: int | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        self.val_fraction = val_fraction
        if test is not None and test_fraction is not None:
            raise ValueError(
                f"test_fraction={test_fraction}: the set has a test split of its own: leave it out"
            )
        lists = {} if splits is None else read_lists(splits)
        extra = lists.pop("extra", None)
        if lists:
            if test is not None and not items:
                lists = {"test": lists["test"]}
            parts = {"train": [], **pick_items(lists, [*items, *(test or ())], left_out)}
        elif test is None:
            share = 0.2 if test_fraction is None else test_fraction
            parts = dict(zip(("train", "test"), split_items(items, share, split_seed), strict=True))
        else:
            parts = {"train": sorted(items), "test": sorted(test)}
        if "val" not in parts:
            drawn = split_items(parts["train"], val_fraction, split_seed, self.group)
            parts = {"train": drawn[0], "val": drawn[1], "test": parts["test"]}
        if per_class is not None:
            parts["train"] = select_items(parts["train"], per_class, split_seed)
        super().__init__(parts, load, **loading)
        self.extra = extra


def split_items(
    items: Iterable[Item],
    fraction: float,
    seed: int = 0,
    group: Callable[[Item], Item] | None = None,
) -> tuple[list[Item], list[Item]]:
    """Two parts of `items`, the second with `fraction` of each class, both sorted.

    Of n items of a class, the second part takes those with the smallest hashes: floor(fraction n +
    1/2), but at least one where n > 1 and `fraction` > 0. An item listed twice is a ValueError.
    With `group`, the groups of the items are split so, and their items go with them.

    >>> rest, part = split_items([Item("cat", str(i)) for i in range(10)], fraction=0.2)
    >>> len(rest), len(part), set(rest) & set(part)
    (8, 2, set())
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction}: in [0,1)")
    if group is not None:
        members = sorted(items)
        chosen = set(split_items({group(item) for item in members}, fraction, seed)[1])
        kept = [item for item in members if group(item) not in chosen]
        return kept, [item for item in members if group(item) in chosen]
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


class Entry(NamedTuple):
    """A name, or a range of names, and where it is listed."""

    name: str
    file: Path
    place: str

    def expand(self) -> list[str]:
        """The names of a range, with numbers as wide as its first; empty if it is none.

        >>> Entry("cat/image_0009-0011", Path("list.yaml"), "train 1").expand()
        ['cat/image_0009', 'cat/image_0010', 'cat/image_0011']
        """
        if (found := re.fullmatch(r"(.*?)(\d+)-(\d+)", self.name)) is None:
            return []
        head, first, last = found.groups()
        return [f"{head}{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]


def read_lists(source: str | Path) -> dict[str, list[Entry]]:
    """Published lists of names: "train", "test", and where they are given "val" and "extra".

    `source` is the name of a list of the package; a YAML or JSON file that maps these words to
    names; or a folder of `train.txt`, `test.txt` and so on with a name in every line. "extra" are
    images that only a teacher learns from.

    Raises:
        FileNotFoundError: no such list.
        ValueError: a file that cannot be read, or other lists than these.

    >>> [entry.name for entry in read_lists("nmnist-subset")["test"]]
    ['60001-60100']
    """
    path = shipped if (shipped := LISTS / f"{source}.yaml").is_file() else Path(source)
    if path.is_dir():
        files = {word: path / f"{word}.txt" for word in WORDS}
        needed = {w: f for w, f in files.items() if f.is_file() or w in ("train", "test")}
        return {
            word: [
                Entry(name, file, f"line {i}")
                for i, name in enumerate(_read(file).splitlines() or [""], start=1)
            ]
            for word, file in needed.items()
        }
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in LISTS.glob("*.yaml")))
        raise FileNotFoundError(
            f"no list {source}: splits is a YAML or JSON file, a folder with train.txt and "
            f"test.txt, or one of {known}"
        )
    try:  # BaseLoader: 00001 is a name, not a number
        text = _read(path)
        lists = json.loads(text) if path.suffix == ".json" else yaml.load(text, yaml.BaseLoader)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path}: neither YAML nor JSON ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(lists, dict) or not {"train", "test"} <= lists.keys() <= set(WORDS):
        raise ValueError(
            f"{path}: give the lists train and test, and maybe val and extra, no others"
        )
    entries = {}
    for word in (word for word in WORDS if word in lists):  # the fingerprint knows their order
        names = lists[word]
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: {word} is no list of names (in JSON, each in quotes)")
        entries[word] = [
            Entry(x, path, f"{word} {i}") for i, x in enumerate(names or [""], start=1)
        ]
    return entries


def pick_items(
    lists: Mapping[str, Sequence[Entry]],
    items: Iterable[Item],
    left_out: Collection[str] = (),
    of: str | Path = "this data set",
) -> dict[str, list[Item]]:
    """The items that lists name, sorted; those that no list names are in no split.

    A name is `class/number`, with or without a suffix such as `.bin`, or the number alone where
    only one class has it. What is no item's name may be a range (`Entry.expand`).

    Args:
        lists: what to pick (`read_lists`); empty names do not count.
        items: what there is.
        left_out: names, or whole classes as `class/`, that lists may hold although they are no
            items.
        of: where the items are, for messages.

    Raises:
        ValueError: names that are no items, a name listed twice, or a list without items; the text
            names file and place.
    """
    by_name: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_name[str(item)].append(item)
        by_name[item.number].append(item)
    where: dict[Item, Entry] = {}
    absent: list[str] = []
    parts: dict[str, list[Item]] = {}
    for word, entries in lists.items():
        for entry in entries:
            whole = entry.name.strip().replace("\\", "/")
            names = [] if whole in by_name else entry._replace(name=whole).expand()
            for name in names or [whole]:
                short = name.rsplit(".", 1)[0]
                if not name or not {name, short, name.split("/")[0] + "/"}.isdisjoint(left_out):
                    continue
                at = f"{entry.file} {entry.place}: {name!r} is"
                found = by_name.get(name) or by_name.get(short)
                if found is None:
                    absent.append(at)
                    continue
                item = found[0]
                if len(found) > 1:
                    raise ValueError(f"{at} in {item.label} and {found[1].label}: name the class")
                if item in where:
                    other = where[item]
                    raise ValueError(f"{at} already in {other.file.name} {other.place}")
                where[item] = entry
                parts.setdefault(word, []).append(item)
    if absent:
        more = f" (nor are {len(absent) - 1} other names)" if len(absent) > 1 else ""
        example = next(iter(by_name), None)
        raise ValueError(f"{absent[0]} no item of {of}, such as {example!r}{more}")
    for word, entries in lists.items():
        if word not in parts:
            raise ValueError(f"{entries[0].file}: no items in this list ({word})")
    return {word: sorted(picked) for word, picked in parts.items()}


def _read(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"no list {file}: a folder of splits has train.txt, test.txt")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file (byte {error.start})") from None


def _ranked_classes(items: Iterable[Item], seed: int) -> list[list[Item]]:
    """The items class by class, each class in the order of its items' hashes."""
    ordered = sorted(items)
    for a, b in pairwise(ordered):
        if a == b:
            raise ValueError(f"item {a} is listed twice")

    def rank(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}/{item}".encode()).digest()

    return [sorted(group, key=rank) for _, group in groupby(ordered, key=lambda item: item.label)]
