"""A report is whole, says what is missing, flatters nothing, and runs nothing of the data's."""

import base64
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from estl.report.html import render, write
from estl.report.parts import Pages
from estl.report.sources import Variant, read_variants
from estl.supervision import TRE, MeanCE
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


def test_a_page_holds_every_picture_once(run: Path) -> None:
    page = render(read_variants([run]))
    pictures = re.findall(r'"(data:image/png;base64,[^"]+)"', page)
    assert len(set(pictures)) == len(pictures) > 20
    held = np.load(run / "report.npz")
    shown = embedded(page)["slides_one"]["data"][0]["source"]  # the first row's events
    packed = base64.b64decode(pictures[int(shown)].partition(",")[2])
    with Image.open(io.BytesIO(packed)) as picture:
        assert np.array_equal(np.asarray(picture), held["sample_events"][0, 1])


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
    maps = [t for t in frame if t["type"] == "heatmap" and t["opacity"] == 1.0]
    assert len(covered) == len(maps) == 4
    rows = [0, 2, 5, 7]  # of eight samples
    for row, cover, seen in zip(rows, covered, maps, strict=True):
        dark = np.array([[v is not None for v in line] for line in cover["z"]])
        threshold = held["sample_threshold"][row][1]
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
    (pages,) = (part for part in found if isinstance(part, Pages))
    assert len(pages.pictures) == 5
    assert [text.en for _, text in pages.pictures][::4] == ["after epoch 1", "after epoch 8"]


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
