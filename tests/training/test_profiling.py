"""Where the time of a step goes: parts that add up, each counted once."""

from itertools import count
from pathlib import Path

import pytest

from estl.students import VGGSNN
from estl.supervision import TET, TSE, Sum
from estl.training import profiling
from estl.training.learner import Learner
from estl.training.profiling import Clock, profiled
from estl.training.recipe import parse_recipe


def test_a_part_within_another_counts_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(Learner(VGGSNN(), TET()))
    ticks = iter([0.0, 1.0, 4.0, 4.5, 5.5, 10.0])
    monkeypatch.setattr(profiling, "_now", lambda: next(ticks))
    clock.begin("losses")
    for _ in range(2):
        clock.begin("teacher")
        clock.end()
    clock.end()
    assert clock.step == {"teacher": 4.0, "losses": 6.0}


def test_every_part_of_a_step_is_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(profiling, "_now", lambda: float(next(ticks)))
    clock = Clock(learner := Learner(VGGSNN(), Sum([TET(), TSE()])))
    for method in (clock.on_train_batch_end, clock.on_train_batch_start):
        if method == clock.on_train_batch_end:
            clock.begin("optimizer, logging")
        method()
    assert clock.steps == [{"optimizer, logging": 1.0}]
    assert clock.step == {"data": 1.0}
    assert learner.student.forward is not type(learner.student).forward
    clock.on_train_batch_start()
    clock.on_train_batch_end()  # gradients are accumulated: there is no step of the optimizer
    assert len(clock.steps) == 2


@pytest.mark.slow
def test_a_run_is_profiled_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {
        "data": {
            "class_path": "estl.data.Digits",
            "init_args": {"T": 2, "size": 16, "per_class": 4, "batch_size": 12},
        },
        "student": {"class_path": "estl.students.VGGSNN", "init_args": {"layers": [8, "AP", 16]}},
        "trainer": {"max_epochs": 7},
    }
    found = profiled(*parse_recipe(recipe), steps=6)  # 4 an epoch
    assert set(found) == {"data", "student", "losses", "backward", "optimizer, logging"}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(seconds > 0 for seconds in found.values())
    assert not list(tmp_path.iterdir())
