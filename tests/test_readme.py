"""Both READMEs say the same; what they and the guides in docs/ say is understood, or runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from estl.commands import main
from estl.commands.flags import ARCHS, DATASETS, SUPERVISIONS, VALUES
from estl.data.augment import Augment
from estl.students import VGGSNN
from estl.supervision.distillation import WEIGHTS
from estl.training.checkpoint import make
from estl.training.recipe import make_parser, parse

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
GUIDES = [ROOT / "docs" / name for name in ("data.md", "supervision.md")]
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


class Understood(BaseException):
    """Raised in place of the work, once a command line has been parsed."""


def stop(*args: object, **kwargs: object) -> None:
    raise Understood


WORK = ("run.fit", "run.test", "run.predict", "recipe.make", "sweep.sweep", "tune.tune")
WORK += ("data.download.prepare", "data.show.show")
"""What each command calls when it has parsed its words; `recipe.make` is the first of all that
takes a data set."""


def commands(path: Path) -> list[list[str]]:
    """The words of each `estl` command in the shell blocks, without `estl`."""
    text = "".join(text for language, text in blocks(path) if language == "bash")
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.sub(r"^PYTHONPATH=\S+ ", "", line) for line in lines]
    return [shlex.split(line)[1:] for line in found if line.startswith("estl ")]


@pytest.mark.parametrize("path", [ENGLISH, *GUIDES], ids=lambda path: path.name)
def test_commands_are_understood(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WORK:
        monkeypatch.setattr(f"estl.{name}", stop)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "FOLDER").mkdir()
    # The student and the supervision that the README asks its reader to write.
    source = (
        "from estl.students import VGGSNN as Tiny\nfrom estl.supervision import MeanCE as LastStep"
    )
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = [words for words in commands(path) if "--resume" not in words]
    assert found
    for words in found:
        with pytest.raises(Understood):
            raise AssertionError(f"{words}: ended with {main(words)}")


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_recipes_in_the_guides_are_understood(path: Path, tmp_path: Path) -> None:
    parts = [text for language, text in blocks(path) if language == "yaml"]
    assert parts
    for text in parts:
        part = tmp_path / "part.yaml"
        part.write_text(text)
        config, _ = parse(["--config", f"{ROOT}/recipes/digits_tse.yaml", "--config", str(part)])
        if "teacher" not in text:  # which would have to be there
            make(make_parser(), "supervision", config.supervision)
        if (augment := config.data.init_args.augment) is not None:
            Augment(**augment.as_dict())


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
