"""A report is whole, says what is missing, flatters nothing, and runs nothing of the data's."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from estl.report.html import render, write
from estl.report.parts import Note, Table
from estl.report.sources import Variant, read_run, read_variants
from estl.supervision import TRE, MeanCE
from estl.training.results import CheckpointResults, Results
from tests.report.fake_runs import BAD_NAME, drawn, sections, shown_at, write_page, write_run


def embedded(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script id="figures" type="application/json">(.*?)</script>', page)
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_section_is_there_and_plotly_takes_every_figure(run: Path, sweep: Path) -> None:
    for paths in ([run], [sweep], [run, sweep]):
        page = render(read_variants(paths))
        names = re.findall(r'<section id="(\w+)">', page)
        assert names[:4] == ["overview", "learning", "time", "errors"]
        assert names[-2:] == ["erasing", "data_section"]
        figures = embedded(page)
        assert len(figures) > 12
        for figure in figures.values():
            go.Figure({"data": figure["data"], "layout": figure["layout"]})
            for frame in figure["frames"]:
                assert len(frame["data"]) == len(frame["traces"])
                go.Figure({"data": frame["data"]})


def test_the_page_is_one_file_that_asks_for_nothing(run: Path, tmp_path: Path) -> None:
    write([run], tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text()
    assert len(page) < 8e6
    own = page.replace(re.findall(r'<script id="library".*?</script>', page)[0], "")
    assert re.findall(r'(?:src|href)="(?!data:|#)', own) == []
    assert "http" not in own
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]


@pytest.mark.slow
def test_a_page_is_drawn_without_lightning() -> None:
    """Importing it takes longer than all the rest."""
    code = "import sys, estl.report.html; sys.exit('lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_page_holds_every_picture_once(run: Path) -> None:
    page = render(read_variants([run]))
    pictures = re.findall(r'"(data:image/png;base64,[^"]+)"', page)
    assert len(set(pictures)) == len(pictures) > 20
    held = np.load(run / "report.npz")
    shown = embedded(page)["slides_one"]["data"][0]["source"]  # the first row's events
    packed = base64.b64decode(pictures[int(shown)].partition(",")[2])
    with Image.open(io.BytesIO(packed)) as picture:
        start = drawn(run)["slides_one"].start
        assert np.array_equal(np.asarray(picture), held["most_events"][0, start])


def test_text_of_the_data_is_text(run: Path) -> None:
    page = render(read_variants([run]))
    assert "<img src=x" not in page
    ticks = embedded(page)["errors_by_class"]["layout"]["xaxis"]["ticktext"]
    assert ticks[0] == html.escape(
        BAD_NAME, quote=False
    )  # plotly.js unescapes it, and no tag is left
    assert all("<" not in text.replace("<br>", "") for text in strings(embedded(page)))


def strings(value: Any) -> list[str]:
    """All texts in it but plotly's own templates."""
    if isinstance(value, dict):
        return [s for k, v in value.items() if k != "hovertemplate" for s in strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in strings(v)]
    return [value] if isinstance(value, str) else []


def test_no_interval_touches_the_end_of_its_axis_and_the_caption_says_the_range(
    run: Path, sweep: Path
) -> None:
    seen = 0
    for figure in [*drawn(run).values(), *drawn(sweep).values()]:
        for trace in figure.data:
            bars = trace.get("error_y")
            if not bars:
                continue
            low, high = figure.layout["yaxis"]["range"]
            y = np.array(trace["y"])
            assert low < (y - np.array(bars["arrayminus"])).min()
            assert high > (y + np.array(bars["array"])).max()
            assert f"from {low:.3g} to {high:.3g}" in figure.caption.en
            assert (np.array(bars["array"]) + np.array(bars["arrayminus"])).min() > 0
            seen += 1
    assert seen > 10


