"""Every shipped recipe through every command that takes it, on a tiny copy of its set.

A recipe keeps its classes, supervision, optimizer, augmentation, precision and schedule. Only sizes
are overridden: of the set, the batch, T, the run, the teacher, and, where weights are written, of the
student.
"""

import csv
import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from estl.commands import main
from estl.commands.flags import RECIPES
from estl.data.reading import read_file
from estl.data.splits import LISTS
from estl.experiments.ablate import GUIDED, RUNGS
from estl.experiments.compare import EXPERIMENTS, MORE
from estl.supervision.distillation import WEIGHTS
from estl.training.recipe import build_data, merge, parse_recipe
from tests.tiny_sets import (
    names_of,
    write_cifar10,
    write_cifar10dvs,
    write_cifar100,
    write_ncaltech101,
    write_nmnist,
)

T = 2
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
TEXTS = {name: (RECIPES / f"{name}.yaml").read_text() for name in NAMES}
VALUES: dict[str, dict[str, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
GUIDED_NAMES = [name for name in NAMES if VALUES[name]["supervision"]["class_path"] == GUIDED]

NARROW: dict[str, dict[str, Any]] = {
    "estl.students.resnet19": {
        "class_path": "estl.students.ResNet",
        "init_args": {"blocks": [1, 1, 1], "widths": [8, 16, 16], "hidden": 16, "stem_width": 8},
    },
    "estl.students.VGGSNN": {"init_args": {"layers": [8, "AP", 16, "AP", 16, "AP", 16]}},
    "estl.students.Spikformer": {"init_args": {"dim": 32, "depth": 1, "heads": 4}},
}
"""What of a student is overridden where its weights are written, by its class."""

POOLED = {
    "estl.students.resnet19": [],
    "estl.students.VGGSNN": ["--student.init_args.pooled=true"],
    "estl.students.Spikformer": ["--student.init_args.readout=mean"],
}
"""What gives a student the head that TSE needs."""


@dataclass(frozen=True)
class Tiny:
    """A tiny set: its folder, a file to predict, and options that its size asks for."""

    root: Path
    file: Path
    options: dict[str, Any] = field(default_factory=dict)


def write_sets(folder: Path) -> dict[str, Tiny]:
    """Every set in its official layout, by the name of its class."""
    nmnist = write_nmnist(folder / "nmnist", digits="0123456789")
    cifar10 = write_cifar10(folder / "cifar10", n=10)
    cifar100 = write_cifar100(folder / "cifar100", n=200, below="cifar-100-python/")
    few = write_cifar100(folder / "few", n=20)
    os.replace(few / "test", cifar100 / "cifar-100-python" / "test")
    events = write_cifar10dvs(folder / "cifar10dvs", below="CIFAR10-DVS")
    classes = ("Faces_easy", "accordion", "cup")
    pairs = [name for label in classes for name in names_of(label, 10)]
    caltech = write_ncaltech101(folder / "ncaltech101", pairs, photograph=(150, 100))
    few_digits = {"per_class": 4, "test_fraction": 0.01, "val_fraction": 0.01}
    return {
        "Digits": Tiny(folder, nmnist / "N-MNIST/Test/0/60001.bin", few_digits),
        "CIFAR 10": Tiny(cifar10, cifar10 / "cifar-10-batches-py/test_batch"),
        "CIFAR 100": Tiny(cifar100, cifar100 / "cifar-100-python/test"),
        "CIFAR10DVS": Tiny(events, events / "CIFAR10-DVS/bird/cifar10_bird_1.aedat"),
        "NMNISTPairs": Tiny(nmnist, nmnist / "N-MNIST/Test/1/60011.bin", {"per_class": 2}),
        "NCaltech101Pairs": Tiny(caltech, caltech / "Caltech101/cup/image_0003.bin"),
    }


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    """The tiny sets."""
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps do not pay for a compilation."""
    monkeypatch.setenv("ESTL_COMPILE", "0")


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


def command(text: str) -> list[str]:
    """The words of a header's `estl fit`, without `estl`."""
    header = text.partition("\nseed:")[0].replace("\\\n#", "")
    lines = [line.removeprefix("# ") for line in header.splitlines()]
    found = [line for line in lines if line.startswith("estl fit ")]
    return shlex.split(found[0], comments=True)[1:] if found else []


def tiny_of(name: str, sets: dict[str, Tiny]) -> Tiny:
    """The tiny copy of the set of a recipe."""
    data = VALUES[name]["data"]
    key = data["class_path"].rpartition(".")[2]
    if key == "CIFAR":
        key += f" {data['init_args'].get('classes', 10)}"
    assert key in sets, f"recipe {name}: add a tiny copy of {key} to write_sets"
    return sets[key]


def spelled(part: str, overlay: dict[str, Any]) -> list[str]:
    """What is changed of a part of a recipe, as words of a command line."""
    words = [f"--{part}={overlay['class_path']}"] if "class_path" in overlay else []
    options = overlay.get("init_args", {})
    return words + [f"--{part}.init_args.{k}={json.dumps(v)}" for k, v in options.items()]


def sizes(name: str, tiny: Tiny, clip: Path, *, whole: bool = False) -> list[str]:
    """The words that make a run of a recipe tiny; `whole` keeps the student and the photographs."""
    data, student = (VALUES[name][part] for part in ("data", "student"))
    options = tiny.options | {"num_workers": 0}
    if "splits" in data["init_args"]:
        options["splits"] = str(lists(name, tiny))
    words = [f"--T={T}", f"--batch-size={2 if whole else 4}"]
    words += ["--epochs=1", "--trainer.limit_train_batches=2"]
    if "root" in data["init_args"]:
        words.append(f"--data-path={tiny.root}")
    if name in GUIDED_NAMES:
        words.append(f"--teacher={clip}")
    if not whole:
        of = student["class_path"]
        assert of in NARROW, f"recipe {name}: say in NARROW how {of} becomes small"
        words += spelled("student", NARROW[of])
        options |= {"rgb": 56} if "rgb" in data["init_args"] else {}
    return words + spelled("data", {"init_args": options})


def lists(name: str, tiny: Tiny) -> Path:
    """A list of the tiny set in place of the recipe's, with the same words (train, test, ...)."""
    options = {"root": str(tiny.root), "splits": None, "cache": None} | tiny.options
    data = merge(VALUES[name]["data"], {"init_args": options})
    parts = build_data(*parse_recipe({"data": data})).splits
    words = yaml.safe_load(
        (LISTS / f"{VALUES[name]['data']['init_args']['splits']}.yaml").read_text()
    )
    if "val" not in words:
        parts = {"train": [*parts["train"], *parts["val"]], "test": parts["test"]}
    path = tiny.root / f"{name}-lists.yaml"
    path.write_text(yaml.safe_dump({word: list(map(str, items)) for word, items in parts.items()}))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `estl WORDS` prints; it has to succeed."""
    status = main(words)
    seen = capsys.readouterr()
    assert status == 0, f"estl {shlex.join(words)}\n{seen.err}"
    return seen.out


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_what_it_is_how_to_run_it_and_what_to_expect(name: str) -> None:
    lines = TEXTS[name].partition("\nseed:")[0].splitlines()
    assert all(line.startswith("# ") and len(line) <= 110 for line in lines)
    assert lines[0].endswith((".", ":")) or ":" in lines[0], "the first line is a title"
    assert not lines[0].startswith("# estl")
    assert command(TEXTS[name])[:3] == ["fit", "--config", name]
    header = " ".join(line.removeprefix("# ") for line in lines)
    expected = re.search(r"Expected: [^.]*\d", header)
    assert expected or "Not run yet" in header, f"{name}: give 'Expected: FIGURE' or 'Not run yet'"


@pytest.mark.parametrize("family", ["cifar10", "cifar100", "cifar10dvs", "nmnist"])
def test_recipes_of_a_set_differ_in_supervision_alone(family: str) -> None:
    members = [name for name in NAMES if name.startswith(f"{family}_") and name not in GUIDED_NAMES]
    assert len(members) >= 3
    assert len({json.dumps(VALUES[name]["supervision"]) for name in members}) == len(members)
    for name in members:
        assert rest(name) == rest(members[0]), f"{name} differs from {members[0]}"


def rest(name: str) -> str:
    """A recipe without its supervision, as text that compares."""
    values = {key: value for key, value in VALUES[name].items() if key != "supervision"}
    return json.dumps(values, sort_keys=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_fits_resumes_tests_and_predicts(
    name: str,
    sets: dict[str, Tiny],
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny, recipe = tiny_of(name, sets), VALUES[name]
    out = run(capsys, *command(TEXTS[name]), *sizes(name, tiny, clip, whole=True), "--dry-run")
    assert f"batch: 2 x T {T} x" in out
    assert f"supervision: {recipe['supervision']['class_path'].rpartition('.')[2]}: True" in out
    assert list(tmp_path.iterdir()) == []

    words = [*command(TEXTS[name]), *sizes(name, tiny, clip)]
    run(capsys, *words, "--output-dir=run")
    run(capsys, "fit", "--resume=run", "--epochs=2")
    with Path("run/history.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    results = json.loads(Path("run/results.json").read_text())
    assert results["epochs"] == 2
    held = results["of"]["data"]["sizes"]["val"]
    assert (held == 0) == (recipe["data"]["init_args"].get("val_fraction") == 0)
    assert set(results["test"]) == {"final", *(["best_on_validation"] if held else [])}

    for weights in Path("run").glob("*.ckpt"):
        run(capsys, "test", f"--ckpt={weights}", "--output-dir=tested")
        found = json.loads(Path("tested/test.json").read_text())["test"]
        kind = "final" if weights.stem == "last" else "best_on_validation"
        assert found == results["test"][kind]
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    predicts(tiny, saved, capsys)


def predicts(tiny: Tiny, saved: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """`estl predict` reads a file as the set does, and names one of the set's classes."""
    data = build_data(*parse_recipe({key: saved[key] for key in ("seed", "data")}))
    items = [item for part in data.splits.values() for item in part]
    (item,) = [item for item in items if item.events == tiny.file] or [None]
    words = ["predict", "--ckpt=run/last.ckpt", str(tiny.file)]
    if item is None:
        assert main(words) == 2
        assert "has no event files to predict" in capsys.readouterr().err
        return
    frames = read_file(tiny.file, saved["data"]["class_path"], saved["data"]["init_args"])
    assert frames.sum() > 0
    assert torch.equal(frames, data.decode(item)[0])
    shown = [line.split() for line in run(capsys, *words).splitlines()[1:]]
    assert [row[0] for row in shown] == [f"t={t}" for t in range(1, T + 1)]
    assert {row[1] for row in shown} <= set(data.classes)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's `estl fit` runs here, not in a process that imports everything, and draws less."""

    def call(command: list[str], *, stderr: Any, **_: Any) -> SimpleNamespace:
        with redirect_stderr(stderr):
            return SimpleNamespace(returncode=main(command[3:]))

    monkeypatch.setattr("estl.experiments.sweep.subprocess", SimpleNamespace(run=call))
    monkeypatch.setattr("estl.report.run.draw", lambda folder: None)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", GUIDED_NAMES)
def test_a_guided_recipe_is_ablated_on_every_rung(
    name: str,
    sets: dict[str, Tiny],
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*command(TEXTS[name])[1:], *sizes(name, tiny_of(name, sets), clip)]
    out = run(capsys, "ablate", *words, "--seeds=0", f"--output-dir={tmp_path}")
    assert "Ablation on" in out
    for rung, (_, _, terms) in RUNGS.items():
        with (tmp_path / rung / "seed0" / "history.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        columns = {column.removeprefix("train/") for column in row if row[column]}
        shown = columns & set(WEIGHTS) if terms else columns - {"epoch", "loss", "acc"}
        assert shown >= set(terms)


def first_of_each_set(names: list[str]) -> list[str]:
    """One recipe a set: `compare` and `tune` replace the supervision, in which the others differ."""
    chosen: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name in GUIDED_NAMES, name)):
        data = VALUES[name]["data"]
        chosen.setdefault(f"{data['class_path']} {data['init_args'].get('classes')}", name)
    return sorted(chosen.values())


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", first_of_each_set(NAMES))
def test_supervisions_are_compared_on_every_set_and_thresholds_are_tuned(
    name: str,
    sets: dict[str, Tiny],
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*command(TEXTS[name])[1:], *sizes(name, tiny_of(name, sets), clip)]
    words += POOLED[VALUES[name]["student"]["class_path"]]
    names = [*EXPERIMENTS, *(MORE if name.startswith("digits") else ())]
    more = ["--only=" + ",".join(names), "--seeds=0", f"--output-dir={tmp_path}/compare"]
    assert "Comparison on" in run(capsys, "compare", *words, *more)
    found = json.loads((tmp_path / "compare" / "results.json").read_text())["runs"]
    assert list(found) == names
    assert len({runs[0]["of"]["data"]["fingerprint"] for runs in found.values()}) == 1
    for experiment, runs in found.items():
        chosen = (EXPERIMENTS | MORE)[experiment][1].__name__
        assert runs[0]["of"]["supervision"].endswith(chosen)

    study = [*words, "--trials=1", f"--output-dir={tmp_path}/tune"]
    if not found["plain"][0]["of"]["data"]["sizes"]["val"]:
        assert main(["tune", *study]) == 2
        assert "give a val_fraction above 0" in capsys.readouterr().err
        study = [*study[:-1], "--data.init_args.val_fraction=0.3", f"--output-dir={tmp_path}/held"]
    assert re.search(r"^\| 0 +\| 0\.\d+ \|", run(capsys, "tune", *study), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDED_NAMES)
def test_a_head_that_tse_cannot_read_is_known_before_the_first_run(
    name: str,
    sets: dict[str, Tiny],
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*command(TEXTS[name])[1:], *sizes(name, tiny_of(name, sets), clip)]
    assert main(["compare", *words, "--only=tse", f"--output-dir={tmp_path}"]) == 2
    assert "TSE needs a head on pooled features" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/seed*"))
