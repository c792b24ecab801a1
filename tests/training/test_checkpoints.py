"""Checkpoints are whole or known to be damaged, and a run folder is continued as what it is."""

import csv
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from estl.data.folders import only_one
from estl.evaluation.accuracy import Accuracy, evaluate
from estl.students import VGGSNN
from estl.training.checkpoint import read_checkpoint
from estl.training.files import aside
from estl.training.history import write as write_history
from estl.training.predict import predict
from estl.training.recipe import build, parse_recipe
from estl.training.results import Results
from estl.training.resume import Aside, kept_recipe, newest_whole, refuse_another, taken
from estl.training.run import fit
from tests.small_runs import Kill, Killed, recipe, same, train

pytestmark = pytest.mark.usefixtures("undrawn")

Damage = Callable[[Path], object]


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_weight(path: Path) -> None:
    """Another bit in the first weight."""
    weight = next(iter(torch.load(path, weights_only=True)["state_dict"].values()))
    content = bytearray(path.read_bytes())
    stored = weight.permute(0, 2, 3, 1).numpy().tobytes()  # channels last, as it lies in memory
    content[content.index(stored)] ^= 4
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # says nothing


def resumed(folder: Path, **changes: Any) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text()) | changes
    fit(*parse_recipe(values), folder, test=False)


def test_a_bit_that_flips_anywhere_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    whole = {"recipe": {"a": 1}, "classes": ["x"], "state_dict": {"w": torch.randn(5, 7)}}
    torch.save(whole, path)
    content = path.read_bytes()
    weights = content.index(whole["state_dict"]["w"].numpy().tobytes())
    record = content.rindex(b"data/0") - len("some/") - 46  # of the weights, in the directory
    bits = [(place, place % 8) for place in range(0, len(content), 3)] + [(record + 38, 4)]
    for place, bit in bits:
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            assert same(read_checkpoint(path), whole), place
            assert not weights <= place < weights + 4 * 35, place
        except ValueError as error:
            assert "some.ckpt is damaged" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
    for length in range(0, len(content), 17):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged"):
            read_checkpoint(path)


