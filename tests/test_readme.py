"""Both READMEs say the same; commands in documents and recipes are understood; Python code runs."""

import re
import shlex
import sys
from dataclasses import fields
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
import torch

from estl.commands import main
from estl.commands.fit import fit
from estl.commands.flags import ARCHS, DATASETS, KEYS, RECIPES, TrainingFlags
from estl.data.augment import Augment
from estl.students import VGGSNN
from estl.supervision.distillation import WEIGHTS
from estl.training.checkpoint import make
from estl.training.recipe import make_parser, parse

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
GUIDES = [ROOT / "docs" / name for name in ("data.md", "supervision.md")]
WITH_COMMANDS = [ENGLISH, *GUIDES, ROOT / "docs/results.md", ROOT / "Makefile"]
WITH_COMMANDS += sorted(RECIPES.glob("*.yaml"))
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
    small: dict[str, Any] = {"layers": [8, "AP"], "pooled": True}
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


WORK = (
    "estl.training.run.fit",
    "estl.training.run.test",
    "estl.training.predict.predict",
    "estl.training.recipe.build_data",
    "estl.experiments.sweep.sweep",
    "estl.experiments.tune.tune",
    "estl.data.download.prepare",
    "estl.data.show.show",
)
"""What each command calls when it has parsed its arguments; `build_data` is the first of all that
take a data set."""

COMMAND = re.compile(
    r"^(?: {4}|# |\t\$\(BIN\)/)?(?:PYTHONPATH=\S+ )?estl (.*)$", flags=re.MULTILINE
)
"""A command: in a code block, fenced or indented, in the head of a recipe, in the Makefile."""


def commands(path: Path) -> list[list[str]]:
    """The arguments of each `estl` command."""
    text = re.sub(r"\\\n[#\s]*", " ", path.read_text())
    return [shlex.split(line, comments=True) for line in COMMAND.findall(text)]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.name)
def test_commands_are_understood(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Imported first: a module keeps what it imports, and would keep `stop` after this test.
    for module in ("estl.experiments.compare", *(name.rpartition(".")[0] for name in WORK)):
        import_module(module)
    for name in WORK:
        monkeypatch.setattr(name, stop)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "part.yaml").write_text("seed: 1")
    # The student and the supervision that the README asks its reader to write.
    source = (
        "from estl.students import VGGSNN as Tiny\nfrom estl.supervision import MeanCE as LastStep"
    )
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test's folder
    found = commands(path)
    assert found
    for args in found:
        if "--resume" in args:
            run = Path(args[args.index("--resume") + 1])
            run.mkdir(parents=True)
            (run / "config.yaml").write_text((RECIPES / "nmnist_tse.yaml").read_text())
        with pytest.raises(Understood):
            raise AssertionError(f"{args}: ended with {main(args)}")


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_recipes_in_the_guides_are_understood(path: Path, tmp_path: Path) -> None:
    parts = [text for language, text in blocks(path) if language == "yaml"]
    assert parts
    for text in parts:
        part = tmp_path / "part.yaml"
        part.write_text(text)
        config, _ = parse(TrainingFlags(config=("digits_tse", str(part))).spell_out())
        if "teacher" not in text:  # which would have to be there
            make(make_parser(), "supervision", config.supervision)
        if (augment := config.data.init_args.augment) is not None:
            Augment(**augment.as_dict())


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_short_flags_and_names_are_all_there(path: Path) -> None:
    text = prose(path)
    own = [p.name for p in signature(fit).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    names = [*(field.name for field in fields(TrainingFlags)), *own]
    names.remove("flags")
    flags = [f"--{name.replace('_', '-')}" for name in names]
    keys = [*flags, *KEYS.values(), "output_dir", "seed", *ARCHS, *DATASETS, *WEIGHTS]
    assert [key for key in keys if f"`{key}`" not in text] == []


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_parameter_counts_are_those_of_the_students(path: Path) -> None:
    import estl.students

    for arch, overrides in ARCHS.items():
        name = overrides[0].rpartition(".")[2]
        options = {"pooled": True} if "pooled" in arch else {}
        with torch.device("meta"):
            student = getattr(estl.students, name)(classes=10, in_channels=2, **options)
        count = sum(p.numel() for p in student.parameters())
        assert re.search(rf"^\| `{arch}` .*\| {count:,} \| {student.dim} \|", prose(path), re.M), (
            arch
        )
