"""Which item is in which split: drawn by shares of each class, or read from published lists.

Every choice among items is made by a hash of (seed, class, number): it depends neither on the order
in which a disk lists its files nor on chance.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from estl.data.cache import Load
from estl.data.items import Item
from estl.data.module import ItemData


class SplitData(ItemData):
    """A set of items whose splits are drawn by shares of each class, or are published lists.

    Args:
        items: those that training items are taken from.
        load: loads one item, see `ItemData`.
        test: the items of the test split, where the set has one of its own.
        left_out: names that published lists may hold although they are no items.
        splits: folder of published lists (`estl.data.splits.read_splits`) in place of fractions.
        val_fraction: share of each class, outside the test split, that is the validation split.
        test_fraction: share of each class that is the test split, 0.2 if None; refused where the
            set has a test split of its own.
        per_class: training items a class, all if None; the rest is unused.
        split_seed: of the choice of test, validation and `per_class` items.
        loading: arguments of `ItemData` and `EventData`.

    Raises:
        ValueError: a fraction out of range, fewer items than `per_class`, a bad list.
    """

    def __init__(
        self,
        items: Sequence[Item],
        load: Load,
        *,
        test: Sequence[Item] | None = None,
        left_out: Collection[str] = (),
        splits: Path | None = None,
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
        if splits is not None:
            parts = read_splits(splits, [*items, *(test or ())], left_out)
        elif test is None:
            share = 0.2 if test_fraction is None else test_fraction
            parts = dict(zip(("train", "test"), split_items(items, share, split_seed), strict=True))
        else:
            parts = {"train": sorted(items), "test": sorted(test)}
        if "val" not in parts:
            drawn = split_items(parts["train"], val_fraction, split_seed)
            parts = {"train": drawn[0], "val": drawn[1], "test": parts["test"]}
        if per_class is not None:
            parts["train"] = select_items(parts["train"], per_class, split_seed)
        super().__init__(parts, load, **loading)


def split_items(
    items: Iterable[Item], fraction: float, seed: int = 0
) -> tuple[list[Item], list[Item]]:
    """Two parts of `items`, the second with `fraction` of each class, both sorted.

    Of n items of a class, the second part takes those with the smallest hashes: floor(fraction n +
    1/2), but at least one where n > 1 and `fraction` > 0. An item listed twice is a ValueError.

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
    folder: Path, items: Iterable[Item], left_out: Collection[str] = ()
) -> dict[str, list[Item]]:
    """Splits that others published: lists of names in `train.txt`, `test.txt` and maybe `val.txt`.

    A line is `class/number`, with or without a suffix such as `.bin`; empty lines do not count.
    Items that no list names are in no split. `left_out` are names, or whole classes as `class/`,
    that the lists may hold although they are no items.

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
        if split == "val" and not path.is_file():
            continue
        if not path.is_file():
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
    return {split: sorted(items) for split, items in splits.items()}


def _ranked_classes(items: Iterable[Item], seed: int) -> list[list[Item]]:
    """The items class by class, each class in the order of its items' hashes."""
    ordered = sorted(items)
    for a, b in pairwise(ordered):
        if a == b:
            raise ValueError(f"item {a} is listed twice")

    def rank(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}/{item}".encode()).digest()

    return [sorted(group, key=rank) for _, group in groupby(ordered, key=lambda item: item.label)]
