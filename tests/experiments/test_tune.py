"""`estl tune` by several processes at once, on a study in SQLite and in PostgreSQL."""

import gc
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from estl.commands import main
from estl.evaluation.accuracy import Accuracy
from estl.experiments import tune as module
from estl.experiments.tune import ByTrial, ended, open_study, tune

pytestmark = pytest.mark.usefixtures("without_compiling")

WORDS = [
    *("tune", "--dataset=digits", "--T=3", "--data.init_args.size=16", "--epochs=1"),
    *("--data.init_args.per_class=4", "--arch=vggsnn-pooled", "--jobs=2", "--trials=4"),
    *("--data.init_args.val_fraction=0.05", "--data.init_args.test_fraction=0.05"),
    "--student.init_args.layers=[8,AP,16]",
]


@pytest.fixture
def postgresql() -> Iterator[str]:
    """URL of a database of a server that this starts, and ends."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install estl[postgresql]")
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), Path(shutil.which("initdb") or "/").parent]
    tools = next((path for path in found if (path / "initdb").exists()), None)
    if tools is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp())  # pytest's own are for one user
    owner = "nobody" if os.getuid() == 0 else None  # it refuses to run as root
    if owner:
        shutil.chown(folder, owner)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    made: list[str | Path] = [
        tools / "initdb",
        "-D",
        data,
        "-U",
        "estl",
        "--auth=trust",
        "--no-sync",
    ]
    subprocess.run(made, user=owner, cwd=folder, check=True, capture_output=True)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control: list[str | Path] = [tools / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    subprocess.run(
        [*control, "-o", options, "start"],
        user=owner,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"postgresql+psycopg://estl@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*control, "-m", "immediate", "stop"],
            user=owner,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_two_processes_share_a_study_in_postgresql(postgresql: str, tmp_path: Path) -> None:
    check(tmp_path / "shared", f"--storage={postgresql}")
    assert not (tmp_path / "shared" / "study.db").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_two_processes_share_a_study_in_sqlite(tmp_path: Path) -> None:
    check(tmp_path / "shared")
    assert (tmp_path / "shared" / "study.db").exists()


def check(folder: Path, *options: str) -> None:
    """Four trials, one more at most if two began the last; both processes had some."""
    words = [*WORDS, f"--output-dir={folder}", *options]
    assert main(words) == 0
    gc.collect()  # a connection that is left open warns then, which fails this test
    trials = json.loads((folder / "tune.json").read_text())["trials"]
    assert len(trials) in (4, 5)
    assert len({(trial["tau_f"], trial["kappa"]) for trial in trials}) == len(trials)
    assert sorted(trial["trial"] for trial in trials) == list(range(len(trials)))
    said = [(folder / f"worker{i}" / "log.txt").read_text().count("complete: {") for i in (0, 1)]
    assert sum(said) == len(trials)
    assert min(said) >= 1
    assert len(list(folder.glob("trial*/results.json"))) == len(trials)


def test_a_trial_has_values_of_its_own_whoever_draws_them() -> None:
    def drawn(studies: list[optuna.Study]) -> list[float]:
        values = []
        for study in studies:
            trial = study.ask()
            values.append(trial.suggest_float("a", 0, 1) + 10 * trial.suggest_float("b", 0, 1))
            study.tell(trial, values[-1])
        return values

    storage = optuna.storages.InMemoryStorage()
    one = optuna.create_study(storage=storage, sampler=ByTrial(0), study_name="a")
    two = optuna.load_study(study_name="a", storage=storage, sampler=ByTrial(0))
    alone = optuna.create_study(sampler=ByTrial(0))
    values = drawn([one, two, one, two])
    assert len(set(values)) == 4
    assert values == drawn([alone] * 4)


def test_a_grid_that_was_interrupted_tries_every_pair_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Path] = []

    def fit(config: Any, *_: object, **__: object) -> Any:
        began.append(Path(config.output_dir))
        if len(began) == 2:
            raise KeyboardInterrupt
        best = {"best_on_validation": Accuracy((0.5,), 10)}
        facts = SimpleNamespace(data=SimpleNamespace(classes=2))
        return tmp_path, SimpleNamespace(val=best, of=facts)

    sizes = SimpleNamespace(sizes={"val": 1})
    rehearsal = SimpleNamespace(parts=SimpleNamespace(data=sizes), seconds=1.0)
    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module, "rehearse", lambda *_: rehearsal)
    monkeypatch.setattr(module, "Report", lambda _: SimpleNamespace(best=0.5))
    grid = {"tau_f": [0.3, 0.5], "kappa": [1.0, 2.0]}
    recipe = {
        "data": {"class_path": "estl.data.Digits"},
        "student": {"class_path": "estl.students.VGGSNN"},
    }
    with open_study(tmp_path / "grid") as study, pytest.raises(KeyboardInterrupt):
        tune(study, recipe, tmp_path, grid=grid)
    with open_study(tmp_path / "grid") as study:
        tune(study, recipe, tmp_path, grid=grid)
        tried = [(t.params["tau_f"], t.params["kappa"]) for t in ended(study)]
        assert sorted(tried) == [(0.3, 1.0), (0.3, 2.0), (0.5, 1.0), (0.5, 2.0)]
        assert len(began) == len(set(began)) == 5
        for other in (None, grid | {"kappa": [1.0]}):
            with pytest.raises(ValueError, match=r"study grid has tried other values of tau_f"):
                tune(study, recipe, tmp_path, grid=other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE alembic_version SET version_num='v0.9.0.a'", "compatible"),
        ("DROP TABLE trials; DROP TABLE studies; CREATE TABLE studies (a)", "no column"),
    ],
)
def test_a_database_of_another_kind_is_one_line(change: str, said: str, tmp_path: Path) -> None:
    with open_study(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.executescript(change)
    refused = pytest.raises(ValueError, match=rf"study\.db cannot be opened.*{said}")
    with refused, open_study(tmp_path):
        pass


def test_a_study_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    refused = pytest.raises(ValueError, match=r"study\.db cannot be written.*no such table")
    with refused, open_study(tmp_path) as study:
        with closing(sqlite3.connect(tmp_path / "study.db")) as database:
            database.execute("DROP TABLE trial_params")
        study.ask().suggest_float("a", 0, 1)


def test_a_cluster_needs_a_storage_for_many_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for storage in ([], [f"--storage=sqlite:///{tmp_path}/x.db"]):
        words = [*WORDS, *storage, f"--output-dir={tmp_path}/a", "--launcher=ray"]
        assert main(words) == 2
        assert "--launcher ray needs a --storage that all" in capsys.readouterr().err
