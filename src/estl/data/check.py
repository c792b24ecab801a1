"""What may be wrong with a data set: empty splits, broken files, one thing in two splits.

`refuse_leaks` is the quick part, run before every training, and `refuse_seen` its counterpart for a
teacher; `check` also decodes all items and looks for pictures that are nearly the same.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from estl.data.cache import Load, attempt, load_items
from estl.data.items import Item, by_file, evenly, file_content, missing_partners
from estl.data.module import EventData, ItemData, with_items
from estl.data.reading import measure
from estl.data.sets.recordings import Recordings, overlooked, unnamed
from estl.data.similar import near, perceptual_hash
from estl.data.twins import Group, Member, alike, digest, image_key, repeated

_SHOWN = 5
_EMPTY = {
    "train": "the test split alone is here, and can be tested",
    "val": "nothing is selected, the final weights are reported",
}


TITLES = {
    "lacking": "SPLITS that lack something",
    "no_image": "recordings without their image",
    "no_recording": "images without a recording (not used)",
    "nested": "recordings that lie deeper than <class>/<name> (not used)",
    "unnamed": "recordings that labels.csv does not name (not used)",
    "bare": "folders without a recording (no classes)",
    "unreadable": "unreadable",
    "leaks": "LEAKS, the same in two splits",
    "twice": "the same twice in one split",
    "near": "near duplicates across splits, to look at",
}
"""What `check` looks for."""


def refuse_leaks(data: EventData) -> list[Group]:
    """Raise ValueError if one thing is in two splits; else return what is repeated within one.

    It looks for an item (class, number) in two splits, and a file of an item, image or recording,
    that is a file of another split or has the bytes of one. A set with a `content` of its own is
    compared by that. Whole files are read only if sizes, starts and ends agree. Shards were checked
    when they were written.
    """
    if not isinstance(data, ItemData):
        return []
    found = repeated(data)
    leaks = [group for group in found if group.leak]
    if leaks:
        more = f"; {len(leaks) - 1} more such leaks" if len(leaks) > 1 else ""
        raise ValueError(
            f"leak: {leaks[0]} have the same {leaks[0].what}{more}: remove one of each "
            "(estl data check --all lists them), or train nevertheless with "
            "--data.init_args.allow_leaks=true"
        )
    return found


def refuse_seen(data: EventData, trained_on: Collection[str], teacher: str) -> None:
    """Raise ValueError if a `teacher` was trained on images of `data` that are held out.

    Args:
        data: the set. Nothing is known about shards.
        trained_on: `image_key` of the teacher's training images.
        teacher: its name, for the message.
    """
    if not trained_on or not isinstance(data, ItemData):
        return
    held = [Member(s, item) for s in ("val", "test") for item in data.splits.get(s, [])]
    seen = [member for member in held if image_key(data, member.item) in trained_on]
    if seen:
        raise ValueError(
            f"leak: teacher {teacher} was trained on {len(seen)} of {len(held)} images held out,"
            f" such as that of {seen[0]}: train it with the flags of these data, or the student "
            "nevertheless with --data.init_args.allow_leaks=true"
        )


def lacking(data: ItemData) -> dict[str, str]:
    """What is wrong with the splits' items and classes, by split.

    No training items, unless the folder holds only the test split; no validation items, unless
    `val_fraction` is 0; no test items (always wrong, as `estl fit` ends with the test); and classes
    of validation or test that cannot be learned, as they have no training items.
    """
    classes = {name: {item.label for item in items} for name, items in data.splits.items()}
    known, found = classes["train"], {}
    share = getattr(data, "val_fraction", 0)
    if not known and not data.no_training:
        found["train"] = "no items: there is nothing to train on"
    if known and not classes.get("val") and share > 0:
        found["val"] = f"no items, though val_fraction is {share}: too few to draw from"
    if not classes.get("test"):
        found["test"] = "no items: estl fit ends with a test"
    for name in ("val", "test"):
        if known and (new := sorted(classes.get(name, set()) - known)):
            found[name] = f"classes that train lacks ({len(new)}): {', '.join(new[:_SHOWN])}"
    return found


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
        counts: number of items, by split and class.
        lacking: items or classes, by split (`lacking`).
        decoded: how many items were decoded.
        no_image: recordings whose image is missing.
        no_recording: images without a recording, which are not used.
        nested: own recordings that lie too deep, which are not used.
        unnamed: own recordings that a table of labels does not name, which are not used.
        bare: folders beside those of the classes, without a recording.
        unreadable: error by item.
        same: exact repetitions, within splits and across.
        near: pictures that look the same, across splits.
        measures: microseconds and events of each of the own recordings that were decoded.
        paired: whether images are used: if not, missing ones are listed but not wrong.
    """

    counts: dict[str, Counter[str]]
    lacking: dict[str, str]
    decoded: int
    no_image: list[Path]
    no_recording: list[Path]
    nested: list[Path]
    unnamed: list[Path]
    bare: list[Path]
    unreadable: dict[Item, str]
    same: list[Group]
    near: list[Group]
    measures: list[tuple[int, int]]
    paired: bool

    @property
    def wrong(self) -> bool:
        """Whether something must be put right: a leak, or what is broken, missing or lacking."""
        leaks = any(group.leak for group in self.same)
        missed = self.paired and self.no_image
        return bool(self.lacking or missed or self.unreadable or leaks)

    def entries(self) -> dict[str, list[str]]:
        """What was found, under the names of `TITLES`."""
        return {
            "lacking": [": ".join(x) for x in self.lacking.items()],
            "no_image": [str(path) for path in self.no_image],
            "no_recording": [str(path) for path in self.no_recording],
            "nested": [str(path) for path in self.nested],
            "unnamed": [str(path) for path in self.unnamed],
            "bare": [str(path) for path in self.bare],
            "unreadable": [f"{item}: {error}" for item, error in self.unreadable.items()],
            "leaks": [f"{g.what}: {g}" for g in self.same if g.leak],
            "twice": [f"{g.what}: {g}" for g in self.same if not g.leak],
            "near": [str(group) for group in self.near],
        }

    def lines(self, shown: int | None = _SHOWN) -> Iterator[str]:
        """The report as text, with at most `shown` findings of each kind, or all (None)."""
        classes = set().union(*self.counts.values())
        for split, counts in self.counts.items():
            if not counts:
                yield f"{split}: 0 items" + ("" if split in self.lacking else f" ({_EMPTY[split]})")
                continue
            few, many = min(counts.values()), max(counts.values())
            each = f"{few} to {many} in each of {len(counts)} classes"
            yield f"{split}: {counts.total()} items, {each}"
            yield from _listed("classes without an item", sorted(classes - counts.keys()), shown)
        total = sum(counts.total() for counts in self.counts.values())
        yield f"decoded: {self.decoded} of {total} items"
        if self.measures:
            times, numbers = np.array(self.measures).T
            long = f"{np.median(times) / 1000:,.1f} ms, the longest {times.max() / 1000:,.1f}"
            large = f"{np.median(numbers):,.0f} events, the largest {numbers.max():,}"
            yield f"recordings, in the median: {long}; {large}"
        for name, found in self.entries().items():
            yield from _listed(TITLES[name], found, shown)
        yield "something is wrong" if self.wrong else "nothing is wrong"


