"""`estl compare` and `estl tune`: what they run, how they go on, what they write."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from estl.commands import main
from estl.commands.flags import TrainingFlags
from estl.experiments.compare import EXPERIMENTS, experiments
from estl.experiments.sweep import Variant, keep_recipe, sweep
from estl.training.recipe import merge, parse_recipe
from estl.training.results import CheckpointResults, DataFacts, Provenance, Results

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


def test_layers_of_the_student_keep_their_rates_in_every_row(tmp_path: Path) -> None:
    recipe = {"learner": {"part_lr": {"student.head": 0.1, "fusion": 0.2}}}
    (tmp_path / "mine.yaml").write_text("supervision: {class_path: estl.supervision.TSE}")
    for row in experiments(["plain", "tse", str(tmp_path / "mine.yaml")], recipe):
        assert row.overlay["learner"]["part_lr"] == {"student.head": 0.1}


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


def test_a_file_is_a_row_that_lies_over_the_recipe(tmp_path: Path) -> None:
    own = tmp_path / "my-loss.v2.yaml"
    own.write_text(
        "supervision: {class_path: estl.supervision.TSE, init_args: {tau_f: 0.4}}\n"
        "#\n## steps | by their $T$: half\n# more\n"
        "learner: {part_lr: {kappa: 0.1}}\nstudent: {init_args: {pooled: true}}\n"
    )
    other = tmp_path / "other.yml"
    other.write_text("supervision: estl.supervision.TET\n")
    first, row, last = experiments([str(own), "plain", str(other)])  # files come last
    assert (first.name, row.name, last.name) == ("plain", "my-loss.v2", "other")
    assert row.what == "steps | by their $T$: half"
    assert last.what == "estl.supervision.TET"
    recipe = {
        "student": {"class_path": "estl.students.VGGSNN", "init_args": {"layers": [4, "AP"]}},
        "learner": {"lr": 0.5, "part_lr": {"fusion": 0.1}},
    }
    config, _ = parse_recipe(merge(recipe, row.overlay))
    assert config.supervision.init_args.tau_f == 0.4
    assert (config.learner.lr, config.learner.part_lr) == (0.5, {"kappa": 0.1})
    assert (config.student.init_args.layers, config.student.init_args.pooled) == ([4, "AP"], True)
    assert parse_recipe(merge(recipe, last.overlay))[0].learner.part_lr is None
    assert [variant.name for variant in experiments([str(other)])] == ["other"]


TSE = "supervision: {class_path: estl.supervision.TSE}\n"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("none.yaml", None, r"none.yaml cannot be read \(No such file or directory\): give a YAML"),
        ("list.yaml", "[1]", "list.yaml holds no keys of a recipe"),
        ("empty.yaml", "# nothing yet\n", "empty.yaml holds no keys of a recipe"),
        ("torn.yaml", f"{TSE}a: [", "torn.yaml is not valid YAML at line 2"),
        ("day.yaml", f"{TSE}day: 2001-99-99", "day.yaml is not valid YAML"),
        ("tse.yaml", TSE, "tse is an experiment already: rename the file"),
        ("my loss.yaml", TSE, "would be 'my loss': rename the file"),
        ("_mine.yaml", TSE, "would be '_mine'"),
        ("a|b.yml", TSE, "would be 'a|b'"),
        (".yaml", TSE, "would be '.yaml'"),
        (
            "wide.yaml",
            "student: {init_args: {dim: 9}}",
            "wide.yaml chooses no supervision, and the",
        ),
        ("half.yaml", "supervision: {init_args: {tau_f: 0.1}}", "half.yaml chooses no supervision"),
        ("seeded.yaml", f"{TSE}seed: 3", "seeded.yaml has seed, which a sweep gives to each run"),
        ("bare.yaml", f"{TSE}learner:\n", "bare.yaml has learner, but no value for it"),
    ],
)
def test_a_file_that_is_no_row_is_refused_in_one_line(
    name: str, text: str | None, told: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"^[^\n]*{told}[^\n]*$"):
        experiments([str(path)])


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "mine.yaml", tmp_path / "b" / "mine.yml"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(TSE)
    with pytest.raises(ValueError, match=r"b/mine\.yml: a second row mine: rename it"):
        experiments([str(path) for path in paths])


def test_a_row_that_has_changed_since_its_runs_is_refused(tmp_path: Path) -> None:
    spec = {"class_path": "estl.supervision.TSE", "init_args": {"tau_f": 0.001}}
    row = Variant("mine", "what", {"supervision": spec})
    changed = Variant("mine", "what", {"supervision": spec | {"init_args": {"tau_f": 0.002}}})
    run = tmp_path / "mine" / "seed0"
    run.mkdir(parents=True)
    for variant in (changed, row):  # it has no runs yet
        with pytest.raises(ValueError, match="does not train: option 'nokey'"):
            sweep({"nokey": 1}, [variant], [0], tmp_path)
    (run / "last.ckpt").touch()
    with pytest.raises(ValueError, match="does not train: option 'nokey'"):  # it is the same
        sweep({"nokey": 1}, [row], [0], tmp_path)
    overlay = tmp_path / "mine" / "overlay.yaml"
    before = overlay.read_text()
    with pytest.raises(ValueError, match=r"mine/overlay\.yaml holds another mine, with which"):
        sweep({"nokey": 1}, [Variant("sound", "what", {}), changed], [0], tmp_path)
    assert overlay.read_text() == before
    assert not (tmp_path / "sound").exists()


def test_a_full_disk_leaves_rows_and_recipe_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    row = Variant("mine", "what", {"learner": {"lr": 0.5}})
    with pytest.raises(ValueError, match="'nokey'"):
        sweep({"nokey": 1}, [row], [0], tmp_path)
    overlay = tmp_path / "mine" / "overlay.yaml"
    before = overlay.read_text()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"overlay\.yaml cannot be written \(No space left"):
        sweep({"nokey": 1}, [row], [0], tmp_path)
    with pytest.raises(OSError, match=r"recipe\.yaml cannot be written \(No space left"):
        keep_recipe(["--data=estl.data.Digits", "--student=estl.students.VGGSNN"], tmp_path)
    assert overlay.read_text() == before
    assert not (tmp_path / "recipe.yaml").exists()


def test_rows_of_other_recordings_are_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = iter("aab")
    tried = "estl.experiments.sweep._tried"
    monkeypatch.setattr(tried, lambda config, given: (1.0, next(prints)))
    rows = [Variant(name, "what", {}) for name in ("one", "two", "three")]
    with pytest.raises(ValueError, match=r"three \(what\) .* recordings are not those of one"):
        sweep({}, rows, [0], tmp_path)
    assert not list(tmp_path.glob("*/seed*"))
    (done := tmp_path / "one" / "seed0").mkdir()  # to which the last row is added
    data = DataFacts("Digits", "a", {})
    of = Provenance("estl", 0, data, "S", 1, "TSE", {}, "P", 2, None, "2026-01-01")
    (done / "results.json").write_text(Results(of, 1, 3.0, 7, {}).to_json())
    prints = iter("b")
    with pytest.raises(ValueError, match=r"three \(what\) .* recordings are not those of one"):
        sweep({}, [rows[0], rows[2]], [0], tmp_path)
    assert not list(tmp_path.glob("three/seed*"))


OWN = """
from torch import Tensor, nn
from torch.nn import functional as F
from estl import VGGSNN, Batch, Loss, Output, Supervision