def test_maps_that_are_compared_share_a_scale(run: Path, sweep: Path) -> None:
    for figure in [*drawn(run).values(), *drawn(sweep).values()]:
        kind = figure.name.partition("_")[0]
        scales = {
            (trace["zmin"], trace["zmax"])
            for frame in [{"data": figure.data}, *figure.frames]
            for trace in frame["data"]
            if trace["type"] == "heatmap"
        }
        if kind in ("slides", "changes", "cka"):
            assert scales == {(0, 1)}
        if kind == "confusion":
            assert scales == {(0, 100)}


def test_the_axis_of_a_correlation_is_that_of_all_correlations(run: Path, tmp_path: Path) -> None:
    assert drawn(run)["guidance_edges"].layout["yaxis"]["range"] == [-1.02, 1.02]
    for seed in (0, 1):
        write_run(tmp_path / f"guided-seed{seed}", seed, **{"watch/edge_counts": 0.2})
    figure = drawn(*tmp_path.iterdir())["guidance_edge_counts"]
    assert figure.layout["yaxis"]["range"] == [-0.02, 1.02]
    assert "from -0.02 to 1.02" in figure.caption.en


def test_firing_rates_of_variants_share_a_scale(sweep: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(sweep, tmp_path / "all")
    quiet = sweep / "1" / "seed0" / "diagnostics.json"
    held = json.loads(quiet.read_text())
    rates = {name: [r / 3 for r in row] for name, row in held["firing_rate_steps"].items()}
    quiet.write_text(json.dumps(held | {"firing_rate_steps": rates}))
    maps = [f.data[0] for name, f in drawn(sweep).items() if name.startswith("firing_")]
    assert len(maps) == 2
    assert maps[0]["z"] != maps[1]["z"]
    assert len({(trace["zmin"], trace["zmax"]) for trace in maps}) == 1


def test_the_slider_shows_what_is_erased_where_the_map_reaches_the_threshold(run: Path) -> None:
    (variant,) = read_variants([run])
    held = variant.runs[0].collected
    assert held["sample_keep"].shape[1] == 3
    assert not held["sample_keep"].all()
    figure = drawn(run)["slides_one"]
    assert [text.en[:5] for text in figure.steps] == ["t = 1", "t = 2", "t = 3"]
    frame = shown_at(figure, 2)
    covered = [t for t in frame if t["type"] == "heatmap" and t.get("hoverinfo") == "skip"]
    maps = [t for t in frame if t["type"] == "heatmap" and t["colorscale"] == "Viridis"]
    assert len(covered) == len(maps) == 4
    assert "4 samples of the test split of which most would be erased" in figure.caption.en
    for row, (cover, seen) in enumerate(zip(covered, maps, strict=True)):
        dark = np.array([[v is not None for v in line] for line in cover["z"]])
        threshold = held["most_threshold"][row][1]
        near = np.abs(np.array(seen["z"]) - threshold) < 2e-3  # maps are kept in half precision
        assert ((np.array(seen["z"]) >= threshold) == dark)[~near].all()


def test_curves_of_rates_gradients_time_and_memory_are_those_of_the_history(
    run: Path, sweep: Path
) -> None:
    one, many = drawn(run), drawn(sweep)
    assert one["learning_rates"].data[0]["y"] == [0.01] * 4
    assert one["learning_gradients"].data[0]["y"] == [0.5] * 4
    assert one["curve_step"].data[0]["y"] == [0.1] * 4
    gibibytes = [mebibytes / 1024 for mebibytes in (91, 92, 93, 94)]
    assert one["curve_memory"].data[0]["y"] == pytest.approx(gibibytes, rel=1e-4)
    for name in ("curve_lr", "curve_gradient", "curve_step", "curve_memory", "curve_seconds"):
        assert len(many[name].data) == 6  # two seeds and their mean, of two variants
        assert [len(key.traces) for key in many[name].keys] == [3, 3]


def test_weighted_terms_that_variants_share_are_laid_over_each_other(tmp_path: Path) -> None:
    terms = {"train/cls": 1.0, "train/kl": 0.5}
    write_run(tmp_path / "1", **terms)
    write_run(tmp_path / "2", **terms)
    figures = drawn(tmp_path / "1", tmp_path / "2")
    assert [trace["y"] for trace in figures["curve_term_kl"].data] == [[0.5, 1, 1.5, 2]] * 2
    assert {"curve_term_cls", "curve_term_tse"} <= set(figures)
    assert "curve_term_loss" not in figures


def test_one_seed_has_the_interval_of_its_samples_and_no_deviation_of_zero(run: Path) -> None:
    page = render(read_variants([run]))
    assert "± 0.0" not in page
    assert "Wilson" in page


def test_several_runs_are_laid_beside_each_other_in_the_same_color(sweep: Path) -> None:
    variants = read_variants([sweep])
    assert [(v.name, v.what, len(v.runs)) for v in variants] == [
        ("1", "what 1 is", 2),
        ("6", "what 6 is", 2),
    ]
    by_label: dict[str, set[str]] = {}
    for figure in drawn(sweep).values():
        for key in figure.keys:
            by_label.setdefault(key.label.en, set()).add(key.color)
    assert by_label["1: what 1 is"] == {variants[0].color}
    assert by_label["6: what 6 is"] == {variants[1].color}
    assert "against 1" in render(variants)


def test_edges_that_are_none_are_warned_of_on_top_and_pages_have_a_slider(
    run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "guided"))
    for epoch in range(1, 9):
        write_page(folder, epoch)
    found = sections(folder)["guidance"].parts
    assert found[0].kind == "note"
    assert found[0].warning
    assert "inverted" in found[0].text.en
    pages = drawn(folder)["pages_guided"]
    assert [text.en for text in pages.steps][::4] == ["after epoch 1", "after epoch 8"]
    assert len(pages.steps) == len(pages.frames) == 5


