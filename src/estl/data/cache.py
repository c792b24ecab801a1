"""A set's items decoded once and kept on disk, memory-mapped: later epochs copy and do not decode.

A cache is a folder `cache/<key>/`. The key is a hash of everything that decides what it holds: the
function that loads and its arguments, the items' names, sizes and times of change, the version of
the package. In it, `frames.bin` and `images.bin` hold one row an item, in the narrowest numbers
that give back the very same floats; `cache.json`, written last, says which.
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from estl.data.columns import COUNTS, PIXELS, Code, Column
from estl.data.items import Item, fingerprint
from estl.types import direct_code, is_static

Load = Callable[[Item], tuple[Tensor, Tensor | None]]
"""An item to its event frames (T,C,H,W) and its image (3,h,w), None in a set without images."""

Content = Callable[[Item], Iterable[bytes]]

_FORMAT = 1


class Kept:
    """A finished cache: called with an item, it returns what the set's own `load` returned.

    It pickles as the name of its folder, and maps the files again where it is unpickled.

    Args:
        folder: `cache/<key>`.

    Attributes:
        broken: the text of the error of each item that could not be loaded, by the item's name.

    Raises:
        OSError: a file is missing.
        ValueError: a file is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        head = json.loads((folder / "cache.json").read_text())
        self.row = {tuple(names): i for i, names in enumerate(head["items"])}
        self.broken: dict[str, str] = head["broken"]
        self.static: int = head["static"]
        self.frames, self.frame_code = self._map("frames", head)
        self.images, self.image_code = None, PIXELS[0]
        if head["images"] is not None:
            self.images, self.image_code = self._map("images", head)

    def _map(self, name: str, head: dict[str, Any]) -> tuple[np.ndarray, Code]:
        column, path = head[name], self.folder / f"{name}.bin"
        code, shape = Code(**column["code"]), (len(self.row), *column["shape"])
        whole = int(np.prod(shape)) * np.dtype(code.dtype).itemsize
        if path.stat().st_size != whole:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, not {whole}: remove the folder")
        return np.memmap(path, code.dtype, "r", shape=shape), code

    def __reduce__(self) -> tuple[type["Kept"], tuple[Path]]:
        return Kept, (self.folder,)

    def __contains__(self, item: Item) -> bool:
        return (item.label, item.number) in self.row

    def __call__(self, item: Item) -> tuple[Tensor, Tensor | None]:
        """Frames and image of one item."""
        return self.read([item])[0]

    def read(self, items: Sequence[Item]) -> list[tuple[Tensor, Tensor | None]]:
        """Frames and image of each item, all copied at once: a third of the time of one by one."""
        rows = [self.row[item.label, item.number] for item in items]
        frames = self.frame_code.decode(self.frames[rows]).unbind()
        if self.static:
            frames = tuple(direct_code(step[None], self.static)[0] for step in frames)
        if self.images is None:
            return [(f, None) for f in frames]
        return list(zip(frames, self.image_code.decode(self.images[rows]).unbind(), strict=True))


