"""The rungs are what they say, and a sweep runs, resumes and writes its table."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from estl.commands import main
from estl.data.sets.digits import Digits
from estl.experiments.ablate import GUIDED, RUNGS, rungs
from estl.experiments.sweep import Variant, rows, sweep
from estl.experiments.train_teacher import teach
from estl.supervision.distillation import WEIGHTS
from estl.training.recipe import parse

RECIPE = {"supervision": {"class_path": GUIDED, "init_args": {"teacher": "t"}}}
DATA = ["--dataset=digits", "--T=3", "--data.init_args.size=16", "--data.init_args.per_class=4"]
STUDENT = ["--arch=vggsnn-pooled", "--student.init_args.layers=[8,AP,16]", "--epochs=1"]


def test_every_rung_parses_to_its_edges_and_terms(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(RECIPE | {"learner": {"part_lr": {"fusion": 0.1}}}))
    for rung in rungs(RECIPE):
        config, _ = parse(["--config", str(path), *DATA, *STUDENT, *rung.words])
        _, edges, terms = RUNGS[rung.name]
        if not terms:
            assert config.supervision.class_path.endswith("MeanCE")
            continue
        arguments = config.supervision.init_args
        assert arguments.edges == edges
        assert arguments.teacher == "t"
        assert {k for k, w in arguments.weights.items() if w} == set(terms)
        assert all(arguments.weights[term] == WEIGHTS[term] for term in terms)
        assert (config.learner.part_lr is None) == (edges != "learned")


def test_a_detached_target_is_attached_where_nothing_else_trains_the_fusion() -> None:
    arguments = {"teacher": "t", "detach_target": True}
    recipe = {"supervision": {"class_path": GUIDED, "init_args": arguments}}
    attached = "--supervision.init_args.detach_target=false"
    assert {rung.name for rung in rungs(recipe) if attached in rung.words} == {"2s", "3"}


def test_each_rung_adds_to_the_one_before() -> None:
    terms = [set(RUNGS[name][2]) for name in ("1", "2", "3", "4", "5")]
    assert all(a < b for a, b in pairwise(terms))
    assert terms[-1] == set(WEIGHTS)
    assert RUNGS["2s"][2] == RUNGS["2"][2]


def test_another_supervision_or_rung_is_refused() -> None:
    with pytest.raises(ValueError, match="ladder needs"):
        rungs({"supervision": {"class_path": "estl.supervision.TSE"}})
    with pytest.raises(ValueError, match="no rung 9"):
        rungs(RECIPE, ["1", "9"])


def test_rows_are_mean_and_standard_deviation_over_seeds() -> None:
    def run(accuracy: float) -> dict[str, object]:
        test = {w: {"accuracy": accuracy, "per_step": [accuracy]} for w in
                ("final", "best_on_validation")}  # fmt: skip
        return {"test": test, "train_seconds": 3.0, "peak_memory_mib": 7}

    (row,) = rows({"a": [run(0.5), run(0.7)]})
    assert row["final"] == pytest.approx((60.0, 2**0.5 * 10))
    assert row["per_step"][0] == pytest.approx((60.0, 2**0.5 * 10))
    assert (row["seconds"], row["memory"]) == (3.0, 7)


@pytest.mark.slow
def test_a_run_that_fails_names_its_log(tmp_path: Path) -> None:
    broken = Variant("broken", "unknown key", ("--learner.lrr=3",))
    with pytest.raises(ValueError, match=r"log\.txt.*lrr"):
        sweep([*DATA, *STUDENT], [broken], [0], tmp_path)
    with pytest.raises(ValueError, match="no seeds"):
        sweep([*DATA, *STUDENT], [broken], [], tmp_path)


@pytest.mark.slow
def test_a_ladder_runs_writes_its_table_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"image_size": 16, "patch": 8, "dim": 16, "depth": 1, "heads": 2}
    teach(Digits(T=3, size=16, per_class=4), tmp_path / "teacher", tower=small, epochs=1)
    words = ["ladder", *DATA, *STUDENT, f"--supervision={GUIDED}", f"--teacher={tmp_path}/teacher"]
    words += ["--rungs=1,5", "--seeds=0", "--jobs=2", f"--output-dir={tmp_path}/ladder"]
    assert main(words) == 0
    assert "all terms" in capsys.readouterr().out
    results = json.loads((tmp_path / "ladder" / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["1", "5"]
    guided = results["runs"]["5"][0]
    assert "EdgeGuidedDistillation" in guided["supervision"]
    assert (tmp_path / "ladder" / "results.png").stat().st_size > 10_000
    before = (tmp_path / "ladder" / "5" / "seed0" / "last.ckpt").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "ladder" / "5" / "seed0" / "last.ckpt").stat().st_mtime_ns == before
