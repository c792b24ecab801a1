"""Both READMEs say the same, and what they say runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from estl.flags import ARCHS, DATASETS, SUPERVISIONS, VALUES
from estl.recipe import parse
from estl.students import VGGSNN
from estl.supervision.distillation import WEIGHTS

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of each code block, without comments."""
    found = FENCE.findall(path.read_text())
    return [
        (language, re.sub(r"\s*#.*$", "", text, flags=re.MULTILINE)) for language, text in found
    ]


def prose(path: Path) -> str:
    """The text without its code blocks."""
    return FENCE.sub("", path.read_text())


def test_both_readmes_have_the_same_headings_tables_and_code() -> None:
    assert blocks(ENGLISH) == blocks(CHINESE)
    for line in (r"^#+ ", r"^\|", r"^<!--.*-->$", r"\]\([^)]+\)"):
        english, chinese = (
            len(re.findall(line, prose(path), re.MULTILINE)) for path in (ENGLISH, CHINESE)
        )
        assert english == chinese > 0, line


@pytest.mark.slow
@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [text for language, text in FENCE.findall(path.read_text()) if language == "python"]
    assert len(codes) == 2
    monkeypatch.chdir(tmp_path)
    small = {"layers": [8, "AP"], "pooled": True}
    for name in re.findall(r'"(runs/.*\.ckpt)"', "".join(codes)):  # as estl fit leaves it
        Path(name).parent.mkdir(parents=True)
        student = {"class_path": "estl.students.VGGSNN", "init_args": small}
        state = VGGSNN(**small).state_dict()
        torch.save({"state_dict": state, "recipe": {"student": student}, "classes": []}, name)
    for code in codes:
        exec(compile(code, path.name, "exec"), {"__name__": "readme"})


def test_fit_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = "".join(text for language, text in blocks(ENGLISH) if language == "bash").splitlines()
    fits = [words for words in map(shlex.split, lines) if words[:2] == ["estl", "fit"]]
    new = [words[2:] for words in fits if "--resume" not in words]
    assert new
    for words in new:
        parse(words)


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_short_flags_and_names_are_all_there(path: Path) -> None:
    text = prose(path)
    keys = [*VALUES, *VALUES.values(), *SUPERVISIONS, *ARCHS, *DATASETS, *WEIGHTS]
    assert [key for key in keys if f"`{key}`" not in text] == []


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_parameter_counts_are_those_of_the_students(path: Path) -> None:
    import estl.students

    for arch, words in ARCHS.items():
        name = words[0].rpartition(".")[2]
        options = {"pooled": True} if "pooled" in arch else {}
        with torch.device("meta"):
            student = getattr(estl.students, name)(classes=10, in_channels=2, **options)
        count = sum(p.numel() for p in student.parameters())
        assert re.search(rf"^\| `{arch}` .*\| {count:,} \| {student.dim} \|", prose(path), re.M), (
            arch
        )