def test_pages_of_a_guided_run_have_absolute_scales_that_their_maps_share(
    run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "guided"))
    for epoch in (4, 8):
        write_page(folder, epoch)
    figure = drawn(folder)["pages_guided"]
    titles = [text.en.replace("<br>", " ") for text in figure.texts.values()]
    assert titles == [
        "image", "learned edges", "Sobel", "event counts", "gate", "added to the target",
        "teacher attention", "student attention", "events",
    ]  # fmt: skip
    assert figure.layout["annotations"][-1]["text"] == "1"  # the name of the second row
    held = [np.load(folder / "pictures" / f"epoch_00{epoch}.npz") for epoch in (4, 8)]
    for position, page in enumerate(held):
        by_cell = {trace["xaxis"]: trace for trace in shown_at(figure, position)}
        for row in range(2):
            for k, kind in enumerate(("edges", "sobel", "counts", "gate", "added"), 2):
                trace, top = by_cell[f"x{9 * row + k}"], {"counts": 40, "added": 8}.get(kind, 1)
                assert (trace["zmin"], trace["zmax"]) == (0, 1)
                np.testing.assert_allclose(trace["z"], page[kind][row] / top, atol=1e-3)
            for k, kind in enumerate(("teacher", "student"), 7):
                trace = by_cell[f"x{9 * row + k}"]
                assert (trace["zmin"], trace["zmax"]) == (-2, 2)  # a quarter to four times even
                np.testing.assert_allclose(trace["z"], np.log2(page[kind][row]), atol=2e-3)
                np.testing.assert_allclose(trace["customdata"], page[kind][row], atol=1e-3)
    assert "from 1/4 to 4" in figure.caption.en
    moved = {trace["xaxis"] for trace in figure.frames[0]["data"]}
    assert moved == {"x2", "x6", "x8", "x11", "x15", "x17"}  # edges, what is added, the student
    (folder / "pictures" / "epoch_008.npz").unlink()
    write_page(folder, 4, gate=False)
    assert len(drawn(folder)["pages_guided"].texts) == 7


