"""Pages in two languages say the same; commands in documents and recipes are understood; Python
code runs; the figures of the tuning guide are those of the results and the log.
"""

import doctest
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from estl.commands import main
from estl.commands.fit import fit
from estl.commands.flags import ARCHS, DATASETS, KEYS, RECIPES, TrainingFlags
from estl.data.augment import Augment
from estl.students import VGGSNN, resnet18, resnet19
from estl.supervision import TET, TRE, TSE, DenseTSE, EdgeGuidedDistillation, MeanCE
from estl.supervision.terms import WEIGHTS
from estl.supervision.tre import tre_loss
from estl.supervision.tse import tse_loss
from estl.training.checkpoint import make
from estl.training.recipe import make_parser, parse

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
TUNING, TUNING_CHINESE = (ROOT / "docs" / name for name in ("tuning.md", "tuning.zh-CN.md"))
SUPERVISION = ROOT / "docs/supervision.md"
DATA = ROOT / "docs/data.md"
GUIDES = [DATA, SUPERVISION, TUNING]
TWINS = [ENGLISH, *GUIDES, ROOT / "docs/deploy.md", ROOT / "docs/scale.md"]
"""The pages that are there in English and in Chinese."""
WITH_COMMANDS = [
    ENGLISH,
    *GUIDES,
    ROOT / "docs/benchmarks.md",
    ROOT / "docs/deploy.md",
    ROOT / "docs/results.md",
    ROOT / "docs/scale.md",
    ROOT / "Makefile",
]
WITH_COMMANDS += sorted(RECIPES.glob("*.yaml"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def without_comments(code: str) -> str:
    """Comments may be translated; `#SBATCH` and `#!` are none."""
    return re.sub(r"\s*# .*$", "", code, flags=re.MULTILINE)


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of each code block, without comments."""
    return [(lang, without_comments(text)) for lang, text in FENCE.findall(path.read_text())]


def prose(path: Path) -> str:
    """The text without its code blocks."""
    return FENCE.sub("", path.read_text())


def chinese(page: Path) -> Path:
    """Where the Chinese twin of an English page is, if it has one."""
    return page.with_name(f"{page.stem}.zh-CN.md")


def anchors(page: Path) -> list[str]:
    """What the headings of a page are linked by, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


LINK = re.compile(r"\]\(([^)\s]+)\)")
TABLE_ROW = re.compile(r"^\|.*$", re.MULTILINE)
INDENTED = re.compile(r"^ {4}.*$", re.MULTILINE)
VALUE = re.compile(r"`[^`]+`|\d+(?:[.,]\d+)*")
"""What no translation changes: code and numbers."""

each_twin = pytest.mark.parametrize("page", TWINS, ids=lambda path: path.name)


@each_twin
def test_both_languages_have_the_same_headings_lists_and_code(page: Path) -> None:
    assert blocks(page) == blocks(chinese(page))
    if page != TUNING:  # in which these lines are formulas with words
        codes = ("\n".join(INDENTED.findall(prose(path))) for path in (page, chinese(page)))
        assert len(set(map(without_comments, codes))) == 1
    for line in (r"^(#+) ", r"^(\*) ", r"^(<!--.*-->)$"):
        levels, same = (re.findall(line, prose(path), re.M) for path in (page, chinese(page)))
        assert levels == same, line
    assert anchors(page)


@each_twin
def test_both_languages_have_the_same_figures(page: Path) -> None:
    rows, same = (
        [sorted(VALUE.findall(row)) for row in TABLE_ROW.findall(prose(path))]
        for path in (page, chinese(page))
    )
    assert rows == same
    assert any(rows)
    figures, same = (
        sorted(n for n in re.findall(r"\d+[.,]\d+", prose(path))) for path in (page, chinese(page))
    )
    assert figures == same


def names(page: Path) -> list[Counter[str]]:
    """How often each section names what in code."""
    sections = re.split(r"^#+ ", prose(page), flags=re.MULTILINE)
    return [Counter(" ".join(c.split()) for c in re.findall(r"`[^`]+`", s)) for s in sections]


@each_twin
def test_no_section_lacks_a_name_that_its_english_twin_has(page: Path) -> None:
    pairs = zip(names(page), names(chinese(page)), strict=True)
    assert [missing for english, other in pairs if (missing := english - other)] == []


def places(page: Path) -> list[tuple[str, int]]:
    """The English page, or other file, that each link leads to, and which of its headings."""
    found = []
    for link in LINK.findall(prose(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        heading = anchors(target).index(anchor) if anchor else 0
        found.append((target.name.replace(".zh-CN", ""), heading))
    return sorted(found)


@each_twin
def test_links_of_both_languages_lead_to_the_same_places(page: Path) -> None:
    assert places(page) == places(chinese(page))
    english = [page.parent / link.partition("#")[0] for link in LINK.findall(prose(chinese(page)))]
    assert [target for target in english if chinese(target).exists()] == [page]
    assert [link for link in LINK.findall(prose(page)) if "zh-CN" in link] == [chinese(page).name]


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_to_what_is_there(page: Path) -> None:
    dead = []
    for link in LINK.findall(prose(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not link.startswith("http") and (
            not target.exists() or (anchor and anchor not in anchors(target))
        ):
            dead.append(link)
    assert dead == []


FIGURE = re.compile(r"\d+\.\d+|\d+(?= ?%)")
"""A decimal number or a percentage."""


def cited(page: Path) -> dict[str, str]:
    """The sections that the list of sources links to, by their marks R1, R2, ..."""
    found = {}
    for mark, name, anchor in re.findall(
        r"([RL]\d)\W\s?\[.*?\]\(([\w.]+)#(.*?)\)", page.read_text()
    ):
        sections = re.split(r"^## ", (page.parent / name).read_text(), flags=re.MULTILINE)
        slugs = [re.sub(r"[^\w -]", "", text.partition("\n")[0].lower()) for text in sections]
        found[mark] = sections[[slug.replace(" ", "-") for slug in slugs].index(anchor)]
    return found


@pytest.mark.parametrize("page", [TUNING, TUNING_CHINESE], ids=lambda path: path.name)
def test_figures_of_the_tuning_guide_stand_where_it_says(page: Path) -> None:
    text, sections = prose(page).rpartition("\n## ")[0], cited(page)
    assert len(sections) == 9
    checked = 0
    # A paragraph, an item of a list or a row at a time; a table with R1 in its head as a whole.
    for part in re.split(r"\n(?:\n|(?=\* |\| `))", text):
        source = " ".join(sections[mark] for mark in re.findall(r"[RL]\d", part))
        if source:
            figures = FIGURE.findall(part)
            missing = [n for n in figures if not re.search(rf"(?<![\d.]){n}(?!\d)", source)]
            assert missing == [], part
            checked += len(figures)
            if page == TUNING:  # quotes, which the other page translates
                for quote in re.findall(r"“(.*?)”", " ".join(part.split())):
                    assert quote in " ".join(source.split())
    assert checked > 60


def test_the_worked_example_of_the_tuning_guide_is_right() -> None:
    (code,) = [text for language, text in FENCE.findall(TUNING.read_text()) if language == "python"]
    example = doctest.DocTestParser().get_doctest(code, {}, TUNING.name, str(TUNING), 0)
    assert doctest.DocTestRunner().run(example) == (0, 7)


@pytest.mark.slow
def test_limits_of_small_maps_in_the_tuning_guide_are_right() -> None:
    rows = re.findall(r"\| (\d)\W\1 \| ([\d.]+) \| (\d+) of (\d+) \|", prose(TUNING))
    assert [int(side) for side, *_ in rows] == [2, 3, 4, 8]
    for side, kappa, most, places in rows:
        n = int(side) ** 2
        # Of all maps, those of k ones and n-k zeros let most stand out.
        hot = torch.tensor([[1.0] * k + [0.0] * (n - k) for k in range(1, n)])
        stand_out = (1.0 - hot.mean(1)) / hot.std(1)  # in standard deviations
        assert f"{stand_out[0]:.2f}" == kappa
        assert (int((stand_out >= 1.0).sum()), n) == (int(most), int(places))
    with torch.device("meta"):
        maps = [
            student(torch.empty(1, 1, student.in_channels, size, size)).features.shape[-1]
            for student, size in (
                (resnet18(), 16),
                (VGGSNN(pooled=True), 32),
                (VGGSNN(pooled=True), 48),
                (resnet18(), 32),
                (resnet19(), 32),
            )
        ]
    assert maps == [2, 2, 3, 4, 8]


@pytest.mark.slow
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Those of the other language are the same, but for comments: see above.
    codes = [text for language, text in FENCE.findall(ENGLISH.read_text()) if language == "python"]
    assert len(codes) == 4
    monkeypatch.chdir(tmp_path)
    small: dict[str, Any] = {"layers": [8, "AP"], "pooled": True}
    for name in re.findall(r'"(runs/.*\.ckpt)"', "".join(codes)):  # as estl fit leaves it
        Path(name).parent.mkdir(parents=True)
        student = {"class_path": "estl.students.VGGSNN", "init_args": small}
        state = VGGSNN(**small).state_dict()
        torch.save({"state_dict": state, "recipe": {"student": student}, "classes": []}, name)
    names: dict[str, Any] = {"__name__": "readme"}
    for code in codes:
        exec(compile(code, ENGLISH.name, "exec"), names)
        if "accuracy" in names:  # 16 or more of 20 are right by chance in 6 of 1000 cases
            assert names.pop("accuracy") >= 0.8


@pytest.mark.slow
def test_the_loop_of_the_data_guide_runs(
    tmp_path: Path, save_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [text for language, text in FENCE.findall(DATA.read_text()) if language == "python"]
    save_clip(tmp_path / "TEACHER")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(codes[-1], DATA.name, "exec"), names)
    guided, tse = names["supervision"].supervisions
    assert guided.edge_detector is not None
    assert tse.progress == pytest.approx(1 - 1 / names["steps"])  # before the last step
    assert len(names["batch"].label) == names["data"].batch_size + names["bridge"].per_step
    assert names["accuracy"] > 0.1


@pytest.mark.parametrize("page", [SUPERVISION, chinese(SUPERVISION)], ids=["en", "zh"])
def test_fine_tuning_in_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [text for language, text in FENCE.findall(page.read_text()) if language == "python"]
    monkeypatch.chdir(tmp_path)
    first, part = VGGSNN(pooled=True), {"class_path": "estl.students.VGGSNN"}
    saved = {"recipe": {"student": part | {"init_args": {"pooled": True}}}, "classes": []}
    Path("runs/first").mkdir(parents=True)
    torch.save(saved | {"state_dict": first.state_dict()}, "runs/first/last.ckpt")
    names: dict[str, Any] = {}
    exec(compile(code, page.name, "exec"), names)
    assert torch.equal(names["student"].layers[0][0].weight, first.layers[0][0].weight)
    assert names["student"].head.weight.shape == (101, first.dim)


class Understood(BaseException):
    """Raised in place of the work, once a command line has been parsed."""


def stop(*args: object, **kwargs: object) -> None:
    raise Understood


WORK = (
    "estl.report.html.write",
    "estl.training.run.fit",
    "estl.training.run.test",
    "estl.training.predict.predict",
    "estl.training.follow.follow",
    "estl.training.reopen.reopen",
    "estl.training.export.export",
    "estl.training.recipe.build_data",
    "estl.experiments.sweep.sweep",
    "estl.experiments.tune.open_study",
    "estl.experiments.bench.bench.bench",
    "estl.experiments.bench.memory.memory",
    "estl.data.download.prepare",
    "estl.data.show.show",
)
"""What each command calls when it has parsed its arguments; `build_data` is the first of all that
take a data set."""

COMMAND = re.compile(
    r"^(?: {4}|# |\t-?\$\(BIN\)/)?(?:[A-Z_]+=\S+ |srun |torchrun .*-m )?estl(?:\.commands)? (.*)$",
    flags=re.MULTILINE,
)
"""A command: in a code block, fenced or indented, in the head of a recipe, in the Makefile; also by
SLURM's and PyTorch's launchers."""


def commands(path: Path) -> list[list[str]]:
    """The arguments of each `estl` command."""
    text = re.sub(r"\\\n[#\s]*", " ", path.read_text())
    return [shlex.split(line, comments=True) for line in COMMAND.findall(text)]


def write_mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module with the student and the supervision that the README asks its reader to write."""
    source = (
        "from estl.students import VGGSNN as Tiny\nfrom estl.supervision import MeanCE as LastStep"
    )
    (folder / "mine.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test's folder


@pytest.mark.slow
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
    named = re.compile(r"`(\w+\.yaml)`:?\n\n```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for name, text in named.findall(path.read_text()):  # recipes that the document shows
        (tmp_path / name).write_text(text)
    write_mine(tmp_path, monkeypatch)
    found = commands(path)
    assert found
    for args in found:
        if args[0] == "watch":  # a run that has no results yet
            Path(args[1]).mkdir(parents=True)
            (Path(args[1]) / "history.csv").touch()
        if "--resume" in args:
            run = Path(args[args.index("--resume") + 1])
            run.mkdir(parents=True)
            (run / "config.yaml").write_text((RECIPES / "nmnist_tse.yaml").read_text())
        with pytest.raises(Understood):
            raise AssertionError(f"{args}: ended with {main(args)}")


@pytest.mark.slow
@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_recipes_in_the_guides_are_understood(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mine(tmp_path, monkeypatch)
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


@pytest.mark.parametrize("path", [SUPERVISION, chinese(SUPERVISION)], ids=["en", "zh"])
@pytest.mark.parametrize("kind", [MeanCE, TET, TSE, TRE, DenseTSE], ids=lambda kind: kind.__name__)
def test_defaults_in_the_guide_are_those_of_the_code(path: Path, kind: type) -> None:
    (row,) = re.findall(rf"^\| `{kind.__name__}` \| (.*?) \|", path.read_text(), re.MULTILINE)
    told = {name: yaml.safe_load(value) for name, value in re.findall(r"`(\w+)` ([-\w.]+)", row)}
    named = re.findall(r"`(\w+)`", row)
    defaults = {name: p.default for name, p in signature(kind).parameters.items()}
    assert set(named) == set(defaults)
    assert told == {name: x for name, x in defaults.items() if x is not None}
    function = {TSE: tse_loss, TRE: tre_loss}.get(kind)
    if function is not None:
        shared = {name: p.default for name, p in signature(function).parameters.items()}
        assert all(shared[name] == x for name, x in defaults.items() if name in shared)


@pytest.mark.parametrize("path", [SUPERVISION, chinese(SUPERVISION)], ids=["en", "zh"])
def test_options_and_weights_of_the_guided_distillation_are_those_of_the_code(path: Path) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \|", path.read_text(), re.MULTILINE))
    facts = {"student_dim", "T", "classes", "weights"}
    options = signature(EdgeGuidedDistillation).parameters
    defaults = {name: p.default for name, p in options.items() if name not in facts}
    assert {name: yaml.safe_load(rows[name]) for name in defaults} == defaults
    assert {name: float(rows[name]) for name in WEIGHTS} == WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_parameter_counts_are_those_of_the_students(path: Path) -> None:
    import estl.students

    for arch, overrides in ARCHS.items():
        name = overrides[0].rpartition(".")[2]
        given = [word.removeprefix("--student.init_args.").split("=") for word in overrides[1:]]
        options = {key: yaml.safe_load(value) for key, value in given}
        with torch.device("meta"):
            student = getattr(estl.students, name)(classes=10, in_channels=2, **options)
        count = sum(p.numel() for p in student.parameters())
        assert re.search(rf"^\| `{arch}` .*\| {count:,} \| {student.dim} \|", prose(path), re.M), (
            arch
        )
