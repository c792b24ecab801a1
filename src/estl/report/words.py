"""What a report says, in English and in Chinese: the phrases of `templates/words.yaml`."""

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml


class Text(NamedTuple):
    """The same in both languages; the page shows one of them."""

    en: str
    zh: str


@cache
def catalogue() -> dict[str, tuple[str, str]]:
    """Every phrase by its name: English and Chinese."""
    text = files("estl.report").joinpath("templates/words.yaml").read_text(encoding="utf-8")
    return {name: (en, zh) for name, (en, zh) in yaml.safe_load(text).items()}


def say(phrase: str, /, **values: object) -> Text:
    """A phrase of the catalogue, its `{placeholders}` filled in; a `Text` in its language.

    >>> say("seconds_epoch").en
    'seconds an epoch'
    >>> say("after_epochs", n=3).zh
    '第 3 个 epoch 之后'
    """

    def fill(text: str, language: int) -> str:
        given = {k: v[language] if isinstance(v, Text) else v for k, v in values.items()}
        return text.format(**given)

    en, zh = catalogue()[phrase]
    return Text(fill(en, 0), fill(zh, 1))


def same(text: object) -> Text:
    """A name or a number, which is the same in every language."""
    return Text(str(text), str(text))


def joined(*texts: Text) -> Text:
    """Sentences one after the other.

    >>> joined(same("a."), same("b."))
    Text(en='a. b.', zh='a.b.')
    """
    return Text(" ".join(t.en for t in texts), "".join(t.zh for t in texts))
