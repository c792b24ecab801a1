"""`estl compare` and `estl tune`: what they run, how they go on, what they write."""

import json
from pathlib import Path

import pytest

from estl.commands import main
from estl.commands.flags import TrainingFlags
from estl.experiments.compare import EXPERIMENTS, experiments
from estl.experiments.sweep import keep_recipe
from estl.training.recipe import merge, parse_recipe
from estl.training.results import CheckpointResults, Results

pytestmark = pytest.mark.usefixtures("without_compiling")

DATA = [
    *("--dataset=digits", "--T=3", "--data.init_args.size=16", "--data.init_args.per_class=4"),
    *("--data.init_args.val_fraction=0.05", "--data.init_args.test_fraction=0.05"),
]
STUDENT = ["--arch=vggsnn-pooled", "--student.init_args.layers=[8,AP,16]"]


def test_the_recipes_own_supervision_leaves_nothing_behind(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = """
supervision: {class_path: estl.supervision.TSE, init_args: {label_smoothing: 0.1}}
learner: {part_lr: {fusion: 0.1}, lr: 0.5}
"""
    recipe.write_text(text)
    args = TrainingFlags(dataset="digits", arch="vggsnn-pooled").spell_out()
    kept = keep_recipe([f"--config={recipe}", *args], tmp_path / "kept", ["supervision"])
    config, _ = parse_recipe(merge(kept, experiments(["tse"])[0].overlay))
    assert config.supervision.init_args.label_smoothing == 0.0
    assert (config.learner.part_lr, config.learner.lr) == (None, 0.5)


def test_the_experiments_are_those_of_the_written_design() -> None:
    recipe = {"supervision": {"class_path": "estl.supervision.TSE", "init_args": {"tau_f": 0.9}}}
    found = {}
    for variant in experiments():
        config, _ = parse_recipe(merge(recipe, variant.overlay))
        arguments = config.supervision.init_args
        name = config.supervision.class_path.rpartition(".")[2]
        found[variant.name] = (name, arguments.get("tau_f"), arguments.get("kappa"))
    assert found == {
        "plain": ("MeanCE", None, None),
        "tet": ("TET", None, None),
        "tse": ("TSE", 0.5, 1.0),
        "tse-aggressive": ("TSE", 0.3, 0.5),
        "tse-conservative": ("TSE", 0.7, 2.0),
    }
    assert [variant.name for variant in experiments(["tse", "plain"])] == ["plain", "tse"]
    (hybrid,) = experiments(["tse+tet"])
    parts = parse_recipe(hybrid.overlay)[0].supervision.init_args.supervisions
    assert [p.class_path.rpartition(".")[2] for p in parts] == ["TSE", "TET"]
    assert parts[0].init_args.reduction == "mean"
    with pytest.raises(ValueError, match=r"no experiment 'teT'.*plain, tet"):
        experiments(["teT"])


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_compare_runs_resumes_and_writes_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", *DATA, *STUDENT, "--epochs=1", "--seeds=0,1"]
    words += ["--only=plain,tse", "--robust", f"--output-dir={tmp_path}/compare"]
    assert main(words) == 0
    assert "TSE, tau_f 0.5, kappa 1" in capsys.readouterr().out
    results = json.loads((tmp_path / "compare" / "results.json").read_text())
    assert list(results["runs"]) == ["plain", "tse"]
    assert "TSE(tau_f=0.5" in results["runs"]["tse"][0]["of"]["supervision"]
    run = tmp_path / "compare" / "tse" / "seed1"
    diagnosis = json.loads((run / "diagnostics.json").read_text())
    assert len(diagnosis["erased"]) == len(diagnosis["accuracy"]) == 3
    robust = CheckpointResults.read(run / "robustness.json")
    clean = Results.read(run / "results.json").test
    assert clean is not None
    assert robust.robustness["clean"] == clean["final"].final == robust.test.final
    assert {"clean"} < set(robust.robustness)
    assert "pgd" in (tmp_path / "compare" / "robustness.md").read_text()
    before = (tmp_path / "compare" / "tse" / "seed0" / "last.ckpt").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "compare" / "tse" / "seed0" / "last.ckpt").stat().st_mtime_ns == before
    assert set(results["runs"]) < set(EXPERIMENTS)


@pytest.mark.slow
def test_tune_searches_goes_on_and_never_reads_the_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", *DATA, *STUDENT, "--epochs=2", f"--output-dir={tmp_path}/tune"]
    assert main([*words, "--trials=1"]) == 0
    assert main([*words, "--trials=3"]) == 0  # two more
    assert "best validation accuracy" in capsys.readouterr().out
    trials = json.loads((tmp_path / "tune" / "tune.json").read_text())["trials"]
    assert sorted(trial["trial"] for trial in trials) == [0, 1, 2]
    assert len({trial["tau_f"] for trial in trials}) == 3
    found = Results.read(tmp_path / "tune" / "trial000" / "results.json")
    assert found.test is None
    assert found.val["best_on_validation"].final in [t["accuracy"] for t in trials]
    assert (tmp_path / "tune" / "tune.png").stat().st_size > 5_000


@pytest.mark.slow
def test_a_grid_tries_every_pair_once(tmp_path: Path) -> None:
    words = ["tune", *DATA, *STUDENT, "--epochs=1", f"--output-dir={tmp_path}/grid", "--no-prune"]
    assert main([*words, "--grid-tau-f=0.3,0.6", "--grid-kappa=1"]) == 0
    trials = json.loads((tmp_path / "grid" / "tune.json").read_text())["trials"]
    assert sorted((trial["tau_f"], trial["kappa"]) for trial in trials) == [(0.3, 1.0), (0.6, 1.0)]


def test_half_a_grid_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *DATA, *STUDENT, f"--output-dir={tmp_path}", "--grid-kappa=1"]) == 2
    assert "give --grid-tau-f and --grid-kappa" in capsys.readouterr().err