def test_figures_of_several_seeds_are_of_all_of_them(sweep: Path) -> None:
    figures, (one, _) = drawn(sweep), read_variants([sweep])
    held = [run.collected for run in one.runs]
    told = [run.diagnosis for run in one.runs]
    assert not np.array_equal(held[0]["confidence"], held[1]["confidence"])
    for name, array in (("steps_confidence", "confidence"), ("steps_stopping", "stop_accuracy")):
        wanted = [100 * (a + b) / 2 for a, b in zip(*(h[array] for h in held), strict=True)]
        np.testing.assert_allclose(figures[name].data[0]["y"], wanted, rtol=1e-3)
    count, right = (sum(h[key] for h in held) for key in ("bin_count", "bin_right"))
    bins = [100 * r / n for r, n in zip(right, count, strict=True) if n]
    np.testing.assert_allclose(figures["steps_reliability"].data[1]["y"], bins, rtol=1e-3)
    cka = [[(a + b) / 2 for a, b in zip(*rows, strict=True)] for rows in
           zip(*(t["cka"] for t in told), strict=True)]  # fmt: skip
    np.testing.assert_allclose(figures["cka_1"].data[0]["z"], cka, rtol=1e-3)
    (table,) = (part for part in sections(sweep)["time"].parts if isinstance(part, Table))
    additions = sum(sum(t["acs"].values()) for t in told) / 2
    assert table.rows[0][1].en == f"{additions:,.0f}"
    assert "means over them" in render([one])


def test_seeds_that_are_tested_on_the_same_samples_do_not_multiply_them(sweep: Path) -> None:
    (one, _) = read_variants([sweep])
    matrix = sum(run.collected["confusion"] for run in one.runs)
    bars = drawn(sweep)["errors_by_class"].data[0]["error_y"]
    for k, row in enumerate(matrix):
        n, p = row.sum() // 2, row[k] / row.sum()  # Wilson's interval of n samples, written out
        z = 1.959964
        half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        found = (bars["array"][k] + bars["arrayminus"][k]) / 200
        assert found == pytest.approx(half, rel=1e-3)


def test_energy_is_that_of_the_operations_counted_over_all_seeds(
    sweep: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sweep, tmp_path / "all"))
    additions, full, rows = [], [], {}
    for seed in (0, 1):
        path = folder / "6" / f"seed{seed}" / "diagnostics.json"
        held = json.loads(path.read_text())
        held["acs"] = {name: (seed + 1) * n for name, n in held["acs"].items()}  # seeds differ
        additions.append(sum(held["acs"].values()))
        full.append(sum(held["macs"].values()))
        held["energy_uj_total"] = (0.9 * additions[-1] + 4.6 * full[-1]) * 1e-6
        path.write_text(json.dumps(held))
        dense = held["energy_uj_dense"]
    parts = sections(folder)["time"].parts
    (table,) = (p for p in parts if isinstance(p, Table) and p.head[-1].en == "share of dense")
    for row in table.rows:
        rows[row[0].en] = [cell.en for cell in row[1:]]
    adds, macs = sum(additions) / 2, sum(full) / 2
    spent = (0.9 * adds + 4.6 * macs) * 1e-6  # 45 nm: 0.9 and 4.6 pJ (Horowitz, 2014)
    assert rows["6"][:2] == [f"{adds:,.0f}", f"{macs:,.0f}"]
    assert rows["6"][2:4] == [f"{spent:.3g} µJ", f"{dense:.3g} µJ"]
    assert rows["6"][4] == f"{100 * spent / dense:.1f} %"


