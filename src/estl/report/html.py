"""`estl report`: runs as one HTML file that needs nothing else."""

import base64
import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from estl.report import paper
from estl.report.parts import Figure, Section, plain
from estl.report.sections import data, erasing, errors, guidance, learning, overview, steps
from estl.report.sources import Variant, read_variants
from estl.report.words import Text, say
from estl.training.files import aside

SECTIONS = (overview, learning, steps, errors, guidance, erasing, data)
"""In their order; one that has nothing to say about these runs is left out."""


def write(paths: Sequence[Path], output: Path, figures: Path | None = None) -> None:
    """Write the report of the runs in `paths` as `output`, an HTML file.

    Args:
        paths: run folders, or a sweep's folder that holds them.
        output: the file; it appears when it is complete.
        figures: a folder for the same figures as PNG and SVG, or None.

    Raises:
        ValueError: a path without a run.
    """
    variants = read_variants(paths)
    page = render(variants)
    output.parent.mkdir(parents=True, exist_ok=True)
    with aside(output) as file:
        file.write(page.encode())
    if figures is not None:
        paper.write(sections_of(variants), figures)


def sections_of(variants: Sequence[Variant]) -> list[Section]:
    """The sections that have something to say."""
    return [section for part in SECTIONS if (section := part.section(variants)) is not None]


def render(variants: Sequence[Variant]) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("estl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = sections_of(variants)
    names, pictures = [variant.name for variant in variants], dict[str, int]()
    of = next((run.results.of for v in variants for run in v.runs if run.results), None)
    return environment.get_template("report.html.j2").render(
        title=variants[0].label if len(names) == 1 else ", ".join(names),
        subtitle=f"{of.data.name}, {of.student}" if of else "",
        sections=found,
        say=say,
        figures=once(figures(found), pictures),
        pictures=list(pictures),
        library=library(),
    )


def figures(sections: Sequence[Section]) -> dict[str, Any]:
    """What the page's few lines of JavaScript pass on to plotly.js, by the figures' names."""
    return {
        part.name: {
            "data": part.data,
            "layout": part.layout,
            "frames": part.frames,
            "names": {lang: _names(part, lang) for lang in Text._fields},
            "texts": {lang: _texts(part, lang) for lang in Text._fields},
            "steps": {lang: [getattr(s, lang) for s in part.steps] for lang in Text._fields},
        }
        for section in sections
        for part in section.parts
        if isinstance(part, Figure)
    }


def once(value: Any, pictures: dict[str, int]) -> Any:
    """`value` with each picture replaced by its place in `pictures`: a page holds each once.

    >>> pictures = {}
    >>> once([{"source": "a"}, {"source": "b", "z": [1]}, {"source": "a"}], pictures)
    [{'source': '0'}, {'source': '1', 'z': [1]}, {'source': '0'}]
    >>> list(pictures)
    ['a', 'b']
    """
    if isinstance(value, dict):
        return {
            key: str(pictures.setdefault(inner, len(pictures)))
            if key == "source"
            else once(inner, pictures)
            for key, inner in value.items()
        }
    return [once(v, pictures) for v in value] if _of_dictionaries(value) else value


def _of_dictionaries(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _names(figure: Figure, language: str) -> list[str]:
    names = [""] * len(figure.data)
    for key in figure.keys:
        for i in key.traces:
            names[i] = plain(getattr(key.label, language))
    return names


def _texts(figure: Figure, language: str) -> dict[str, str]:
    return {key: getattr(text, language) for key, text in figure.texts.items()}


@cache
def library() -> str:
    """plotly.js as base64 of gzip: browsers unpack it, and a report is 3 MB smaller."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
