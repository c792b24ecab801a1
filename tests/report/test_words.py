"""Both languages say all that the reports say."""

import re
from pathlib import Path
from string import Formatter

import estl.report
from estl.report.words import catalogue

PACKAGE = Path(estl.report.__file__).parent


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_every_phrase_is_in_both_languages_with_the_same_places() -> None:
    for name, (en, zh) in catalogue().items():
        assert places(en) == places(zh), name
        assert re.search("[\u4e00-\u9fff]", zh) or en == zh, name


def test_every_phrase_that_is_asked_for_is_there_and_none_is_idle() -> None:
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    code += (PACKAGE / "templates" / "report.html.j2").read_text()
    asked = set(re.findall(r'say\(\s*"(\w+)"', code))
    assert asked - set(catalogue()) == set()
    named = set(re.findall(r'"(\w+)"', code))
    built = re.compile(r"\w+_caption|(split|check|look|watch)_\w+|\w+_(before|after|plain)")
    assert [n for n in catalogue() if n not in named and not built.fullmatch(n)] == []
