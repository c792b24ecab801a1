"""The race is fair, bounds are what they say, and the transcriptions compute the same."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from estl.experiments.bench import bench, guided, scans, students
from estl.experiments.bench.comparisons import COMPARISONS, RECIPE
from estl.experiments.bench.race import Bound, Comparison, Timed, Work, race
from estl.neurons import LIF
from estl.students import VGGSNN


def test_candidates_take_turns_in_an_order_that_alternates() -> None:
    called: list[str] = []
    candidates = {name: (lambda name=name: lambda: called.append(name)) for name in "ab"}
    timed = race(candidates, rounds=3)
    assert called == list("abbaabba")
    assert {name: len(seconds) for name, seconds in timed.wall.items()} == {"a": 3, "b": 3}


def test_what_is_not_installed_is_left_out_and_named() -> None:
    def absent() -> Work:
        raise ImportError(name="no_such_framework")

    timed = race({"ours": lambda: lambda: None, "theirs": absent}, rounds=1)
    assert timed.absent == {"theirs": "no_such_framework is not installed"}
    assert timed.ratio("ours", "theirs") is None
    with pytest.raises(ValueError, match="rounds=0"):
        race({}, rounds=0)


def test_a_bound_that_does_not_hold_is_named_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"a": lambda: lambda: sum(range(100_000)), "b": lambda: lambda: None}
    bounds = (Bound("a", "b", 1.5), Bound("b", "a", 0.5))
    monkeypatch.setitem(COMPARISONS, "odd", Comparison("odd", "a sum", slow, bounds))
    (result,) = bench.bench(["odd"], rounds=3, threads=1, folder=tmp_path)
    (line,) = result.broken
    assert line.startswith("odd: a takes ")
    text = (tmp_path / "bench.md").read_text()
    assert text.count("**does not hold**") == 1
    assert text.count(": holds") == 1
    found = json.loads((tmp_path / "bench.json").read_text())
    assert len(found["found"]["odd"]["seconds"]["a"]) == 3
    assert "torch" in found["machine"]["versions"]


def test_a_bound_on_memory_is_of_what_was_measured_and_silent_where_nothing_was() -> None:
    bounds = (Bound("a", "b", 0.5, memory=True), Bound("b", "a", 3.0, memory=True))
    odd = Comparison("odd", "a sum", {}, bounds, memory=True)
    timed = Timed({"a": [1.0], "b": [9.0]}, {"a": [1.0], "b": [9.0]}, {})
    result = bench.Result(odd, timed, {"a": 30.0, "b": 40.0})
    assert result.broken == ["odd: memory of a takes 0.75 of b, at most 0.50"]
    assert "* memory of b over a: 1.33, at most 3.00: holds" in result.markdown()
    silent = bench.Result(odd, timed, {"a": None, "b": 40.0})
    assert silent.broken == []
    assert "memory of" not in silent.markdown()


def test_a_bound_on_growth_is_of_the_difference_of_what_was_measured() -> None:
    since = ("a at 1", "b at 1")
    bounds = (Bound("a at 9", "b at 9", 0.5, memory=True, since=since),)
    odd = Comparison("odd", "a sum", {}, bounds, memory=True)
    timed = Timed({"a at 1": [1.0]}, {"a at 1": [1.0]}, {})
    memory = {"a at 1": 10.0, "a at 9": 19.0, "b at 1": 20.0, "b at 9": 32.0}
    line = "odd: growth of memory from a at 1 to a at 9 takes 0.75 of b at 9, at most 0.50"
    assert bench.Result(odd, timed, memory).broken == [line]
    assert bench.Result(odd, timed, memory | {"b at 1": None}).broken == []


def test_unknown_comparisons_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no comparison fast: choose from lif, ") as error:
        bench.bench(["fast"], rounds=1, threads=1, folder=None)
    assert "\n" not in str(error.value)


def test_a_ratio_is_the_median_over_rounds() -> None:
    timed = Timed({"a": [2.0, 2.0, 90.0], "b": [1.0, 4.0, 1.0]}, {}, {})
    assert timed.ratio("a", "b") == 2.0


def test_the_floor_has_the_students_convolutions_and_nothing_else() -> None:
    student = VGGSNN(frame_size=(34, 34), layers=RECIPE)
    whole = sum(
        p.numel() for m in student.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()
    )
    bare = students.floor(student)
    assert not any(isinstance(m, LIF | nn.BatchNorm2d) for m in bare.modules())
    assert sum(p.numel() for p in bare.layers.parameters()) == whole


def test_peers_compute_what_estl_computes() -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    pytest.importorskip("snntorch", reason="snnTorch is not installed")
    x = torch.randn(4, 3, 5)
    spikes = scans.own(fused=False)(x)
    for peer in (scans.spikingjelly(), scans.snntorch()):
        assert torch.equal(peer(x), spikes)


@pytest.mark.slow
def test_a_live_student_exports_and_a_peer_answer_the_same() -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    for name in ("live", "exported"):
        first, *others = (make()() for make in COMPARISONS[name].candidates.values())
        for answer in others:
            torch.testing.assert_close(answer, first, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", guided.KINDS)
def test_a_guided_step_of_each_kind_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = guided.SIZES["recipe"].tower | {"num_hidden_layers": 1}
    small = guided.SIZES["recipe"]._replace(frames=(4, 2, 34), tower=tower)
    monkeypatch.setitem(guided.SIZES, "recipe", small)
    guided.step("recipe", kind)()
