"""The rungs are what they say, and a sweep runs, resumes and writes its table."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from estl.commands import main
from estl.data.sets.digits import Digits
from estl.evaluation.accuracy import Accuracy
from estl.experiments.ablate import GUIDED, RUNGS, rungs
from estl.experiments.sweep import Variant, keep_recipe, sweep
from estl.experiments.train_teacher import train_teacher
from estl.report.comparison import accuracies, markdown, per_step, write
from estl.report.tables import plus_minus
from estl.supervision.terms import WEIGHTS, WRITTEN, trained_parts
from estl.training.recipe import merge, parse_recipe
from estl.training.results import DataFacts, Provenance, Results

pytestmark = pytest.mark.usefixtures("without_compiling")

RECIPE = {"supervision": {"class_path": GUIDED, "init_args": {"teacher": "t"}}}
DATA = ["--dataset=digits", "--T=3", "--data.init_args.size=16", "--data.init_args.per_class=4"]
STUDENT = ["--arch=vggsnn-pooled", "--student.init_args.layers=[8,AP,16]", "--epochs=1"]
PARTS = {
    "data": {"class_path": "estl.data.Digits", "init_args": {"T": 3, "size": 16, "per_class": 4}},
    "student": {"class_path": "estl.students.VGGSNN", "init_args": {"pooled": True}},
}


BRIDGED = PARTS | {
    "data": merge(PARTS["data"], {"init_args": {"bridge": {"images": "more", "per_step": 7}}}),
    "trainer": {"max_epochs": 3},
}


def test_every_rung_parses_to_its_edges_and_terms() -> None:
    rates = {"part_lr": {"fusion": 0.1, "projector_patches": 0.2}}
    recipe = RECIPE | BRIDGED | {"learner": rates}
    assert [rung.name for rung in rungs(recipe)] == list(RUNGS)
    for rung in rungs(recipe):
        config, _ = parse_recipe(merge(recipe, rung.overlay))
        _, edges, terms, bridge, target = RUNGS[rung.name]
        assert config.trainer.max_epochs == (6 if rung.name in ("6x", "6kx") else 3)
        found = config.data.init_args.bridge
        assert (found is None) == (bridge is None)
        if found is not None:
            assert found.per_step == 7
            assert found.recordings == ("simulated" if rung.name[-1] == "m" else "drawn")
            assert (found.images is None) == (found.augment is not None) == (rung.name[-1] == "j")
        arguments = config.supervision.init_args
        if not terms:
            assert config.supervision.class_path.endswith("TET" if rung.name == "1t" else "MeanCE")
            assert rung.name != "1t" or arguments.lamb == 0
            continue
        assert arguments.each_step == (rung.name in ("2kt", "2bkt"))
        assert arguments.edges == edges
        assert arguments.bridge == ("sobel" if rung.name in ("6s", "2bks") else "rates")
        assert arguments.teacher == "t"
        assert {k for k, w in arguments.weights.items() if w} == set(terms)
        assert all(
            arguments.weights[term] == (WEIGHTS[term] or WRITTEN[term] or 1.0) for term in terms
        )
        assert arguments.target == (target or "fused")
        built = trained_parts(terms, edges, arguments.target)
        assert set(config.learner.part_lr or {}) == built & {"fusion", "projector_patches"}


def test_the_rungs_of_a_recipe_of_the_best_rung_have_their_fusion_and_terms() -> None:
    rates = {"learner": {"part_lr": {"fusion": 0.1, "edge_detector": 0.2}}}
    best = {"target": "pooled", "weights": {"contrastive": 0.0, "logit_distill": 2.0}}
    recipe = merge(RECIPE | BRIDGED | rates, {"supervision": {"init_args": best}})
    found = {rung.name: rung.overlay for rung in rungs(recipe)}
    assert found["2bk"]["learner"]["part_lr"] == {"edge_detector": 0.2}
    assert found["6"]["learner"]["part_lr"] == {"fusion": 0.1, "edge_detector": 0.2}
    arguments = {name: found[name]["supervision"]["init_args"] for name in ("2bk", "5", "6")}
    assert [arguments[name]["target"] for name in arguments] == ["pooled", "fused", "fused"]
    assert arguments["6"]["weights"]["contrastive"] == WRITTEN["contrastive"]
    assert arguments["2bk"]["weights"]["logit_distill"] == 2.0
    assert arguments["2bk"]["weights"]["contrastive"] == 0.0


def test_layers_of_the_student_keep_their_rates_on_every_rung() -> None:
    rates = {"learner": {"part_lr": {"student.head": 0.1, "fusion": 0.2}}}
    for rung in rungs(RECIPE | BRIDGED | rates):
        assert rung.overlay["learner"]["part_lr"]["student.head"] == 0.1


def test_edges_that_the_warm_up_alone_trains_stay_so_on_every_rung() -> None:
    arguments = {"warm_up": 300, "weights": {"edge_events": 0.0}}
    rates = {"learner": {"part_lr": {"edge_detector": 0.2}}}
    recipe = merge(RECIPE | BRIDGED | rates, {"supervision": {"init_args": arguments}})
    found = {rung.name: rung.overlay for rung in rungs(recipe, ["2b", "2bkt", "2bkj", "3", "6"])}
    weights = [overlay["supervision"]["init_args"]["weights"] for overlay in found.values()]
    assert [given["edge_events"] for given in weights] == [0, 0, 0, 0, 0]
    assert found["2bkt"]["learner"]["part_lr"] is None
    assert found["6"]["learner"]["part_lr"] == {"edge_detector": 0.2}


def test_of_jittered_images_no_outputs_of_the_teacher_are_kept() -> None:
    recipe = merge(RECIPE | BRIDGED, {"supervision": {"init_args": {"cache_teacher": True}}})
    kept = {
        rung.name: parse_recipe(merge(recipe, rung.overlay))[0].supervision.init_args.cache_teacher
        for rung in rungs(recipe, ["2k", "2bkt", "2bkj", "6j"])
    }
    assert kept == {"2k": True, "2bkt": True, "2bkj": False, "6j": False}


def test_a_detached_target_is_attached_where_nothing_else_trains_the_fusion() -> None:
    arguments = {"teacher": "t", "detach_target": True}
    recipe: dict[str, Any] = {"supervision": {"class_path": GUIDED, "init_args": arguments}}
    attached = {
        rung.name
        for rung in rungs(recipe)
        if rung.overlay["supervision"].get("init_args", {}).get("detach_target") is False
    }
    assert attached == {"2", "2k", "2kt", "2s", "2w", "3", "4"}
    arguments["weights"] = {"target_cls": 1.0}  # it trains the fusion where there are learned edges
    three = next(rung for rung in rungs(recipe) if rung.name == "3").overlay
    assert three["supervision"]["init_args"]["detach_target"] is True
    assert three["supervision"]["init_args"]["weights"]["target_cls"] == 1.0


def test_each_rung_adds_to_the_one_before() -> None:
    terms = [set(RUNGS[name].terms) for name in ("1", "2", "3", "4", "5", "6")]
    more = [b - a for a, b in pairwise(terms)]
    assert all(a <= b for a, b in pairwise(terms))
    assert more[1:] == [{"edge_events"}, {"edge_align"}, {"contrastive"}, set()]
    assert terms[-1] == set(WEIGHTS) - {"edge_reg", "target_cls", "logit_distill"}
    assert RUNGS["2s"].terms == RUNGS["2"].terms == RUNGS["6x"].terms
    assert RUNGS["2s"].edges == "sobel"
    assert set(RUNGS["2b"].terms) - set(RUNGS["2"].terms) == {"edge_events"}
    assert set(RUNGS["2k"].terms) - set(RUNGS["2"].terms) == {"logit_distill"}
    assert set(RUNGS["2bk"].terms) == set(RUNGS["2b"].terms) | set(RUNGS["2k"].terms)
    assert RUNGS["6kx"].terms == RUNGS["2k"].terms
    assert RUNGS["2kt"][1:] == RUNGS["2k"][1:]
    assert RUNGS["2bkt"][1:] == RUNGS["2bk"][1:]
    for control in ("6s", "6m", "6j"):
        assert RUNGS[control].terms == RUNGS["6"].terms
    for control in ("2bks", "2bkm", "2bkj"):
        assert RUNGS[control].terms == RUNGS["2bk"].terms
        assert RUNGS[control].bridge == RUNGS["6" + control[-1]].bridge


def test_another_supervision_or_rung_is_refused() -> None:
    with pytest.raises(ValueError, match="an ablation needs"):
        rungs({"supervision": {"class_path": "estl.supervision.TSE"}})
    with pytest.raises(ValueError, match="no rung 9"):
        rungs(RECIPE, ["1", "9"])
    with pytest.raises(ValueError, match=r"rung 6 is about the bridge.*data.init_args.bridge"):
        rungs(RECIPE, ["6"])
    with pytest.raises(ValueError, match="6x doubles the epochs"):
        rungs(RECIPE, ["6x"])
    assert [rung.name for rung in rungs(RECIPE)] == [
        "1",
        "1t",
        "2",
        "2k",
        "2kt",
        "2s",
        "2w",
        "3",
        "4",
        "5",
    ]


def test_tables_show_mean_and_standard_deviation_over_seeds() -> None:
    def run(accuracy: float) -> Results:
        found = Accuracy((accuracy / 2, accuracy), 10)
        of = Provenance(
            "estl", 0, DataFacts("Digits", "f", {}), "S", 1, "TSE", {}, "P", 2, None, "2026-01-01"
        )
        test = {"final": found, "best_on_validation": found}
        return Results(of, 1, 3.0, 7, val=test, test=test)

    runs = [run(0.5), run(0.7)]
    assert accuracies(runs, "final") == pytest.approx([50.0, 70.0])
    assert per_step(runs) == pytest.approx([30.0, 60.0])
    assert plus_minus(accuracies(runs, "final")) == "60.00 ± 14.14"
    found = {"a": runs, "b": [run(0.55), run(0.77)]}  # 5 and 7 points above; t(0.975, 1) is 12.706
    text = markdown(found, {"a": "what", "b": "else"}, title="Title", command="estl x")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["a", "what", "60.00 ± 14.14", "", "60.00 ± 14.14", "3", "7"] in rows
    second = ["b", "else", "66.00 ± 15.56", "+6.00 [-6.71, +18.71]", "66.00 ± 15.56", "3", "7"]
    assert second in rows


def test_an_energy_without_some_layers_is_marked_and_a_row_may_have_fewer_steps(
    tmp_path: Path,
) -> None:
    def run(*uncounted: str, T: int = 2) -> Results:
        data = DataFacts("Digits", "f", {})
        of = Provenance("estl", 0, data, "S", 1, "TSE", {}, "P", 2, None, "2026-01-01")
        test = {"final": Accuracy((0.5,) * T, 10)}
        energy = {"energy_uj": 2.0, "cosine": 0.5}
        return Results(of, 1, 3.0, 7, {}, test, energy, uncounted)

    def told(found: dict[str, list[Results]]) -> str:
        return markdown(found, dict.fromkeys(found, "what"), title="Title", command="estl x")

    mixed = [run("mix", "gate"), run("gate", "more")]
    text = told({"a": [run(), run()], "b": mixed, "c": [run("mix"), run("mix")], "d": mixed})
    cells = [[c.strip() for c in line.split("|")] for line in text.splitlines()]
    energies = {row[1]: row[-2] for row in cells if "0.500 ± 0.000" in row}
    marked = "2.000 ± 0.000*"
    assert energies == {"a": "2.000 ± 0.000", "b": marked, "c": marked, "d": marked}
    (line,) = (line for line in text.splitlines() if line.startswith("µJ with *"))
    assert line.endswith("not counted: mix, gate, more (in b, d); mix (in c)")
    text = told({"a": [run()]})
    assert "*" not in text
    assert text.count("\n\n\n") == 0
    found = {"a": [run(T=1)], "b": [run(T=2)]}
    assert "| a | 50.0 |      |\n| b | 50.0 | 50.0 |" in told(found)
    what = {"a": "an odd $", "b": "$x^ and $y_"}  # no formula
    assert told(found) != write(found, what, tmp_path, title="T", command="c")
    assert json.loads((tmp_path / "results.json").read_text())["runs"]["a"][0]["uncounted"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overlay", "text"),
    [
        ({"learner": {"lrr": 3}}, "lrr"),
        ({"learner": {"part_lr": {"fusion": 0.1}}}, "fusion.*no parameter"),
        ({"student": {"init_args": {"layers": [4, *["AP"] * 6]}}}, "too small for 6 poolings"),
    ],
)
def test_a_variant_that_does_not_train_is_known_before_the_first_run(
    overlay: dict[str, Any], text: str, tmp_path: Path
) -> None:
    sound = Variant("sound", "as it is", {})
    with pytest.raises(ValueError, match=rf"^broken \(by the test\) does not train: .*{text}"):
        sweep(PARTS, [sound, Variant("broken", "by the test", overlay)], [0], tmp_path)
    assert not list(tmp_path.glob("*/seed*"))
    with pytest.raises(ValueError, match="seeds are 0, 1, 0: give each once"):
        sweep(PARTS, [sound], [0, 1, 0], tmp_path)
    with pytest.raises(ValueError, match="no seeds"):
        sweep(PARTS, [sound], [], tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_run_that_fails_names_its_log(tmp_path: Path) -> None:
    (tmp_path / "full" / "seed0" / "last.ckpt").mkdir(parents=True)  # no file can be written there
    with pytest.raises(ValueError, match=r"full, seed 0 failed .*log\.txt"):
        sweep(PARTS, [Variant("full", "no room", {})], [0], tmp_path)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    args = ["--data=estl.data.Digits", "--student=estl.students.VGGSNN"]
    recipe = keep_recipe(args, tmp_path)
    assert keep_recipe(args, tmp_path) == recipe
    assert recipe["data"]["class_path"] == "estl.data.Digits"
    other = keep_recipe([*args, "--learner.lr=0.25"], tmp_path)  # it cannot have started a run
    assert keep_recipe(args, tmp_path) != other
    (tmp_path / "full" / "seed0").mkdir(parents=True)
    (tmp_path / "full" / "seed0" / "last.ckpt").touch()
    with pytest.raises(ValueError, match="holds another recipe"):
        keep_recipe([*args, "--learner.lr=0.5"], tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_ladder_runs_writes_its_table_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "image_size": 16,
        "patch": 8,
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "objective": "embedding",
    }
    digits = Digits(T=3, size=16, per_class=4)
    train_teacher(digits, tmp_path / "teacher", tower=small, epochs=1, lr=1e-3)
    words = ["ablate", *DATA, *STUDENT, f"--supervision={GUIDED}", f"--teacher={tmp_path}/teacher"]
    words += ["--rungs=1,5", "--seeds=0", "--jobs=2", f"--output-dir={tmp_path}/ablation"]
    assert main(words) == 0
    assert "contrastive" in capsys.readouterr().out
    results = json.loads((tmp_path / "ablation" / "results.json").read_text())
    assert list(results["runs"]) == ["1", "5"]
    guided = results["runs"]["5"][0]
    assert "EdgeGuidedDistillation" in guided["of"]["supervision"]
    overlay = yaml.safe_load((tmp_path / "ablation" / "1" / "overlay.yaml").read_text())
    assert overlay["supervision"] == {"class_path": "estl.supervision.MeanCE"}
    assert (tmp_path / "ablation" / "results.png").stat().st_size > 10_000
    before = (tmp_path / "ablation" / "5" / "seed0" / "last.ckpt").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "ablation" / "5" / "seed0" / "last.ckpt").stat().st_mtime_ns == before
