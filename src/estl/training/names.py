"""Class paths: the names under which recipes and checkpoints know classes.

ESTL's own classes are named by the package that exports them (`estl.students.VGGSNN`), so that
files can move. A checkpoint may name these, and classes in modules that the user has trusted by
name: naming a class imports its module, and importing runs code.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

HOMES = ("estl.data", "estl.students", "estl.supervision", "estl.neurons")


def public_path(thing: Any) -> str:
    """The class path of a class or function; for ESTL's own, the public one.

    >>> from estl.students import VGGSNN
    >>> public_path(VGGSNN)
    'estl.students.VGGSNN'
    """
    name = thing.__qualname__
    if thing.__module__.startswith("estl."):
        for home in HOMES:
            module = import_module(home)
            if name in module.__all__ and getattr(module, name) is thing:
                return f"{home}.{name}"
    return f"{thing.__module__}.{name}"


def import_path(path: str) -> Any:
    """The object that a class path names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def public(value: Any) -> Any:
    """Plain values of a recipe, with every class path as `public_path` gives it."""
    if isinstance(value, dict):
        return {
            key: public_path(import_path(v)) if key == "class_path" else public(v)
            for key, v in value.items()
        }
    return [public(v) for v in value] if isinstance(value, list) else value


def refuse_strangers(part: Any, trust: Sequence[str] = ()) -> None:
    """Raise ValueError for a class that a checkpoint may not name; nothing is imported but ESTL.

    Args:
        part: of a checkpoint's recipe, plain values.
        trust: modules whose classes are allowed besides ESTL's own.

    >>> refuse_strangers({"class_path": "os.system"})
    Traceback (most recent call last):
    ValueError: the checkpoint names os.system, which is not ESTL's: if you trust it, say --trust os
    """
    for path in class_paths(part):
        home, _, name = path.rpartition(".")
        known = home in HOMES and name in import_module(home).__all__
        if not known and not any(path.startswith(f"{module}.") for module in trust):
            raise ValueError(
                f"the checkpoint names {path}, which is not ESTL's: if you trust it, say "
                f"--trust {path.partition('.')[0]}"
            )


def class_paths(value: Any) -> Iterator[str]:
    """Every class path in plain values, at any depth.

    Raises:
        ValueError: one that is no text.
    """
    if isinstance(value, dict):
        if "class_path" in value:
            if not isinstance(value["class_path"], str):
                raise ValueError(f"class_path is {value['class_path']!r}: it must be a name")
            yield value["class_path"]
        yield from class_paths(list(value.values()))
    elif isinstance(value, list):
        for v in value:
            yield from class_paths(v)