def _listed(title: str, entries: Sequence[object], shown: int | None) -> Iterator[str]:
    if entries:
        first = entries[:shown]
        yield from (f"{title}: {len(entries)}", *(f"  {e}" for e in first))
        if left := len(entries) - len(first):
            yield f"  and {left} more (--all lists them)"


def check(
    data: EventData,
    root: Path | None = None,
    *,
    limit: int | None = None,
    distance: int = 2,
    same: Sequence[Group] | None = None,
) -> Report:
    """Decode the items of `data`, from their files and not from the cache, and compare them.

    Near duplicates are pictures whose `perceptual_hash` differs in at most `distance` bits (the
    number is always even: half of the bits are set). They stop nothing: two pictures may look
    alike and yet be different.

    Args:
        data: the set.
        root: its folder, in which partners are looked for (`missing_partners`).
        limit: decode this many items of each split, chosen evenly; all if None.
        distance: bits, 0 to 64.
        same: what `refuse_leaks` has returned for these data; looked for if None.
    """
    data = with_items(data)
    own = data if isinstance(data, Recordings) else None
    no_image, no_recording = list[Path](), list[Path]()
    if root and not (own and own.table):  # which has no images
        no_image, no_recording = missing_partners(root)
    chosen = {s: sorted(evenly(items, limit), key=by_file) for s, items in data.splits.items()}
    members = [Member(s, item) for s, items in chosen.items() for item in items]
    nested, bare = overlooked(own.places) if own else ([], [])
    others = unnamed(own) if own else []
    probe = partial(_probe, load=data.decode, measured=own is not None)
    found = load_items([m.item for m in members], probe, data.num_workers, "Checking")
    results = [(member, result) for member, (_, result) in zip(members, found, strict=True)]
    unreadable = {m.item: str(result) for m, result in results if isinstance(result, Exception)}
    seen = {m: result for m, result in results if m.item not in unreadable}

    if data.content is not file_content:  # it asks for the items that were not decoded, too
        rest = {i for items in data.splits.values() for i in items} - {m.item for m in members}
        tried = ((item, attempt(item, data.content)) for item in sorted(rest))
        unreadable |= {item: str(x) for item, x in tried if isinstance(x, Exception)}
    same = repeated(data, unreadable) if same is None else list(same)
    known = [g.items for g in same]
    for twins in alike("pixels", list(seen), lambda m: seen[m][0]):
        images = {m.item.image or m.item for m in twins.members}  # windows of one share theirs
        if len(images) > 1 and not any(twins.items <= group for group in known):
            same.append(twins)
            known.append(twins.items)
    looks = [(m, look) for m, (_, look, _) in seen.items() if look is not None]
    hashes = np.array([look for _, look in looks], np.uint64)
    pairs = (Group("look", (looks[i][0], looks[j][0])) for i, j in near(hashes, distance))
    close = [p for p in pairs if p.leak and not any(p.items <= group for group in known)]
    counts = {s: Counter(i.label for i in items) for s, items in data.splits.items()}
    missing = (no_image, no_recording, nested, others, bare, unreadable)
    # Once a recording, of which several items may be windows.
    measures = {m.item.events: found for m, (_, _, found) in seen.items() if found is not None}
    paired = any(item.image for items in data.splits.values() for item in items)
    facts = (same, close, list(measures.values()), paired)
    return Report(counts, lacking(data), len(seen), *missing, *facts)


def _probe(
    item: Item, load: Load, measured: bool
) -> tuple[bytes, int | None, tuple[int, int] | None]:
    """Digest of the decoded image, or of the frames where there is none; the image's hash; how long
    and large the recording is if it is `measured`.
    """
    frames, image = load(item)
    picture = frames if image is None else image
    pixels = digest([repr(picture.shape).encode(), picture.contiguous().numpy().tobytes()])
    size = measure(item.events) if measured and item.events is not None else None
    return pixels, None if image is None else perceptual_hash(image), size