class Mixed(VGGSNN):  # with a layer that no energy counts
    def __init__(self, classes: int = 10, in_channels: int = 2) -> None:
        super().__init__(classes, in_channels, layers=[4, "AP"], pooled=True)
        self.mix = nn.Bilinear(1, 1, 1)

    def forward(self, events: Tensor) -> Output:
        self.mix(events.new_ones(1, 1), events.new_ones(1, 1))
        return super().forward(events)

class Last(Supervision):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}"

    def forward(self, output: Output, batch: Batch) -> Loss:
        loss = self.scale * F.cross_entropy(output.logits[:, -1], batch.label)
        return Loss(loss, {"last": loss})
"""


@pytest.mark.slow
def test_a_supervision_of_ones_own_is_a_row_of_table_robustness_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "losses_of_mine.py").write_text(OWN)
    file = tmp_path / "last.yaml"
    spec = "supervision: {class_path: losses_of_mine.Last, init_args: {scale: %s}}\n"
    spec += "student: {class_path: losses_of_mine.Mixed}\n"
    file.write_text("# the last step | alone, $ and $x_\n" + spec % 2e-1)
    monkeypatch.chdir(tmp_path)  # where the processes of the runs find the module
    monkeypatch.syspath_prepend(tmp_path)
    words = ["compare", *DATA, *STUDENT, "--epochs=1", "--seeds=0", "--output-dir=out"]
    assert main([*words, "--only=last.yaml", "--robust"]) == 0
    out = capsys.readouterr().out
    assert r"| the last step \| alone, $ and $x_ " in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (run,) = results["runs"]["last"]
    assert run["of"]["supervision"] == "Last(scale=0.2)"
    assert run["uncounted"] == ["mix"]
    assert "these layers have weights and are not counted: mix (in last)" in out
    assert "| last " in (tmp_path / "out" / "robustness.md").read_text()
    assert "last: the last step | alone, $ and $x_" in (tmp_path / "out/report.html").read_text()
    file.write_text(spec % 3e-1)
    assert main([*words, "--only=last.yaml"]) == 2
    assert "out/last/overlay.yaml holds another last" in capsys.readouterr().err


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
    old = replace(robust, of=replace(robust.of, finished="2026-01-01T00:00:00+0000"))
    (run / "robustness.json").write_text(replace(old, robustness={"clean": -1.0}).to_json())
    before = (tmp_path / "compare" / "tse" / "seed0" / "last.ckpt").stat().st_mtime_ns
    assert main(words) == 0
    again = CheckpointResults.read(run / "robustness.json")  # of before the run had ended
    assert again.robustness == robust.robustness
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
