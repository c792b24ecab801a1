"""A set's items, decoded once and kept memory-mapped on disk: later epochs copy, not decode.

A cache is a folder `cache/<key>/`. The key is a hash of everything that decides what it holds: the
function that loads and its arguments, the items' names, sizes, first bytes and times of change, the
version of the package; any change gives a new key. In it, `frames.<dtype>.npy` and
`images.<dtype>.npy` hold one row an item, in the narrowest numbers that give back the very same
floats; `cache.json`, written last, says which.
"""

import functools
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader

from estl.data.columns import COUNTS, PIXELS, Code, Column
from estl.data.folders import naming
from estl.data.items import Item, by_file, fingerprint
from estl.data.loader import end_alone
from estl.types import is_static

Load = Callable[[Item], tuple[Tensor, Tensor | None]]
"""Maps an item to event frames (T,C,H,W) and an image (3,h,w), None in a set without images."""

Content = Callable[[Item], Iterable[bytes]]

_FORMAT = 3  # one more, too, where `read_rgb` makes other pixels of the same bytes


class Cache:
    """The finished cache in a folder: called with an item, it returns what `load` returned.

    It pickles as the name of its folder, and maps the files again where it is unpickled. `broken`
    has the error of each item that could not be loaded, by the item's name. A missing file raises
    OSError, one that is not whole ValueError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        head = json.loads((folder / "cache.json").read_text())
        self.row = {tuple(names): i for i, names in enumerate(head["items"])}
        self.broken: dict[str, str] = head["broken"]
        self.T: int = head["T"]
        self.columns: dict[str, tuple[np.ndarray, Code]] = {
            name: (np.load(folder / f"{name}.{code['dtype']}.npy", mmap_mode="r"), Code(**code))
            for name, code in head["codes"].items()
        }

    def __reduce__(self) -> tuple[type["Cache"], tuple[Path]]:
        return Cache, (self.folder,)

    def __contains__(self, item: Item) -> bool:
        return (item.label, item.number) in self.row

    def __call__(self, item: Item) -> tuple[Tensor, Tensor | None]:
        """Frames and image of one item."""
        return self.read([item])[0]

    def read(
        self, items: Sequence[Item], *, images: bool = True
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Frames and image of each item, all copied at once, in a third of the time of one by one.

        Without `images`, the images are None.
        """
        rows = [self.row[item.label, item.number] for item in items]
        wanted = [name for name in self.columns if images or name != "images"]
        found = {name: code.floats(x[rows]) for name in wanted for x, code in [self.columns[name]]}
        frames = [x.expand(self.T, -1, -1, -1) for x in found["frames"]]
        seen = found["images"].unbind() if "images" in found else [None] * len(items)
        return list(zip(frames, seen, strict=True))

    def tell_broken(self) -> None:
        """Say on stderr how many items are broken, and where they are listed."""
        name, error = next(iter(self.broken.items()))
        what = f"{len(self.broken)} broken items are left out, the first {name} ({error})"
        print(f"{what}; all of them are in {self.folder / 'cache.json'}", file=sys.stderr)


