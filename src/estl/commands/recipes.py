"""`estl recipes`: the recipes that come with ESTL."""

from pathlib import Path

from estl.commands.flags import RECIPES


def recipes(name: str | None = None) -> None:
    """List the recipes that `--config NAME` finds, or print one of them.

    Args:
        name: of the recipe to print.
    """
    found = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name is None:
        width = max(map(len, found))
        for stem, path in found.items():
            print(f"{stem:{width}}  {_title(path)}")
    elif name in found:
        print(found[name].read_text(), end="")
    else:
        raise ValueError(f"no recipe {name!r}: choose from {', '.join(found)}")


def _title(path: Path) -> str:
    """The first line of a recipe, its comment."""
    return path.read_text().partition("\n")[0].removeprefix("# ")