def test_a_student_without_spiking_layers_has_a_report_that_says_so(
    run: Path, sweep: Path, tmp_path: Path
) -> None:
    def notes(*paths: Path) -> list[str]:
        return [p.text.en for p in sections(*paths)["time"].parts if isinstance(p, Note)]

    assert not any("No spiking layers" in text for text in notes(run))
    alone, together = tmp_path / "one", tmp_path / "all"
    shutil.copytree(run, alone)
    shutil.copytree(sweep, together)
    for path in (alone / "diagnostics.json", *together.glob("1/*/diagnostics.json")):
        held = json.loads(path.read_text())
        path.write_text(json.dumps(held | {"firing_rate": {}, "firing_rate_steps": {}}))
    assert "No spiking layers: one. There are no firing rates of them." in notes(alone)
    assert "No spiking layers: 1. There are no firing rates of them." in notes(together)
    assert not any(name.startswith(("firing", "steps_layers")) for name in drawn(alone))
    assert [name for name in drawn(together) if name.startswith("firing")] == ["firing_6"]
    for path in together.glob("*/*/diagnostics.json"):  # as of neurons of other frameworks
        path.write_text(json.dumps(json.loads(path.read_text()) | {"firing_rate_steps": {}}))
    assert len(drawn(together)["steps_layers"].data) == 1


def test_an_energy_that_layers_are_missing_from_is_no_total(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "one"))
    path = folder / "diagnostics.json"
    held = json.loads(path.read_text())

    def told() -> tuple[list[str], bool]:
        found = sections(folder)
        warnings = [p.text.en for p in found["time"].parts if isinstance(p, Note) and p.warning]
        tables = [p for p in found["overview"].parts if isinstance(p, Table)]
        cells = [cell.en for table in tables for row in table.rows for cell in row]
        (energy,) = (cell for cell in cells if cell.endswith("µJ"))
        return warnings, energy.startswith("> ")

    assert told() == ([], False)
    path.write_text(json.dumps(held | {"uncounted": ["mix.attention", "gate"]}))
    (warning,), above = told()
    assert warning.endswith("not counted. one: mix.attention, gate")
    assert above
    del held["uncounted"]  # a run of an earlier version
    path.write_text(json.dumps(held))
    assert told() == ([], False)


def test_the_commands_of_a_resumed_run_are_all_told(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "one"))
    path = folder / "results.json"
    held = json.loads(path.read_text())

    def told(**of: Any) -> str:
        path.write_text(json.dumps(held | {"of": held["of"] | {"command": "estl fit a"} | of}))
        tables = [p for p in sections(folder)["overview"].parts if isinstance(p, Table)]
        rows = [row for table in tables for row in table.rows if row[0].en == "command"]
        return "".join(row[1].en for row in rows)

    assert told(resumed=["estl fit b", "estl fit c"]) == "estl fit a; estl fit b; estl fit c"
    del held["of"]["resumed"]  # a run of an earlier version
    assert told() == "estl fit a"


def test_accuracy_under_attack_is_shown_where_it_was_measured(sweep: Path, tmp_path: Path) -> None:
    assert "robustness" not in drawn(sweep)
    folder = Path(shutil.copytree(sweep, tmp_path / "all"))
    for seed, right in ((0, 0.5), (1, 0.25)):
        of = folder / "6" / f"seed{seed}"
        results = Results.read(of / "results.json")
        assert results.test
        measured = CheckpointResults(
            results.of, "last.ckpt", results.test["final"], 0.0314, {"PGD": right, "noise": 0.75}
        )
        (of / "robustness.json").write_text(measured.to_json())
    figure = drawn(folder)["robustness"]
    assert [(trace["x"], trace["y"]) for trace in figure.data] == [(["PGD", "noise"], [37.5, 75])]
    assert figure.data[0]["error_y"]["array"][0] > 9  # at least what Wilson's of 40 samples has
    assert "0.0314" in figure.caption.en


def test_accuracy_under_attack_of_weights_that_were_trained_on_is_not_shown(
    sweep: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sweep / "6" / "seed0", tmp_path / "run"))
    results = Results.read(folder / "results.json")
    assert results.test
    old = replace(results.of, finished="2026-01-01T00:00:00+0000")
    measured = CheckpointResults(old, "last.ckpt", results.test["final"], 0.03, {"PGD": 0.5})
    (folder / "robustness.json").write_text(measured.to_json())
    run = read_run(folder)
    assert run.robustness is None
    assert any("robustness.json" in name for name, _ in run.missing)
    newer = replace(measured, of=results.of)
    (folder / "test.json").write_text(newer.to_json())
    assert read_run(folder).robustness == newer


