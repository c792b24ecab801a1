"""Things that a set has more than once: under one name, or in the same bytes."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from estl.data.items import Item, file_content
from estl.data.module import ItemData

_ENDS = 4096  # bytes


@dataclass(frozen=True)
class Member:
    """An item of a split, or of the bridge that trains with it, and, if stored in files, which one
    is meant.
    """

    split: str
    item: Item
    path: Path | None = None
    bridge: bool = False

    def __str__(self) -> str:
        what = "bridge image" if self.bridge else f"{self.split} item"
        return f"{what} {self.item}" + (f" ({self.path})" if self.path else "")


@dataclass(frozen=True)
class Group:
    """Members that are, or look, the same.

    Args:
        what: "name", "image", "recording", "content", "pixels" or "look".
        members: two or more.
    """

    what: str
    members: tuple[Member, ...]

    @property
    def items(self) -> set[Item]:
        """The members' items."""
        return {m.item for m in self.members}

    @property
    def leak(self) -> bool:
        """Whether the members are in more than one split."""
        return len({m.split for m in self.members}) > 1

    def __str__(self) -> str:
        first = self.members[0]
        other = next((m for m in self.members if m.split != first.split), self.members[1])
        more = f" and {len(self.members) - 2} more" if len(self.members) > 2 else ""
        return f"{first} and {other}{more}"


def repeated(data: ItemData, unreadable: Collection[Item] = ()) -> list[Group]:
    """All that is listed or stored more than once, in any splits; `unreadable` have no content."""
    members = [Member(split, item) for split, items in data.splits.items() for item in items]
    members += [Member("train", item, bridge=True) for item in data.unpaired]
    groups = alike("name", members, lambda m: m.item)
    if data.content is not file_content:
        known = [m for m in members if m.item not in unreadable]
        same = alike("content", known, lambda m: digest(data.content(m.item)))
        return groups + [group for group in same if len(group.items) > 1]
    # Once a file, of which several items of a split may be windows.
    once = (cache(key) for key in (os.path.getsize, _ends, _whole))
    keys = [lambda m, key=key: key(m.path) for key in once]
    for what, attribute in (("image", "image"), ("recording", "events")):
        files = [replace(m, path=getattr(m.item, attribute)) for m in members]
        same = alike(what, [m for m in files if m.path and m.path.is_file()], *keys)
        groups += [g for g in same if g.leak or len({m.path for m in g.members}) > 1]
    return groups


def alike(what: str, members: Sequence[Member], *keys: Callable[[Member], Hashable]) -> list[Group]:
    """Groups of members whose keys are all equal; lone members are left out before the next key."""
    groups = [list(members)]
    for key in keys:
        parts = defaultdict(list)
        for i, group in enumerate(groups):
            for member in group:
                parts[i, key(member)].append(member)
        groups = [part for part in parts.values() if len(part) > 1]
    return [Group(what, tuple(group)) for group in groups]


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_ENDS)
        file.seek(max(_ENDS, path.stat().st_size - _ENDS))
        return start + file.read(_ENDS)


def _whole(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def image_key(data: ItemData, item: Item) -> str:
    """Sixteen hexadecimal digits that stand for an item's image: for the bytes of its file, or for
    the item's `content` where the image has none of its own.
    """
    whole = digest(data.content(item)) if item.image is None else _whole(item.image)
    return whole.hex()[:16]


def digest(pieces: Iterable[bytes]) -> bytes:
    """SHA-256 of all of them together."""
    return hashlib.sha256(b"".join(pieces)).digest()
