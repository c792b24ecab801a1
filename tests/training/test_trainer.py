"""Loggers and callbacks of a recipe reach the trainer."""

import csv
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from estl.commands import main
from estl.training import trainer
from estl.training.recipe import parse_recipe
from estl.training.run import fit
from estl.training.trainer import make_logger
from tests.small_runs import recipe, train

COUNTS = """
from lightning import Callback

class Counts(Callback):
    def __init__(self, path: str, start: int = 0) -> None:
        self.path, self.n = path, start

    def on_train_batch_end(self, *args) -> None:
        self.n += 1

    def on_train_end(self, *args) -> None:
        with open(self.path, "w") as file:
            print(self.n, file=file)
"""

STOP = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/rank", "mode": "max", "stopping_threshold": -1.0},
}
"""Stops after the first epoch."""


def with_trainer(**options: Any) -> dict[str, Any]:
    values = recipe()
    return values | {"trainer": values["trainer"] | options}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_callbacks_of_a_recipe_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(COUNTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test's folder
    options = {"path": str(tmp_path / "counted"), "start": 100}
    own = {"class_path": "mine.Counts", "init_args": options}
    train(with_trainer(callbacks=[own, STOP]), tmp_path / "run")
    assert (tmp_path / "counted").read_text() == "103\n"  # three batches of one epoch
    assert [row["epoch"] for row in rows(tmp_path / "run/history.csv")] == ["1"]
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["trainer"]
    assert saved["callbacks"][0] == own
    train({"seed": 0} | with_trainer(callbacks=[own]), tmp_path / "whole")
    assert (tmp_path / "counted").read_text() == "109\n"


def test_what_is_no_callback_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--dataset=digits", "--arch=vggsnn", "--dry-run"]
    assert main([*words, "--trainer.callbacks=estl.data.Digits"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not correspond to a subclass of Callback" in line
    assert main([*words, "--logger=mlflow"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'tensorboard', 'csv', 'wandb'" in line


@pytest.mark.slow
def test_metrics_are_written_as_csv_and_a_resumed_run_keeps_them(tmp_path: Path) -> None:
    values = with_trainer(logger="csv", log_every_n_steps=1)
    train(values, tmp_path, kill=2)
    first = (tmp_path / "csv/metrics.csv").read_text()
    config, given = parse_recipe(values | {"output_dir": str(tmp_path)})
    fit(config, given, tmp_path, test=False)
    assert (tmp_path / "csv/metrics.csv").read_text() == first
    epochs = [
        row["epoch"]
        for name in ("csv", "csv-2")
        for row in rows(tmp_path / name / "metrics.csv")
        if row["train/acc"]
    ]
    assert epochs == ["0", "1", "2"]
    assert not (tmp_path / "tensorboard").exists()


def test_wandb_that_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs wandb: pip install 'estl\[wandb\]'$"):
        make_logger("wandb", Path("run"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="no wandb: pip install 'estl[wandb]'")
@pytest.mark.filterwarnings("default")
def test_wandb_writes_into_the_run_folder_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    train(with_trainer(logger="wandb", log_every_n_steps=1), tmp_path)
    wandb.finish()
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/acc" in written.read_bytes()