def test_a_checkpoint_is_written_beside_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = tmp_path / "run" / "last.ckpt"
    Aside().save_checkpoint({"epoch": 1}, path)
    whole, save = path.read_bytes(), torch.save

    def killed(checkpoint: Any, file: Any) -> None:
        save(checkpoint, file)
        assert path.read_bytes() == whole
        assert not list((tmp_path / "temporary").iterdir())
        raise Killed

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(Killed):
        Aside().save_checkpoint({"epoch": 2}, path)
    assert files(path.parent) == {"last.ckpt": whole}
    with aside(path) as file:
        file.write(b"new")
    assert files(path.parent) == {"last.ckpt": b"new"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_a_run_waits_for_the_end_of_a_file(
    number: signal.Signals, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with aside(tmp_path / "last.ckpt") as file:
            file.write(b"who")
            signal.raise_signal(number)
            file.write(b"le")

    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            write()
        assert files(tmp_path) == {"last.ckpt": b"whole"}
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b""), flip_a_weight])
def test_a_run_goes_on_from_its_newest_whole_checkpoint(
    damage: Damage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    whole = train(recipe() | {"keep_checkpoints": 1}, folder)
    (best,) = folder.glob("best*.ckpt")
    damage(folder / "last.ckpt")
    (folder / "last.ckpt.new").write_bytes(b"half")
    capsys.readouterr()
    resumed(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder / "last.ckpt") in line
    assert f"going on from {best}, after epoch {int(best.stem[-3:])}" in line
    last = read_checkpoint(folder / "last.ckpt")
    assert last["epoch"] == 2
    assert same(last["state_dict"], whole["state_dict"])
    assert same(last["optimizer_states"], whole["optimizer_states"])
    assert not list(folder.glob("*.new"))
    assert list(folder.glob("best*.ckpt")) == [best]


def test_the_last_checkpoints_are_kept_by_the_number_of_their_epoch(tmp_path: Path) -> None:
    for keep, kept in ((1, []), (3, [4, 5]), (2, [5])):
        saver, folder = Aside(keep), tmp_path / str(keep)
        for epoch in range(6):
            saver.save_checkpoint({"epoch": epoch}, folder / "last.ckpt")
        names = [f"epoch-{number:03d}.ckpt" for number in kept]
        assert sorted(files(folder)) == [*names, "last.ckpt"]
        for number, name in zip(kept, names, strict=True):  # counted from 1, and from 0 in the file
            assert torch.load(folder / name, weights_only=True) == {"epoch": number - 1}
    (folder / "epoch-mine.ckpt").touch()
    saver.save_checkpoint({"epoch": 6}, folder / "last.ckpt")
    assert (folder / "epoch-mine.ckpt").exists()


def flip(share: float) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 8
        path.write_bytes(content)

    return damage


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last.ckpt", "epoch-002.ckpt", "config.yaml", "history.csv"])
@pytest.mark.parametrize(
    "damage",
    [cut, lambda path: path.write_bytes(b""), *map(flip, (0.0, 0.3, 0.6, 1.0))],
    ids=["cut", "empty", "first", "third", "middle", "end"],
)
def test_each_file_of_a_run_may_be_damaged(
    name: str,
    damage: Damage,
    stopped_late: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped_late, folder)
    whole = read_checkpoint(folder / "last.ckpt")
    damage(folder / name)
    capsys.readouterr()
    try:
        config = kept_recipe(folder)
        start = newest_whole(folder)
        write_history({"epoch": 4.0}, folder / "history.csv")
    except ValueError as error:
        assert name in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return
    said = capsys.readouterr().err
    assert start is not None
    assert start[1]["epoch"] in (2, 1)
    assert start[1]["epoch"] == 2 or f"{name} is damaged" in said
    assert yaml.safe_load(config.read_text()) == whole["recipe"] or "counts" in said
    assert said or files(folder).keys() == files(stopped_late).keys()
    rows = (folder / "history.csv").read_text().splitlines()
    assert len(rows) == 5 or "of the first 3 epochs" in said


@pytest.fixture(scope="module")
def stopped_late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended after its third epoch of four."""
    folder = tmp_path_factory.mktemp("runs") / "late"
    train(recipe() | {"trainer": {"max_epochs": 4}}, folder, kill=3)
    assert {"epoch-002.ckpt", "last.ckpt"} <= files(folder).keys()
    return folder


@pytest.mark.slow
def test_a_run_without_a_whole_checkpoint_does_not_start_over(tmp_path: Path) -> None:
    train(recipe(), tmp_path)
    for path in tmp_path.glob("*.ckpt"):
        cut(path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="no other whole checkpoint: train again with"):
        resumed(tmp_path)
    assert files(tmp_path) == before
    for path in tmp_path.glob("*.ckpt"):
        path.unlink()
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match="is missing, and"):
        resumed(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "has seed 0, not 1: leave it out"),
        ({"student": {"init_args": {"layers": [8, "AP", 4]}}}, "has student.init_args.layers"),
        ({"student": {"class_path": "estl.students.resnet18", "init_args": {}}}, "has student.cl"),
        ({"data": {"init_args": {"T": 6}}}, "has data.init_args.T 3, not 6"),
        ({"data": {"init_args": {"augment": {"flip": 0.5}}}}, "has data.init_args.augment None"),
        ({"supervision": {"class_path": "estl.supervision.TET"}}, "has supervision.class_path"),
    ],
)
def test_a_run_is_not_continued_as_another(
    changes: dict[str, Any], says: str, stopped: Path
) -> None:
    before = files(stopped)
    values = yaml.safe_load((stopped / "config.yaml").read_text())
    for part, change in changes.items():
        if "class_path" in (change if isinstance(change, dict) else {}):
            values[part] = change
        elif isinstance(change, dict):
            values[part]["init_args"] |= change["init_args"]
        else:
            values[part] = change
    with pytest.raises(ValueError, match=says):
        fit(*parse_recipe(values), stopped, test=False)
    assert files(stopped) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer": "sgd"}, "run has learner.optimizer adamw, not sgd: leave it out"),
        ({"part_lr": {"student.head": 0.1}}, "run has learner.part_lr None, not student.head: l"),
    ],
)
def test_the_state_of_an_optimizer_is_of_its_kind_and_groups(
    changes: dict[str, Any], says: str
) -> None:
    old = {"seed": 0, "learner": {"optimizer": "adamw", "lr": 0.1, "part_lr": None}}
    refuse_another(old, {"seed": 0, "learner": old["learner"] | {"lr": 0.2}}, Path("run"))
    with pytest.raises(ValueError, match=says):
        refuse_another(old, {"seed": 0, "learner": old["learner"] | changes}, Path("run"))


@pytest.mark.slow
def test_a_run_goes_on_with_the_rates_it_is_given_at_its_place_in_the_schedule(
    stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    data = recipe(batch_size=8)["data"]  # five steps an epoch, where there were three
    resumed(folder, learner={"lr": 0.04, "weight_decay": 0.1}, data=data)
    with (folder / "history.csv").open(newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([1e-3, 0.03, 0.01])  # after none, one and two thirds of a cosine
    saved = read_checkpoint(folder / "last.ckpt")
    groups = saved["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}
    assert [group["lr"] for group in groups] == pytest.approx([0.0, 0.0], abs=1e-9)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended after its first epoch."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    train(recipe(), folder, kill=1)
    return folder


@pytest.mark.slow
def test_a_run_in_another_place_knows_which_weights_were_best(
    stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(stopped, folder)
    (best,) = folder.glob("best*.ckpt")
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    (state,) = (s for name, s in saved["callbacks"].items() if name.startswith("Best"))
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(1e9))
    torch.save(saved, folder / "last.ckpt")  # no later weights are as good as these
    before = files(stopped)
    resumed(folder)
    assert list(folder.glob("best*.ckpt")) == [best]
    states = read_checkpoint(folder / "last.ckpt")["callbacks"]
    assert {s["dirpath"] for s in states.values() if "dirpath" in s} == {str(folder)}
    assert Results.read(folder / "results.json").val["best_on_validation"] == evaluated(best)
    assert files(stopped) == before


@pytest.mark.slow
def test_a_run_that_ends_before_it_is_validated_has_results(tmp_path: Path) -> None:
    steps = {"max_steps": 4, "check_val_every_n_epoch": 5}
    train(recipe() | {"trainer": steps}, tmp_path)
    found = Results.read(tmp_path / "results.json").val
    assert found == {"final": evaluated(tmp_path / "last.ckpt")}
    assert not list(tmp_path.glob("best*"))


@pytest.mark.slow
def test_a_run_of_so_many_steps_is_continued_bit_for_bit(tmp_path: Path) -> None:
    values = recipe() | {"trainer": {"max_steps": 9}}  # three epochs
    whole = train(values, tmp_path / "whole")
    train(values, tmp_path / "broken", kill=1)
    resumed(tmp_path / "broken")
    saved = read_checkpoint(tmp_path / "broken" / "last.ckpt")
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert same(saved[key], whole[key]), key


@pytest.mark.slow
def test_a_run_that_ended_within_an_epoch_goes_on_from_the_epoch_before(tmp_path: Path) -> None:
    steps = {"max_steps": 5, "check_val_every_n_epoch": 5}  # three an epoch
    train(recipe() | {"trainer": steps}, tmp_path)
    resumed(tmp_path, trainer={"max_steps": 6, "check_val_every_n_epoch": 5})
    saved = read_checkpoint(tmp_path / "last.ckpt")
    assert (saved["epoch"], saved["global_step"]) == (1, 6)
    assert [path.name for path in tmp_path.glob("best*")] == ["best-002.ckpt"]  # the last


def evaluated(path: Path) -> Accuracy:
    """On the validation split of small runs."""
    saved = read_checkpoint(path)
    parts = build(*parse_recipe(saved["recipe"]))
    parts.student.load_state_dict(saved["state_dict"])
    return evaluate(parts.student, parts.data.loader("val"), torch.device("cpu"))


@pytest.mark.slow
def test_where_nothing_would_be_trained_nothing_is_written(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    train(recipe(), folder)
    before = files(folder)
    for changes, says in (
        ({}, "is finished, after 3 epochs: train on with --epochs above 3, or test it with"),
        ({"learner": {"lr": 0.03}}, "for all its 3 epochs with learner.lr 0.001, not 0.03: le"),
        ({"trainer": {"max_epochs": 2}}, "has 3 epochs behind it, more than --epochs 2: give"),
    ):
        with pytest.raises(ValueError, match=says):
            resumed(folder, **changes)
        assert files(folder) == before
    resumed(folder, trainer={"max_epochs": 4}, learner={"lr": 0.01})
    assert read_checkpoint(folder / "last.ckpt")["epoch"] == 3
    (folder / "results.json").write_text('{"epochs": 3')  # as if it had not come to its test
    resumed(folder)
    found = (folder / "results.json").read_bytes()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    resumed(folder)
    assert Results.read(folder / "results.json").val == Results.from_json(found).val


@pytest.mark.slow
def test_a_run_has_its_folder_to_itself(tmp_path: Path) -> None:
    said: list[str] = []

    class Second(Callback):
        """Another process asks for the folder."""

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            done = subprocess.run([*ONLY_ONE, tmp_path], capture_output=True, text=True)
            said.extend(done.stderr.strip().splitlines()[-1:])

    config, given = parse_recipe(recipe() | {"output_dir": str(tmp_path)})
    fit(config, given, callbacks=[Second()], test=False)
    (line,) = said
    assert f"{tmp_path}: another process writes there: wait" in line
    with only_one(tmp_path):  # it is free again
        pass


ONLY_ONE = (
    *(sys.executable, "-c"),
    "import os, sys, time; from pathlib import Path; from estl.data.folders import only_one\n"
    "with only_one(Path(sys.argv[1])):\n"
    "    if forked := os.fork():\n"
    "        print(forked, flush=True)\n"
    "    time.sleep(60)",
)
"""A process that holds a folder, and its fork, whose number the parent prints, for a minute."""


def test_the_lock_of_a_folder_ends_with_its_process_and_not_with_those_forked_from_it(
    tmp_path: Path,
) -> None:
    with subprocess.Popen([*ONLY_ONE, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        forked = int(holder.stdout.readline())
        with pytest.raises(ValueError, match="another process writes there"), only_one(tmp_path):
            pass
        holder.kill()
        holder.wait()
        os.kill(forked, 0)  # that one is there
        with only_one(tmp_path):
            pass
        os.kill(forked, signal.SIGKILL)


def test_a_file_system_without_locks_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with only_one(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


@pytest.mark.slow
def test_a_run_is_not_continued_on_other_data(tmp_path: Path) -> None:
    from estl.data.sets.digits import Digits
    from estl.data.shards import write_shards

    write_shards(Digits(T=3, size=16, per_class=4), tmp_path / "old", shard_size=32)
    train(recipe(root=str(tmp_path / "old")), tmp_path / "run", kill=1)
    shutil.move(tmp_path / "old", tmp_path / "moved")
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    write_shards(Digits(T=3, size=16, per_class=5), tmp_path / "old", shard_size=32)
    before = files(tmp_path / "run")
    with pytest.raises(ValueError, match="was trained on other data"):
        fit(*parse_recipe(values), tmp_path / "run", test=False)
    assert files(tmp_path / "run") == before
    values["data"]["init_args"] |= {"root": str(tmp_path / "moved"), "num_workers": 1}
    assert fit(*parse_recipe(values), tmp_path / "run", test=False) is not None


@pytest.mark.slow
def test_a_folder_is_taken_from_its_first_checkpoint_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    config, given = parse_recipe(recipe() | {"output_dir": str(folder)})
    with pytest.raises(Killed):
        fit(config, given, callbacks=[Kill(0)], test=False)
    assert not taken(folder)
    resumed(folder)
    assert "no checkpoint yet: starting from the beginning" in capsys.readouterr().err
    assert taken(folder)
    with pytest.raises(ValueError, match="already holds a run"):
        fit(config, given, test=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"learner": {"lr": -1.0}}, "lr"), ({"trainer": {"accelerator": "cuda"}}, "accelerator cuda")],
)
def test_a_run_that_cannot_start_leaves_nothing(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    if "cuda" in says and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    values = recipe() | changes | {"output_dir": str(tmp_path / "run")}
    with pytest.raises(ValueError, match=says):
        fit(*parse_recipe(values), test=False)
    assert not (tmp_path / "run").exists()


STUDENT = {
    "class_path": "estl.students.VGGSNN",
    "init_args": {"layers": [4, "AP"], "frame_size": [8, 8]},
}


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("state_dict", None, "holds no state_dict"),
        ("state_dict", {1: torch.ones(1)}, "a name in it is no text"),
        ("state_dict", {"a": 1}, "does not give its student back"),
        ("classes", None, "holds no classes"),
        ("classes", [1], "a name in it is no text"),
        ("student", None, "its recipe has no student"),
        ("student", {"class_path": "estl.students.NoSuch"}, r"names estl\.students\.NoSuch"),
        ("student", STUDENT | {"init_args": {"layers": "x"}}, "does not give its student back"),
        ("student", STUDENT | {"dict_kwargs": {"a": 1}}, "does not give its student back"),
        ("student", STUDENT | {"init_args": [1]}, "init_args are no arguments"),
        ("data", None, "its recipe has no data"),
        ("data", {"class_path": "estl.students.VGGSNN"}, "has no function read"),
    ],
)
def test_a_malformed_checkpoint_gets_one_line(
    part: str, value: Any, says: str, tmp_path: Path
) -> None:
    data = {"class_path": "estl.data.NMNISTPairs", "init_args": {"T": 3}}
    state = VGGSNN(layers=(4, "AP"), frame_size=(8, 8)).state_dict()
    recipe = {"seed": 0, "student": STUDENT, "data": data}
    saved = {"recipe": recipe, "state_dict": state, "classes": ["0"]}
    (recipe if part in recipe else saved)[part] = value
    path = tmp_path / "malformed.ckpt"
    torch.save(saved, path)
    with pytest.raises(ValueError, match=says) as raised:
        list(predict(path, [tmp_path / "x.bin"]))
    assert "\n" not in str(raised.value)
