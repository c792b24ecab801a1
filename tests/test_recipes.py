"""Every shipped recipe trains, and of those that differ in their supervision alone one goes through
every command that takes it, on a tiny copy of its set.

A recipe keeps its classes, supervision, optimizer, augmentation, precision and schedule. Only sizes
are overridden: of the set, T, the batch, the run, the teacher and, where weights are written, the
student.
"""

import csv
import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from estl.commands import main
from estl.commands.flags import RECIPES
from estl.data.module import with_items
from estl.data.published import read_lists
from estl.experiments.ablate import GUIDED, RUNGS, TWICE, rungs
from estl.experiments.compare import EXPERIMENTS, MORE
from estl.supervision.terms import WEIGHTS
from estl.training.recipe import build_data, merge, parse_recipe
from estl.training.rehearsal import rehearse
from tests import tiny_sets
from tests.tiny_sets import read_file

Words, Estl = Callable[..., list[str]], Callable[..., str]
T = 2
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
TEXTS = {name: (RECIPES / f"{name}.yaml").read_text() for name in NAMES}
VALUES: dict[str, dict[str, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
GUIDED_NAMES = [name for name in NAMES if VALUES[name]["supervision"]["class_path"] == GUIDED]
SUFFIXES = {"plain": "MeanCE", "tet": "TET", "tse": "TSE", "tre": "TRE"}

NARROW: dict[str, dict[str, Any]] = {
    "estl.students.resnet19": {
        "class_path": "estl.students.ResNet",
        "init_args": {"blocks": [1, 1, 1], "widths": [8, 16, 16], "hidden": 16, "stem_width": 8},
    },
    "estl.students.VGGSNN": {"init_args": {"layers": [8, "AP", 16, "AP", 16, "AP", 16]}},
    "estl.students.Spikformer": {"init_args": {"dim": 32, "depth": 1, "heads": 4}},
}
"""What of a student, by its class, is overridden where its weights are written."""

POOLED = {"VGGSNN": "pooled=true", "Spikformer": "readout=mean"}
"""What gives a student the head that TSE needs."""


@dataclass(frozen=True)
class Tiny:
    """A tiny set: its folder, a file to predict, and options that its size asks for."""

    root: Path
    file: Path
    options: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    """Every set in its official layout, by the name of its class."""
    folder = tmp_path_factory.mktemp("sets")
    nmnist = tiny_sets.write_nmnist(folder / "nmnist", digits="0123")
    cifar10 = tiny_sets.write_cifar10(folder / "cifar10", n=10)
    cifar100 = tiny_sets.write_cifar100(folder / "cifar100", n=120, below="cifar-100-python/")
    few = tiny_sets.write_cifar100(folder, n=20)
    os.replace(few / "test", cifar100 / "cifar-100-python/test")
    events = tiny_sets.write_cifar10dvs(folder / "cifar10dvs", below="CIFAR10-DVS")
    pairs = [f"{label}/image_{i:04d}" for label in ("Faces_easy", "cup") for i in range(1, 13)]
    caltech = tiny_sets.write_ncaltech101(folder / "ncaltech101", pairs, photograph=(150, 100))
    few_digits = {"size": 16, "per_class": 4, "test_fraction": 0.01, "val_fraction": 0.01}
    return {
        "Digits": Tiny(folder, nmnist / "N-MNIST/Test/0/60001.bin", few_digits),
        "CIFAR 10": Tiny(cifar10, cifar10 / "cifar-10-batches-py/test_batch"),
        "CIFAR 100": Tiny(cifar100, cifar100 / "cifar-100-python/test"),
        "CIFAR10DVS": Tiny(events, events / "CIFAR10-DVS/bird/cifar10_bird_1.aedat"),
        "NMNISTPairs": Tiny(nmnist, nmnist / "N-MNIST/Test/1/60011.bin", {"per_class": 2}),
        "NCaltech101Pairs": Tiny(caltech, caltech / "Caltech101/cup/image_0003.bin"),
    }


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, its text half too, in the hub's format: 32 x 32 pixels in patches of 8."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    vision = small | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    text = small | {"num_hidden_layers": 1}
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    return folder


def set_of(name: str) -> str:
    """The set of a recipe, as `sets` names it."""
    data = VALUES[name]["data"]
    key: str = data["class_path"].rpartition(".")[2]
    return f"{key} {data['init_args']['classes']}" if key == "CIFAR" else key


def header(name: str) -> list[str]:
    """The comment that a recipe begins with, by its lines."""
    return list(takewhile(lambda line: line.startswith("#"), TEXTS[name].splitlines()))


def command(name: str) -> list[str]:
    """The words of a header's `estl fit`, without these."""
    text = "\n".join(header(name)).replace("\\\n#", "")
    found = re.search(r"^# estl fit (.*)$", text, re.MULTILINE)
    return shlex.split(found[1], comments=True) if found else []


def spelled(part: str, overlay: dict[str, Any]) -> list[str]:
    """What is changed of a part of a recipe, as words of a command line."""
    words = [f"--{part}={overlay['class_path']}"] if "class_path" in overlay else []
    options = overlay.get("init_args", {})
    return words + [f"--{part}.init_args.{k}={json.dumps(v)}" for k, v in options.items()]


@pytest.fixture
def words(sets: dict[str, Tiny], clip: Path, monkeypatch: pytest.MonkeyPatch) -> Words:
    """A header's command made tiny; `whole` keeps the student."""
    monkeypatch.setenv("ESTL_COMPILE", "0")  # two steps do not pay for a compilation

    def made(name: str, *, whole: bool = False) -> list[str]:
        assert set_of(name) in sets, f"recipe {name}: `sets` has no tiny copy of {set_of(name)}"
        tiny, student = sets[set_of(name)], VALUES[name]["student"]["class_path"]
        given = VALUES[name]["data"]["init_args"]
        options = tiny.options | {"num_workers": 0}
        options |= {"rgb": 112 if whole else 56} if "rgb" in given else {}
        if given.get("splits"):  # a list of the whole set: here a split is drawn
            assert read_lists(given["splits"])
            options["splits"] = None
        small = [f"--T={T}", f"--batch-size={2 if whole else 4}", "--epochs=1"]
        small.append("--trainer.limit_train_batches=2")
        small += [f"--data-path={tiny.root}"] if "root" in given else []
        if name in GUIDED_NAMES:
            small += [f"--teacher={clip}", "--supervision.init_args.warm_up=2"]
        if not whole:
            assert student in NARROW, f"recipe {name}: NARROW lacks {student}"
            small += spelled("student", NARROW[student])
        return [*command(name), *small, *spelled("data", {"init_args": options})]

    return made


@pytest.fixture
def estl(capsys: pytest.CaptureFixture[str]) -> Estl:
    """Runs `estl WORDS`; what it prints, or with `fails` the line that it ends with."""

    def run(*words: str, fails: bool = False) -> str:
        status = main(words)
        seen = capsys.readouterr()
        assert status == (2 if fails else 0), f"estl {shlex.join(words)}\n{seen.err}"
        return seen.err if fails else seen.out

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_what_it_is_how_to_run_it_and_what_to_expect(name: str) -> None:
    lines = header(name)
    assert re.match(r"# [A-Z0-9].*[.:]", lines[0]), "the first line is a title"
    assert command(name)[:2] == ["--config", name]
    text = " ".join(line.removeprefix("# ") for line in lines)
    told = re.search(r"Expected: [^.]*\d", text) or "Not run yet" in text
    assert told, f"{name}: write 'Expected: FIGURE' or 'Not run yet'"


def test_recipes_of_a_set_differ_in_their_supervision_alone() -> None:
    families: dict[str, dict[str, str]] = {}
    for name in NAMES:
        family, _, suffix = name.rpartition("_")
        if suffix in SUFFIXES:
            values = dict(VALUES[name])
            assert values.pop("supervision")["class_path"].endswith(f".{SUFFIXES[suffix]}")
            families.setdefault(family, {})[suffix] = json.dumps(values, sort_keys=True)
    for family in ("cifar10", "cifar100", "cifar10dvs", "nmnist"):
        assert {"plain", "tet", "tse"} <= set(families[family])
    for family, rests in families.items():
        assert len(set(rests.values())) == 1, f"{family}_*"


def one_of_each_family() -> list[str]:
    """Of recipes that differ in their supervision alone one, another supervision in each family;
    and all guided ones.
    """
    families: dict[str, list[str]] = {}
    for name in NAMES:
        family, _, suffix = name.rpartition("_")
        families.setdefault(family if suffix in SUFFIXES else name, []).append(name)
    return [names[i % len(names)] for i, names in enumerate(families.values())]


def test_every_set_and_every_supervision_has_a_recipe_that_goes_all_the_way() -> None:
    chosen = one_of_each_family()
    assert {set_of(name) for name in chosen} == {set_of(name) for name in NAMES}
    assert {*SUFFIXES} <= {name.rpartition("_")[2] for name in chosen}
    assert len(OF_A_FAMILY) == len(SUFFIXES)
    assert set(GUIDED_NAMES) < set(chosen)


OF_A_FAMILY = [name for name in NAMES if re.fullmatch("nmnist_(plain|tet|tse|tre)", name)]
"""With every supervision."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the edge")  # two steps make none
@pytest.mark.parametrize("name", sorted({*one_of_each_family(), *OF_A_FAMILY}))
def test_it_is_rehearsed_with_its_whole_student(
    name: str, words: Words, estl: Estl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = estl("fit", *words(name, whole=True), "--dry-run")
    assert f"batch: 2 x T {T} x" in out
    supervision = VALUES[name]["supervision"]["class_path"].rpartition(".")[2]
    assert f"supervision: {supervision}: True" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the edge")
@pytest.mark.parametrize("name", one_of_each_family())
def test_it_fits_resumes_tests_and_predicts(
    name: str, words: Words, estl: Estl, sets: dict[str, Tiny], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    recipe = VALUES[name]
    with monkeypatch.context() as once:  # the resumed run draws
        once.setattr("estl.report.run.finish", lambda *_: None)
        estl("fit", *words(name), "--output-dir=run")
    estl("fit", "--resume=run", "--epochs=2")
    with Path("run/history.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    results = json.loads(Path("run/results.json").read_text())
    assert results["epochs"] == 2
    held = results["of"]["data"]["sizes"]["val"]
    assert (held == 0) == (recipe["data"]["init_args"].get("val_fraction") == 0)
    assert set(results["test"]) == {"final", *(["best_on_validation"] if held else [])}
    for weights in [Path("run/last.ckpt"), *Path("run").glob("best*.ckpt")]:
        estl("test", f"--ckpt={weights}", "--output-dir=tested")
        kind = "final" if weights.stem == "last" else "best_on_validation"
        found = json.loads(Path("tested/test.json").read_text())["test"]
        assert found == results["test"][kind]

    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    data = with_items(build_data(*parse_recipe({key: saved[key] for key in ("seed", "data")})))
    path = sets[set_of(name)].file
    items = [item for part in data.splits.values() for item in part if item.events == path]
    predict = ["predict", "--ckpt=run/last.ckpt", str(path)]
    if not items:
        assert set_of(name) in ("Digits", "CIFAR 10", "CIFAR 100")
        if set_of(name) == "Digits":  # sees recordings of any sensor, whose size has to be known
            assert "--sensor 720x1280" in estl(*predict, fails=True)
            assert len(estl(*predict, "--sensor=34x34").splitlines()) == 1 + T
        else:
            assert "has no recordings to predict" in estl(*predict, fails=True)
        return
    frames = read_file(path, saved["data"]["class_path"], saved["data"]["init_args"])
    assert frames.sum() > 0
    assert torch.equal(frames, data.decode(items[0])[0])
    shown = [line.split() for line in estl(*predict).splitlines()[1:]]
    assert [row[0] for row in shown] == [f"t={t}" for t in range(1, T + 1)]
    assert {row[1] for row in shown} <= set(data.classes)


WHOLE_LADDERS = ("digits_guided", "ncaltech101_clip_written")
"""Recipes that are tried on all rungs that they can have: one has the bridge and its controls, the
other its own learning rate for each part."""

OTHER_EDGES = {"1t", "2s", "2w", "3", "2b", "6s", "6m", "6j"}
"""Rungs for the rest: all supervisions, edges and bridges, each with one choice of terms."""


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.filterwarnings("ignore:the edge")
@pytest.mark.parametrize("name", GUIDED_NAMES)
def test_a_guided_recipe_is_ablated(name: str, words: Words, estl: Estl, tmp_path: Path) -> None:
    """The first rung and the one with all terms go all the way, others train two steps."""
    bridged = VALUES[name]["data"]["init_args"].get("bridge")
    ends = ["1", "6" if bridged else "5"]
    sweep = [f"--rungs={','.join(ends)}", "--seeds=0", f"--output-dir={tmp_path}"]
    estl("ablate", *words(name), *sweep)
    trained = {}
    for rung in ends:
        with (tmp_path / rung / "seed0" / "history.csv").open(newline="") as file:
            *_, row = csv.DictReader(file)
        trained[rung] = {term for term in WEIGHTS if f"train/{term}" in row}
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    able = {
        rung: set(terms) or (set() if rung == "1t" else {"cls"})  # TET has terms of its own
        for rung, (_, _, terms, bridge, _) in RUNGS.items()
        if bridged or (bridge is None and rung not in TWICE)
    }
    weights = VALUES[name]["supervision"]["init_args"].get("weights") or {}
    if weights.get("edge_events") == 0:  # the warm-up alone trains the edges
        able = {rung: terms - {"edge_events"} for rung, terms in able.items()}
    assert [variant.name for variant in rungs(recipe)] == list(able)
    tried = {*ends, *(able if name in WHOLE_LADDERS else OTHER_EDGES & set(able))}
    for variant in rungs(recipe, sorted(tried - set(ends))):
        terms = rehearse(*parse_recipe(merge(recipe, variant.overlay))).loss.terms
        trained[variant.name] = {term for term in WEIGHTS if term in terms}
    assert trained == {rung: able[rung] for rung in tried}


def one_of_each_set() -> list[str]:
    """`compare` and `tune` replace the supervision, in which a set's other recipes differ."""
    by_set = {set_of(name): name for name in sorted(NAMES, key=lambda n: n not in GUIDED_NAMES)}
    return sorted(by_set.values())


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", one_of_each_set())
def test_supervisions_are_compared_on_every_set_and_thresholds_are_tuned(
    name: str, words: Words, estl: Estl, tmp_path: Path
) -> None:
    student = VALUES[name]["student"]["class_path"].rpartition(".")[2]
    given = words(name)
    if name in GUIDED_NAMES:  # none of these has a head that TSE can read
        line = estl("compare", *given, "--only=tse", f"--output-dir={tmp_path}/tse", fails=True)
        assert "TSE needs a head on pooled features" in line
    given += [f"--student.init_args.{POOLED[student]}"] if student in POOLED else []
    kinds = ["plain", "tet", "tse", *MORE]  # the others differ from tse in numbers alone
    assert {e[1] for e in EXPERIMENTS.values()} == {EXPERIMENTS[kind][1] for kind in kinds[:3]}
    names = kinds if set_of(name) == "Digits" else ["tse"]
    more = [f"--only={','.join(names)}", "--seeds=0", f"--output-dir={tmp_path}/compare"]
    estl("compare", *given, *more)
    runs = json.loads((tmp_path / "compare" / "results.json").read_text())["runs"]
    for (experiment, [run]), expected in zip(runs.items(), names, strict=True):
        assert experiment == expected
        chosen = (EXPERIMENTS | MORE)[experiment][1].__name__
        assert run["of"]["supervision"].startswith(f"{chosen}(")

    study = ["tune", *given, "--trials=1"]
    if not runs["tse"][0]["of"]["data"]["sizes"]["val"]:
        line = estl(*study, f"--output-dir={tmp_path}/none", fails=True)
        assert "tune ranks by validation: give a val_fraction above 0" in line
        study.append("--data.init_args.val_fraction=0.3")
    table = estl(*study, f"--output-dir={tmp_path}/tune")
    assert re.search(r"^\| 0 +\| 0\.\d+ \|", table, re.MULTILINE)
