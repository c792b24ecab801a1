"""What a run leaves for a person at its end, and what it must not lose for that."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from estl.commands import main
from estl.evaluation.accuracy import Accuracy
from estl.evaluation.diagnostics import diagnose
from estl.report import paper
from estl.report.collect import Collector
from estl.report.html import sections_of
from estl.report.run import finish
from estl.report.sources import read_variants
from estl.supervision import TSE, Sum
from estl.supervision.tse import tse_keep
from estl.types import Batch, Output
from tests.report.fake_runs import DEVICE, parts, write_run


def test_what_is_collected_is_what_the_network_says() -> None:
    run, collector = parts(Sum([TSE(tau_f=0.05)])), Collector(samples=4, mistakes=3)
    batches = list(run.data.loader("test"))
    diagnose(run.student, batches, DEVICE, run.supervision, lambda o, b: collector(run, o, b))
    held = collector.arrays()
    logits = torch.cat([run.student(b.events).logits for b in batches]).mean(1)
    label = torch.cat([b.label for b in batches])
    confidence, predicted = logits.softmax(-1).max(-1)
    pairs = Counter(zip(label.tolist(), predicted.tolist(), strict=True))
    assert {(i, j): n for (i, j), n in np.ndenumerate(held["confusion"]) if n} == pairs
    wrong = confidence[predicted != label].sort(descending=True).values[:3]
    np.testing.assert_allclose(held["mistake_confidence"], wrong.detach(), rtol=1e-5)
    assert held["sample_label"].tolist() == [0, 3, 6, 9]
    for k, wanted in enumerate([0, 3, 6, 9]):
        at = label.tolist().index(wanted)
        events = torch.cat([b.events for b in batches])[at : at + 1]
        output = run.student(events)
        keep = tse_keep(
            output.features, output.classify, torch.tensor([wanted]), tau_f=0.05, kappa=1.0
        )
        assert torch.equal(torch.from_numpy(held["sample_keep"][k]), keep[0])
        assert ((held["sample_events"][k] < 255).any(-1) == events[0].sum(1).bool().numpy()).all()
    counts = sum(b.events.sum().item() for b in batches)
    assert held["events_rate"].sum() * len(label) == pytest.approx(counts)
    assert held["balance_test"].sum() == len(label)


def test_an_error_while_collecting_or_drawing_costs_the_report_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "report.npz").unlink()
    run, collector = parts(), Collector()
    batch = next(iter(run.data.loader("test")))
    output = run.student(batch.events)
    broken = Output(output.logits[..., :0], output.features, output.classify, output.class_token)
    collector(run, broken, Batch(batch.events, batch.label))
    assert finish(folder, collector) is None
    assert f"once more with estl report {folder}" in capsys.readouterr().err
    assert finish(folder) == folder / "report.html"
    assert finish(tmp_path / "none") is None
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_figures_for_a_paper_have_its_widths_and_bring_their_letters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, figures = write_run(tmp_path / "run"), tmp_path / "figures"
    assert main(["report", str(folder), "--figures", str(figures)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    stems = {path.name.rpartition("-")[0] for path in figures.iterdir()}
    assert {"steps_accuracy", "slides_run", "confusion_run", "data_events"} <= stems
    assert len(list(figures.iterdir())) == 4 * len(stems)
    for kind, width in paper.WIDTHS.items():
        with Image.open(figures / f"steps_accuracy-{kind}.png") as picture:
            assert picture.width == round(300 * width)
        drawn = (figures / f"steps_accuracy-{kind}.svg").read_text()
        assert f'width="{72 * width:g}pt"' in drawn
        assert "<text" not in drawn  # letters are outlines: no font is asked for
        assert read_variants([folder])[0].color.lower() in drawn


def test_a_run_that_goes_on_is_reported_after_each_epoch_until_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = write_run(tmp_path / "whole"), tmp_path / "run"
    folder.mkdir()
    lines = (whole / "history.csv").read_text().splitlines(keepends=True)
    (folder / "history.csv").write_text("".join(lines[:2]))
    written: list[int] = []

    def train(_: float) -> None:
        written.append((folder / "report.html").stat().st_mtime_ns)
        if len(written) == 2:  # nothing had happened at the first look
            (folder / "history.csv").write_text("".join(lines))
        if len(written) == 3:
            (folder / "results.json").write_text((whole / "results.json").read_text())

    monkeypatch.setattr("time.sleep", train)
    assert main(["watch", str(folder), "--every", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert written[0] == written[1] < written[2] < (folder / "report.html").stat().st_mtime_ns


def test_the_command_refuses_a_folder_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_what_was_collected_has_its_other_sections(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "report.npz").unlink()
    found = [section.name for section in sections_of(read_variants([folder]))]
    assert found == ["overview", "learning", "time", "erasing"]
    accuracy = read_variants([folder])[0].accuracies()[0]
    assert isinstance(accuracy, Accuracy)