def keep(
    items: Iterable[Item],
    load: Load,
    folder: Path,
    content: Content,
    *,
    num_workers: int = 0,
    skip_broken: bool = False,
) -> Kept:
    """The cache of `items` below `folder`, built if there is none or a damaged one.

    A cache becomes visible by one renaming, whole or not at all. Of several processes that want the
    same one, the first builds and the others wait; where the file system has no locks, all build
    and the first to finish is kept.

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
    place = folder / name
    if (kept := _open(place, items, load, skip_broken)) is not None:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{name}.lock") as alone:
        if (kept := _open(place, items, load, skip_broken)) is not None:
            return kept
        mine = f".{name}-{socket.gethostname()}-"
        if alone:  # what is left of builders that were killed
            for rest in folder.glob(f"{mine}*"):
                shutil.rmtree(rest, ignore_errors=True)
        part = folder / f"{mine}{os.getpid()}"
        part.mkdir()
        try:
            with closing(decode(items, load, num_workers, "Caching")) as samples:  # ends processes
                _write(part, samples, describe(load), skip_broken)
            _publish(part, place, functools.partial(_open, place, items, load, skip_broken))
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Kept(place)


def key(items: Sequence[Item], load: Load, content: Content) -> str:
    """Sixteen hexadecimal digits that stand for all that a cache depends on.

    A file that was changed in place is known by its time of change.
    """

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
    return f"{name}({', '.join(f'{k}={_plain(v, k)}' for k, v in sorted(keywords.items()))})"


def _plain(value: Any, name: str) -> str:
    match value:
        case Tensor():
            digest = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
            return f"{value.dtype}{list(value.shape)}:{digest}"
        case None | bool() | int() | float() | str():
            return repr(value)
        case Path():
            return repr(str(value))
        case list() | tuple():
            return f"[{', '.join(_plain(v, name) for v in value)}]"
        case dict():
            return f"{{{', '.join(f'{k!r}: {_plain(v, name)}' for k, v in sorted(value.items()))}}}"
    raise ValueError(f"{name} of load is a {type(value).__name__}: only plain values can be cached")


class _Attempts(Dataset[Any]):
    """Items loaded, or the error of each that is broken."""

    def __init__(self, items: Sequence[Item], load: Load) -> None:
        self.items, self.load = items, load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.load(self.items[index])
        except (ValueError, OSError) as error:
            return error


def _same(x: Any) -> Any:
    return x


def decode(
    items: Sequence[Item], load: Callable[[Item], Any], num_workers: int, what: str
) -> Generator[tuple[Item, Any], None, None]:
    """Each item with what `load` returns, or with the ValueError or OSError that it raises.

    Args:
        items: in this order.
        load: anything that takes an item.
        num_workers: processes that load; 0 loads here.
        what: the word beside the bar, which is drawn only on a terminal.
    """
    from rich.console import Console
    from rich.progress import track

    loader: DataLoader[Any] = DataLoader(
        _Attempts(items, load), batch_size=None, collate_fn=_same, num_workers=num_workers
    )
    console = Console(stderr=True)
    silent = not sys.stderr.isatty()
    yield from zip(
        items,
        track(loader, what, len(items), console=console, transient=True, disable=silent),
        strict=True,
    )


def _write(part: Path, samples: Iterable[tuple[Item, Any]], load: str, skip_broken: bool) -> None:
    """Fill the folder `part`; its `cache.json` is written last."""
    names: list[tuple[str, str]] = []
    broken: dict[str, str] = {}
    columns: dict[str, Column] = {}
    first: tuple[Any, ...] = ()
    error: Exception | None = None
    for item, sample in samples:
        if isinstance(sample, Exception):
            if not skip_broken:
                raise sample
            error = error or sample
            broken[str(item)] = str(sample)
            continue
        frames, image = sample
        static = frames.shape[0] if is_static(frames[None]) else 0
        rows = {"frames": frames[0] if static else frames}
        if image is not None:
            rows["images"] = image
        shapes = (static, {name: tuple(row.shape) for name, row in rows.items()})
        if not names:
            first = shapes
            codes = {"frames": PIXELS if static else COUNTS, "images": PIXELS}
            columns = {name: Column(part / f"{name}.bin", codes[name]) for name in rows}
        elif shapes != first:
            raise ValueError(
                f"item {item} has shapes {shapes[1]}, but {'/'.join(names[0])} has {first[1]}: "
                "a cache holds items of one shape; choose a size, or leave the cache out"
            )
        for name, row in rows.items():
            columns[name].append(row)
        names.append((item.label, item.number))
    if not names:
        raise error or ValueError("there are no items to cache")
    head: dict[str, Any] = {"load": load, "static": first[0], "broken": broken, "images": None}
    for name, column in columns.items():
        column.close()
        head[name] = {"code": asdict(column.codes[0]), "shape": first[1][name]}
    with (part / "cache.json").open("w") as file:
        json.dump(head | {"items": names}, file)
        file.flush()
        os.fsync(file.fileno())


def _open(place: Path, items: Sequence[Item], load: Load, skip_broken: bool) -> Kept | None:
    """The cache at `place`; None if there is none, or a damaged one.

    An item that was broken raises its error again, unless `skip_broken`; where it no longer does,
    the cache is out of date.
    """
    try:
        kept = Kept(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if skip_broken or not kept.broken:
        return kept
    for item in items:
        if item not in kept:
            load(item)
    return None


def _publish(part: Path, place: Path, find: Callable[[], Kept | None]) -> None:
    """Rename `part` to `place`, unless another process has put a good one there."""
    try:
        part.rename(place)
    except OSError:  # there is a folder already
        if find() is None:
            bad = part.with_name(f"{part.name}.bad")
            place.rename(bad)
            part.rename(place)
            shutil.rmtree(bad, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with the process; gives False where the file system has none."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:  # closing is not enough: processes that decode have inherited the open file
            fcntl.flock(file, fcntl.LOCK_UN)
