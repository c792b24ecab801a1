"""The package is as docs/design.md says: its tree, its sizes, what its parts import at once."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import estl

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "estl"
HEAVY = {"torch", "matplotlib", "plotly", "jinja2"}
FILES = sorted(PACKAGE.rglob("*.py"))


def tree(text: str) -> tuple[set[str], set[str]]:
    """Folders and files that a drawing of the package names, in paths from its top.

    A line that begins with `name/` opens a folder inside the one that it is indented under. Every
    `name.py` of a line, and of further indented lines, lies in the folder opened last.
    """
    folders: list[tuple[int, str]] = []
    found: tuple[set[str], set[str]] = set(), set()
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        if opened := re.match(r"\s*([\w/]+)/", line):
            top = folders[-1][1] if folders else ""
            folders.append((indent, f"{top}{opened[1]}/"))
            found[0].add(folders[-1][1])
        for name in re.findall(r"\b\w+\.py\b", line):
            found[1].add(f"{folders[-1][1] if folders else ''}{name}")
    return found


def test_a_drawing_is_read_as_it_is_drawn() -> None:
    drawing = "a/\n  x.py  y.py (a word)\n  b/   one\n    c/  z.py\n        w.py\n  v.py\nd/  u.py"
    files = {"a/x.py", "a/y.py", "a/b/c/z.py", "a/b/c/w.py", "a/v.py", "d/u.py"}
    assert tree(drawing) == ({"a/", "a/b/", "a/b/c/", "d/"}, files)


def test_the_tree_in_the_design_is_that_of_the_package() -> None:
    (drawing,) = re.findall(
        r"^```\n(src/estl/\n.*?)^```$",
        (ROOT / "docs" / "design.md").read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    folders, named = tree(drawing)
    assert [name for name in folders if not (ROOT / name).is_dir()] == []
    inside = {name for name in named if name.startswith("src/")}
    assert [name for name in sorted(inside) if not (ROOT / name).is_file()] == []
    # A folder says that it has an __init__.py, so that the drawing need not.
    files = {str(path.relative_to(ROOT)) for path in FILES}
    packages = {f"{name}__init__.py" for name in folders}
    assert sorted(files - inside - packages) == []


def test_the_top_of_the_package_has_at_most_13_entries() -> None:
    # py.typed does not count: it is the marker that PEP 561 wants here.
    entries = {path.name for path in PACKAGE.iterdir()} - {"py.typed", "__pycache__"}
    assert len(entries) <= 13, sorted(entries)


def test_no_file_is_longer_than_300_lines() -> None:
    lines = {str(path.relative_to(PACKAGE)): path.read_text().count("\n") for path in FILES}
    assert {name: count for name, count in lines.items() if count > 300} == {}


@pytest.mark.parametrize("module", ["estl", "estl.commands"])
def test_the_facade_and_the_command_line_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; sys.exit(not {HEAVY}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_names_of_the_package_are_listed() -> None:
    import estl

    listed = {name for name in dir(estl) if not name.startswith("_")}
    assert {"TSE", "FromDataset", "tse_loss", "load_student", "Batch"} < listed
    assert all(hasattr(estl, name) for name in listed)


def test_the_version_is_the_same_wherever_it_stands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] == estl.__version__
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    newest = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == "Unreleased" or newest.startswith(f"{project['version']} (")
