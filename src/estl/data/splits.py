"""Which item is in which split: drawn by shares of each class, or read from published lists.

Every choice among items is made by a hash of (seed, class, number): it depends neither on the order
in which a disk lists its files nor on chance.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from estl.data.cache import Load
from estl.data.items import Item, by_file
from estl.data.module import ItemData
from estl.data.published import pick_items, read_lists


class SplitData(ItemData):
    """A set of items whose splits are drawn by shares of each class, or are published lists.

    Args:
        items: those that training items are taken from.
        load: loads one item, see `ItemData`.
        test: the items of the test split, where the set has one of its own.
        val: those of the validation split, likewise.
        cut: what an item is cut into once it is in a split, such as the windows of a recording;
            lists, fractions and `per_class` know the items before that.
        listed: what lists name in place of an item: all items that belong to it are meant.
        left_out: names that published lists may hold although they are no items.
        splits: published lists in place of fractions (`read_lists`): a YAML or JSON file, a folder
            of text files, or the name of a list of the package. In a folder that holds the set's
            test split alone, only the test list counts.
        val_fraction: share of each class, outside the test split, that is the validation split.
        test_fraction: share of each class that is the test split, 0.2 if None; refused where the
            set has a test split of its own.
        per_class: training items per class, all if None; the rest is unused.
        split_seed: seed of the choice of test, validation and `per_class` items.
        loading: arguments of `ItemData` and `EventData`.

    Attributes:
        group: in a subclass, what an item belongs to: where splits are drawn, all items of a group
            are in the same one.
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
        val: Sequence[Item] | None = None,
        cut: Callable[[Item], list[Item]] | None = None,
        listed: Callable[[Item], Item] | None = None,
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
            known = [*items, *(val or ()), *(test or ())]
            if listed is None:
                picked = pick_items(lists, known, left_out)
            else:
                whose = defaultdict[Item, list[Item]](list)
                for item in known:
                    whose[listed(item)].append(item)
                named = pick_items(lists, whose, left_out)
                picked = {x: sorted(i for w in part for i in whose[w]) for x, part in named.items()}
            parts = {"train": [], **picked}
        elif test is None:
            share = 0.2 if test_fraction is None else test_fraction
            drawn = split_items(items, share, split_seed, self.group)
            parts = {"train": drawn[0], "test": drawn[1]}
        else:
            parts = {"train": sorted(items), "test": sorted(test)}
        if val is not None and not lists:
            parts = {"train": parts["train"], "val": sorted(val), "test": parts["test"]}
        if "val" not in parts:
            drawn = split_items(parts["train"], val_fraction, split_seed, self.group)
            parts = {"train": drawn[0], "val": drawn[1], "test": parts["test"]}
        unused: set[Item] = set()
        if per_class is not None:
            unused = set(parts["train"])
            parts["train"] = select_items(unused, per_class, split_seed)
            unused -= set(parts["train"])
        if cut is not None:
            parts = {name: _all_cut(part, cut) for name, part in parts.items()}
            unused = set(_all_cut(unused, cut))
        super().__init__(parts, load, **loading)
        self.unused = sorted(unused)
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
    With `group`, the items of a group go together: of the groups that hold a class, the second part
    takes that many, those with the smallest hashes, but never the last group of a class that the
    first part has.

    >>> rest, part = split_items([Item("cat", str(i)) for i in range(10)], fraction=0.2)
    >>> len(rest), len(part), set(rest) & set(part)
    (8, 2, set())
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"val_fraction or test_fraction is {fraction}: give a share in [0,1)")
    if group is not None:
        members = sorted(items)
        classes = defaultdict[Item, set[str]](set)
        for item in members:
            classes[group(item)].add(item.label)
        chosen = _draw_groups(classes, fraction, seed)
        kept = [item for item in members if group(item) not in chosen]
        return kept, [item for item in members if group(item) in chosen]
    rest: list[Item] = []
    part: list[Item] = []
    for ranked in _ranked_classes(items, seed):
        n = _share(fraction, len(ranked))
        part += ranked[:n]
        rest += ranked[n:]
    return sorted(rest), sorted(part)


def _share(fraction: float, n: int) -> int:
    """How many of n are in the second part."""
    share = math.floor(fraction * n + 0.5)
    return max(share, 1) if fraction > 0 and n > 1 else share


def _draw_groups(classes: Mapping[Item, set[str]], fraction: float, seed: int) -> set[Item]:
    """The groups of the second part, of groups that hold these classes.

    The classes that fewest groups hold come first, as there is least choice among these.
    """
    chosen: set[Item] = set()
    left = Counter(label for labels in classes.values() for label in labels)
    order = sorted(left, key=lambda label: (left[label], label))
    for label in order:
        holders = sorted((g for g in classes if label in classes[g]), key=_rank(seed))
        n = _share(fraction, len(holders))
        for group in holders:
            spared = all(left[other] > 1 for other in classes[group])
            if group not in chosen and spared and len(chosen.intersection(holders)) < n:
                chosen.add(group)
                left.subtract(classes[group])
    return chosen


def _all_cut(items: Iterable[Item], cut: Callable[[Item], list[Item]]) -> list[Item]:
    """What the items are cut into, in their order; those of one file are cut one after another."""
    items = list(items)
    pieces = {item: cut(item) for item in sorted(items, key=by_file)}
    return [piece for item in items for piece in pieces[item]]


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


def _ranked_classes(items: Iterable[Item], seed: int) -> list[list[Item]]:
    """The items class by class, each class in the order of its items' hashes."""
    ordered = sorted(items)
    for a, b in pairwise(ordered):
        if a == b:
            raise ValueError(f"item {a} is listed twice")

    return [
        sorted(group, key=_rank(seed)) for _, group in groupby(ordered, key=lambda item: item.label)
    ]


def _rank(seed: int) -> Callable[[Item], bytes]:
    """The key by which a seed orders items: their hashes."""
    return lambda item: hashlib.sha256(f"{seed}/{item}".encode()).digest()
