"""A report is whole, says what is missing, flatters nothing, and runs nothing of the data's."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from estl.report.html import SECTIONS, render, write
from estl.report.parts import Figure, Pages, Section
from estl.report.sources import Variant, read_variants
from estl.supervision import TRE, MeanCE
from tests.report.fake_runs import BAD_NAME, write_page, write_run, write_sweep

FILES = ["results.json", "history.csv", "config.yaml", "diagnostics.json", "report.npz"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {"watch/edge_counts": -0.1, "watch/edge_spread": 0.1}
    return write_run(tmp_path_factory.mktemp("runs") / "one", **columns)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep") / "all")


def sections(*paths: Path) -> dict[str, Section]:
    variants = read_variants(paths)
    found = [s for part in SECTIONS if (s := part.section(variants)) is not None]
    return {section.name: section for section in found}


def drawn(*paths: Path) -> dict[str, Figure]:
    parts = [part for section in sections(*paths).values() for part in section.parts]
    return {part.name: part for part in parts if isinstance(part, Figure)}


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
                assert len(frame["data"]) == len(figure["data"])
                go.Figure({"data": frame["data"]})


def test_the_page_is_one_file_that_asks_for_nothing(run: Path, tmp_path: Path) -> None:
    write([run], tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text()
    assert len(page) < 8e6
    own = page.replace(re.findall(r'<script id="library".*?</script>', page)[0], "")
    assert re.findall(r'(?:src|href)="(?!data:|#)', own) == []
    assert "http" not in own
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("half", [False, True])
def test_a_missing_or_half_written_file_is_named(
    run: Path, tmp_path: Path, name: str, half: bool
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    path = folder / name
    if half:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        if name == "history.csv":  # a table that is cut off is a table still
            path.write_bytes(b"")
        if name == "config.yaml":
            path.write_bytes(b"seed: [1,")
    else:
        path.unlink()
    page = render(read_variants([folder]))
    reason = "cannot be read in 1 run(s)" if half else "is missing in 1 run(s)"
    assert f"{name} {reason}" in page
    others = [other for other in FILES if other != name]
    assert not any(f"{other} is missing" in page for other in others)
    assert not any(f"{other} cannot" in page for other in others)


def test_a_table_that_is_cut_off_gives_its_whole_lines(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    text = (folder / "history.csv").read_text()
    (folder / "history.csv").write_text(text[:-20])
    (variant,) = read_variants([folder])
    assert variant.runs[0].history["epoch"].tolist() == [1, 2, 3]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a run folder"):
        read_variants([tmp_path])


def test_text_of_the_data_is_text(run: Path) -> None:
    page = render(read_variants([run]))
    assert "<img src=x" not in page
    ticks = embedded(page)["errors_by_class"]["layout"]["xaxis"]["ticktext"]
    assert ticks[0] == html.escape(
        BAD_NAME, quote=False
    )  # plotly.js unescapes it, and no tag is left
    assert all("<" not in text for text in strings(embedded(page)))


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
        if kind in ("slides", "cka"):
            assert scales == {(0, 1)}
        if kind == "confusion":
            assert scales == {(0, 100)}


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


def test_a_teacher_beside_the_runs_is_none_of_them(sweep: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(sweep, tmp_path / "all")
    (sweep / "teacher").mkdir()
    (sweep / "teacher" / "history.csv").write_text("epoch,train/loss\n1,2.0\n")
    (sweep / "teacher" / "teacher.json").write_text("{}")
    assert [variant.name for variant in read_variants([sweep])] == ["1", "6"]


def test_the_slider_shows_what_is_erased_where_the_map_reaches_the_threshold(run: Path) -> None:
    (variant,) = read_variants([run])
    held = variant.runs[0].collected
    assert held["sample_keep"].shape[1] == 3
    assert not held["sample_keep"].all()
    figure = drawn(run)["slides_one"]
    assert [text.en[:5] for text in figure.steps] == ["t = 1", "t = 2", "t = 3"]
    frame = figure.frames[2]["data"]
    covered = [t for t in frame if t["type"] == "heatmap" and t.get("hoverinfo") == "skip"]
    maps = [t for t in frame if t["type"] == "heatmap" and t["opacity"] == 1.0]
    assert len(covered) == len(maps) == 4
    rows = [0, 2, 5, 7]  # of eight samples
    for row, cover, seen in zip(rows, covered, maps, strict=True):
        dark = np.array([[v is not None for v in line] for line in cover["z"]])
        threshold = held["sample_threshold"][row][1]
        near = np.abs(np.array(seen["z"]) - threshold) < 2e-3  # maps are kept in half precision
        assert ((np.array(seen["z"]) >= threshold) == dark)[~near].all()


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
    parts = sections(folder)["guidance"].parts
    assert parts[0].kind == "note"
    assert parts[0].warning
    assert "inverted" in parts[0].text.en
    (pages,) = (part for part in parts if isinstance(part, Pages))
    assert len(pages.pictures) == 5
    assert [text.en for _, text in pages.pictures][::4] == ["after epoch 1", "after epoch 8"]


def test_tre_shows_channels_and_plain_supervision_shows_where_it_looks(tmp_path: Path) -> None:
    tre = drawn(write_run(tmp_path / "tre", supervision=TRE(theta0=0.3)))
    assert np.nanmax(tre["channels_tre"].data[0]["z"]) > 0
    plain = drawn(write_run(tmp_path / "plain", supervision=MeanCE()))
    assert "channels_plain" not in plain
    assert len(plain["slides_plain"].frames) == 3


def test_runs_of_several_seeds_are_one_variant(tmp_path: Path) -> None:
    write_run(tmp_path / "digits-seed0", 0)
    write_run(tmp_path / "digits-seed1", 1)
    found: list[Variant] = read_variants([tmp_path / "digits-seed0", tmp_path / "digits-seed1"])
    assert [(v.name, [run.seed for run in v.runs]) for v in found] == [("digits", [0, 1])]