def open_cache(
    items: Iterable[Item],
    load: Load,
    folder: Path,
    content: Content,
    *,
    num_workers: int = 0,
    skip_broken: bool = False,
) -> Cache:
    """The cache of `items` below `folder`, built if there is none or a damaged one.

    A cache becomes visible by one rename, whole or not at all. If several processes want the same
    one, the first builds and the others wait; on a file system without locks all build, and
    the first to finish is kept.

    Args:
        items: those of all splits.
        load: a function of a module, or a `functools.partial` of one with plain keywords.
        folder: holds the caches of any number of sets.
        content: what the fingerprint knows of an item.
        num_workers: processes that decode.
        skip_broken: list the items that raise ValueError or OSError, instead of raising it.

    Raises:
        ValueError: items of different shapes (the first that differs is named); `load` of another
            kind; no item could be loaded.
        Exception: that of the first broken item, unless `skip_broken`.
    """
    items = sorted(set(items))
    name = key(items, load, content)
    find = functools.partial(_find, folder / name, items, load, skip_broken)
    if (cache := find()) is not None:
        return cache
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock", fallback_to_soft=False)
    with suppress(OSError):  # a file system without locks
        lock.acquire()
    mine = f".{name}-{socket.gethostname()}-"
    part = folder / f"{mine}{os.getpid()}"
    try:
        if (cache := find()) is not None:
            return cache
        if lock.is_locked:  # what is left of builders that were killed
            for rest in folder.glob(f"{mine}*"):
                shutil.rmtree(rest, ignore_errors=True)
        part.mkdir()
        samples = load_items(sorted(items, key=by_file), load, num_workers, "Caching")
        with naming(folder), closing(samples):  # which ends processes
            _write(part, samples, len(items), describe(load), skip_broken)
        try:
            part.rename(folder / name)
        except OSError:  # a folder is there already, of another process or damaged
            if find() is None:
                shutil.rmtree(folder / name, ignore_errors=True)
                part.rename(folder / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        lock.release()
    return Cache(folder / name)


def key(items: Sequence[Item], load: Load, content: Content) -> str:
    """Sixteen hexadecimal digits that stand for all that a cache depends on."""

    def known(item: Item) -> Iterator[bytes]:
        try:
            yield from content(item)
            for path in (item.events, item.image):
                yield b"" if path is None else str(path.stat().st_mtime_ns).encode()
        except OSError:
            yield b"unreadable"

    facts = [str(_FORMAT), version("estl"), describe(load), fingerprint({"all": items}, known)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def describe(load: Load) -> str:
    """The function that loads, and its arguments, as text.

    Raises:
        ValueError: it has no name of its own (a lambda, a method), or an argument that is not plain
            (numbers, text, paths, tensors, and lists and dictionaries of them).

    >>> describe(functools.partial(describe, load=3))
    'estl.data.cache.describe(load=3)'
    """
    keywords: dict[str, Any] = {}
    function: Any = load
    while isinstance(function, functools.partial) and not function.args:
        function, keywords = function.func, function.keywords | keywords
    name = getattr(function, "__qualname__", type(function).__qualname__)
    name = f"{function.__module__}.{name}"
    if not isfunction(function) or "<" in name:
        raise ValueError(
            f"load={name} cannot be cached: give a function of a module, or a functools.partial "
            "of one with keywords"
        )
    texts = []
    for key, value in sorted(keywords.items()):
        try:
            texts.append(f"{key}={json.dumps(value, sort_keys=True, default=_plain)}")
        except TypeError as error:
            raise ValueError(f"{key} of load {error}: only plain values can be cached") from None
    return f"{name}({', '.join(texts)})"


def _plain(value: object) -> str:
    if isinstance(value, Tensor):
        digest = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        return f"{value.dtype}{list(value.shape)}:{digest}"
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"is a {type(value).__name__}")


def load_items(
    items: Sequence[Item], load: Callable[[Item], Any], num_workers: int, what: str
) -> Generator[tuple[Item, Any], None, None]:
    """Each item with what `load` returns, or with the ValueError or OSError that it raises.

    `num_workers` processes load, this one if 0. `what` stands beside the progress bar, which is
    drawn only on a terminal.
    """
    from rich.console import Console
    from rich.progress import track

    dataset: Any = items
    collate = functools.partial(attempt, load=load)
    loader: DataLoader[Any] = DataLoader(
        dataset, None, collate_fn=collate, num_workers=num_workers, worker_init_fn=end_alone
    )
    console, silent = Console(stderr=True), not sys.stderr.isatty()
    shown = track(loader, what, len(items), console=console, transient=True, disable=silent)
    yield from zip(items, shown, strict=True)


def attempt(item: Item, load: Callable[[Item], Any]) -> Any:
    """What `load` returns of an item, or the ValueError or OSError that it raises."""
    try:
        return load(item)
    except (ValueError, OSError) as error:
        return error


def _write(
    part: Path, samples: Iterable[tuple[Item, Any]], most: int, load: str, skip_broken: bool
) -> None:
    """Fill the folder `part` with at most `most` items; its `cache.json` is written last."""
    names: list[tuple[str, str]] = []
    broken: dict[str, Exception] = {}
    columns: dict[str, Column] = {}
    first: tuple[Any, ...] = ()
    for item, sample in samples:
        if isinstance(sample, Exception):
            if not skip_broken:
                raise sample
            broken[str(item)] = sample
            continue
        frames, image = sample
        static = is_static(frames[None])
        rows = {"frames": frames[:1] if static else frames}
        if image is not None:
            rows["images"] = image
        shapes = (len(frames), {name: tuple(row.shape) for name, row in rows.items()})
        if not names:
            first = shapes
            codes = {"frames": PIXELS if static else COUNTS, "images": PIXELS}
            columns = {n: Column(part / n, codes[n], (most, *row.shape)) for n, row in rows.items()}
        elif shapes != first:
            raise ValueError(
                f"item {item} has shapes {shapes[1]}, but {'/'.join(names[0])} has {first[1]}: "
                "a cache holds items of one shape; choose a size, or leave the cache out"
            )
        for name, row in rows.items():
            columns[name].write(len(names), row)
        names.append((item.label, item.number))
    if not names:
        raise next(iter(broken.values()), ValueError("there are no items to cache"))
    for column in columns.values():
        column.rows.flush()
    head = {
        "load": load,
        "T": first[0],
        "codes": {name: asdict(column.codes[0]) for name, column in columns.items()},
        "broken": {name: str(error) for name, error in broken.items()},
        "items": names,
    }
    (part / "cache.json").write_text(json.dumps(head))


def _find(place: Path, items: Sequence[Item], load: Load, skip_broken: bool) -> Cache | None:
    """The cache at `place`; None if there is none, or one that is damaged or out of date.

    An item that was broken raises its error again, unless `skip_broken`; if it does not, the cache
    is out of date.
    """
    try:
        cache = Cache(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if skip_broken or not cache.broken:
        return cache
    for item in items:
        if item not in cache:
            load(item)
    return None
