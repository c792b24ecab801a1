"""What the documentation site needs beside its pages: hooks of MkDocs, an extension of Griffe.

The READMEs and their neighbors lie above `docs`, where a reader of the repository looks for them;
the site has them beside the others, with their links moved. A page of `api` shows the docstrings of
what a package exports. Formulas become MathML, so that no script has to be fetched.
"""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ABOVE = (
    "README.md",
    "README.zh-CN.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "LICENSE",
)
PACKAGES = (
    "data",
    "students",
    "students.adapters",
    "students.layers",
    "supervision",
    "guidance",
    "neurons",
    "training",
    "training.results",
    "evaluation.accuracy",
    "types",
)
FORMULA = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in `docs`."""
    for name in ABOVE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = f"# {path.name}\n\n```python\n{path.read_text()}```\n"
        files.append(File.generated(config, f"examples/{path.stem}.md", content=text))
    for package in PACKAGES:
        text = f"# estl.{package}\n\n" + "".join(f"::: {name}\n\n" for name in exported(package))
        files.append(File.generated(config, f"api/{package}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links between the repository's top and `docs` become links between neighbors."""
    markdown = re.sub(r"\]\((?:docs/|\.\./)", "](", markdown)
    return re.sub(r"\]\((examples/\w+)\.py\)", r"](\1.md)", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """TeX becomes MathML."""
    return FORMULA.sub(lambda found: convert(html.unescape(found[1])), content)


def exported(package: str) -> Iterator[str]:
    """Full names of what a package imports of its own modules, or a module defines for others."""
    path = ROOT / "src/estl" / package.replace(".", "/")
    if not path.is_dir():
        tree = ast.parse(path.with_suffix(".py").read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                yield f"estl.{package}.{node.name}"
        return
    for node in ast.walk(ast.parse((path / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"estl.{package}."):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class Examples(griffe.Extension):
    """Examples in docstrings become blocks of code, which Markdown would take for quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put fences around them."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
            obj.docstring.value = text
