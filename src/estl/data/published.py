"""Published lists: which items others trained and tested on."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from estl.data.items import Item

LISTS = Path(__file__).parent / "lists"
"""The lists that come with the package."""

LONGEST = 10**6
"""Names of a range."""

WORDS = ("train", "val", "test", "extra")
"""What items of a list are for."""


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
        found = re.fullmatch(r"(.*?)(\d+)-(\d+)", self.name) if len(self.name) < 256 else None
        if found is None:
            return []
        head, first, last = found.groups()
        if int(last) - int(first) >= LONGEST:
            raise ValueError(
                f"{self.file} {self.place}: {self.name!r} is more than {LONGEST} names"
            )
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
    except (json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
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


class AbsentItemsError(ValueError):
    """A list names items that are not there."""


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
        AbsentItemsError: names that are no items.
        ValueError: a name listed twice, or a list without items; the text names file and place.
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
        raise AbsentItemsError(
            f"{absent[0]} no item of {of}, such as {example!r}{more}: add it, or leave the list "
            "out with --data.init_args.splits=null"
        )
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