def test_many_classes_with_long_names_are_shown_and_not_all_are_written(
    run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    held = dict(np.load(run / "report.npz"))
    held["classes"] = np.array([f"a_class_with_a_long_name_{i}" for i in range(101)])
    held["confusion"] = np.eye(101, dtype=int) * 3
    np.savez_compressed(folder / "report.npz", **held)
    figures = drawn(folder)
    assert len(figures["errors_by_class"].layout["xaxis"]["ticktext"]) <= 24
    assert figures["errors_by_class"].data[0]["text"][100] == "a_class_with_a_long_name_100: n = 3"
    assert figures["confusion_run"].data[0]["xgap"] == 0
    for annotation in figures["mistakes_run"].layout["annotations"]:
        assert max(map(len, annotation["text"].split("<br>"))) <= 16


def test_what_was_run_is_said_once_and_by_variant_where_it_differs(
    sweep: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sweep, tmp_path / "all"))
    found = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(found | {"command": "estl ablate --x"}))
    (*_, table) = sections(folder)["overview"].parts
    assert isinstance(table, Table)
    rows: dict[str, list[str]] = {}
    for name, value in table.rows:
        rows.setdefault(name.en, []).append(value.en)
    assert rows["supervision"] == ["1: MeanCE()", "6: TSE(tau_f 0.05)"]
    assert rows["command"] == ["estl ablate --x"]
    assert rows["seeds"] == ["0, 1"]
    assert rows["student and its parameters"][0].startswith("VGGSNN(")
    assert "data of these runs are not the same" not in render(read_variants([folder]))
    for seed in (0, 1):
        of = folder / "6" / f"seed{seed}" / "results.json"
        told = json.loads(of.read_text())
        told["of"]["data"]["fingerprint"] = "another"
        of.write_text(json.dumps(told))
    assert "data of these runs are not the same" in render(read_variants([folder]))


def test_the_share_that_is_erased_is_shown_over_the_training_and_over_the_steps(
    run: Path, sweep: Path
) -> None:
    figures = drawn(run)
    assert figures["erased_training"].data[0]["y"] == [10] * 4
    assert figures["erased_training"].layout["yaxis"]["range"][0] == 0
    told = json.loads((run / "diagnostics.json").read_text())["erased"]
    assert told[0] == 0 < told[2]
    np.testing.assert_allclose(
        figures["erased_steps"].data[0]["y"], 100 * np.array(told), rtol=1e-4
    )
    mean = np.mean(
        [
            json.loads((sweep / "6" / f"seed{seed}" / "diagnostics.json").read_text())["erased"]
            for seed in (0, 1)
        ],
        axis=0,
    )
    np.testing.assert_allclose(drawn(sweep)["erased_steps"].data[0]["y"], 100 * mean, rtol=1e-4)


def test_tre_shows_channels_and_plain_supervision_shows_where_it_looks(tmp_path: Path) -> None:
    tre = drawn(write_run(tmp_path / "tre", supervision=TRE(theta0=0.3)))
    assert np.nanmax(tre["channels_tre"].data[0]["z"]) > 0
    folder = write_run(tmp_path / "plain", supervision=MeanCE())
    plain = drawn(folder)
    assert {"channels_plain", "slides_plain"} & set(plain) == set()
    assert len(plain["changes_plain"].frames) == 3
    assert "Dark is" not in plain["changes_plain"].caption.en
    (folder / "start.npz").unlink()
    assert len(drawn(folder)["slides_plain"].frames) == 3


def test_runs_of_several_seeds_are_one_variant(tmp_path: Path) -> None:
    write_run(tmp_path / "digits-seed0", 0)
    write_run(tmp_path / "digits-seed1", 1)
    found: list[Variant] = read_variants([tmp_path / "digits-seed0", tmp_path / "digits-seed1"])
    assert [(v.name, [run.seed for run in v.runs]) for v in found] == [("digits", [0, 1])]
