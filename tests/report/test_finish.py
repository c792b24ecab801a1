"""What a run leaves for a person at its end, and what it must not lose for that."""

import html
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from estl.commands import main
from estl.data import check
from estl.data.module import ItemData
from estl.data.sets.digits import Digits
from estl.evaluation.accuracy import Accuracy
from estl.evaluation.diagnostics import diagnose
from estl.report import paper
from estl.report.collect import Collector
from estl.report.html import sections_of
from estl.report.parts import Figure
from estl.report.run import finish
from estl.report.sources import COLORS, read_variants
from estl.supervision import TSE, Sum
from estl.supervision.tse import tse_keep
from estl.types import Batch, Output
from tests.report.fake_runs import DEVICE, parts, write_page, write_run, write_sweep


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
    everything = run.student(torch.cat([b.events for b in batches]))
    keep = tse_keep(everything.features, everything.classify, label, tau_f=0.05, kappa=1.0)
    gone = (~keep).flatten(1).sum(1).sort(descending=True).values[:4].tolist()
    assert gone[-1] > 0
    assert (~held["most_keep"]).sum((1, 2, 3)).tolist() == gone
    counts = sum(b.events.sum().item() for b in batches)
    assert held["events_rate"].sum() * len(label) == pytest.approx(counts)
    assert held["balance_test"].sum() == len(label)


@pytest.mark.slow
def test_a_run_compares_the_files_of_its_splits_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []

    def looks(data: ItemData) -> list[check.Group]:
        looked.append(data)
        return [check.Group("image", (check.Member("train", item), check.Member("train", item)))]

    item = Digits(T=3, size=16, per_class=2).splits["train"][0]
    monkeypatch.setattr(check, "repeated", looks)
    small = ["--data.init_args.per_class=2", "--data.init_args.size=16", "--T=3"]
    trained = ["--student.init_args.layers=[4,AP]", "--epochs=1"]
    command = ["fit", "--config", "digits_tse", *small, *trained, "--output-dir"]
    assert main([*command, str(tmp_path / "run")]) == 0
    assert len(looked) == 1
    told = json.loads(str(np.load(tmp_path / "run" / "report.npz")["check"]))
    assert told["found"]["twice"][0] == 1


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


def test_a_figure_for_a_paper_says_its_axes_and_has_no_title(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(paper.STYLE, "svg.fonttype", "none")  # letters stay letters
    monkeypatch.delitem(paper.WIDTHS, "column")
    found = sections_of(read_variants([write_run(tmp_path / "run")]))
    sections = [section for section in found if section.name in ("learning", "time")]
    paper.write(sections, tmp_path)
    figures = [part for s in sections for part in s.parts if isinstance(part, Figure)]
    for figure in figures:
        if sum(key.startswith("xaxis") for key in figure.layout) > 1:
            continue
        stem = re.sub(r"[^\w+-]+", "-", figure.name)
        said = re.findall(r"<text[^>]*>([^<]*)<", (tmp_path / f"{stem}-page.svg").read_text())
        words = {re.sub(r" \(.*\)$", "", text).strip() for text in said}
        titles = [title.en for title in figure.texts.values()]
        keys = [key.label.en for key in figure.keys]
        known = {html.escape(text, quote=False) for text in titles + keys}
        assert {word for word in words if re.search("[a-z]{2}", word)} <= known, figure.name
        assert known & words, figure.name


def test_maps_for_a_paper_have_the_color_bars_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(paper.STYLE, "svg.fonttype", "none")
    monkeypatch.delitem(paper.WIDTHS, "column")
    folder = write_run(tmp_path / "run")
    for epoch in (1, 2):
        write_page(folder, epoch)
    found = sections_of(read_variants([folder]))
    with_maps = ("data_section", "erasing", "guidance")
    paper.write([section for section in found if section.name in with_maps], tmp_path)
    said = {
        stem: re.findall(r"<text[^>]*>([^<]*)<", (tmp_path / f"{stem}-page.svg").read_text())
        for stem in ("slides_run", "pages_run", "data_samples")
    }
    assert {"0.0", "1.0"} <= set(said["slides_run"])
    assert {"0.0", "1.0", "1/4", "1", "4"} <= set(said["pages_run"])  # times even attention
    assert "1.0" not in said["data_samples"]  # pictures have none


def lab(color: str, sees: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of a color as somebody sees it, by a matrix on linear RGB."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(sees @ linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sees", ["all", "protanopia", "deuteranopia"])
def test_the_color_blind_tell_the_colors_of_six_variants_apart(sees: str) -> None:
    # Machado, Oliveira and Fernandes (2009), severity 1.
    matrices = {
        "all": np.eye(3),
        "protanopia": np.array(
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ]
        ),
        "deuteranopia": np.array(
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ]
        ),
    }
    seen = [lab(color, matrices[sees]) for color in COLORS[:6]]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 10  # 2.3 is a just noticeable difference


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
        if len(written) == 4:  # what a run writes last
            shutil.copy(whole / "report.npz", folder)
        assert len(written) < 9

    monkeypatch.setattr("time.sleep", train)
    assert main(["watch", str(folder), "--every", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert written[0] == written[1] < written[2] < written[3] < written[4]
    assert "errors_by_class" in (folder / "report.html").read_text()


def test_a_sweep_is_watched_until_its_own_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = write_sweep(tmp_path / "whole", seeds=1), tmp_path / "sweep"
    folder.mkdir()
    looks = 0

    def train(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:  # nothing had begun at the first look
            assert list(folder.iterdir()) == []
            (folder / "1" / "seed0").mkdir(parents=True)
            shutil.copy(whole / "1" / "seed0" / "history.csv", folder / "1" / "seed0")
        if looks == 2:  # all runs that are there have ended, and the sweep has not
            shutil.copytree(whole / "1", folder / "1", dirs_exist_ok=True)
        if looks == 4:
            shutil.copytree(whole / "6", folder / "6")
        if looks == 5:
            (folder / "results.md").touch()
            (folder / "results.json").write_text((whole / "results.json").read_text())
        assert looks < 9

    monkeypatch.setattr("time.sleep", train)
    assert main(["watch", str(folder)]) == 0
    assert looks == 6
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert '"6: what 6 is"' in (folder / "report.html").read_text()


def test_only_a_folder_can_be_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err


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
