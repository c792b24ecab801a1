"""A run folder with a missing or half-written file gives a report that says what is missing."""

import re
import shutil
from pathlib import Path

import pytest

from estl.report.html import SECTIONS, render
from estl.report.sources import read_variants
from tests.report.fake_runs import drawn, write_page

FILES = ["results.json", "history.csv", "config.yaml", "diagnostics.json", "report.npz"]


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
    said = f"{name} is not used in 1 run(s)" if half else f"{folder}: {name}. What this holds"
    assert said in page
    others = [other for other in FILES if other != name]
    assert not any(f"{folder}: {other}" in page for other in others)
    assert not any(f"{other} cannot" in page for other in others)


def test_a_recipe_that_is_cut_off_anywhere_costs_nothing_else(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run / "results.json", folder)
    shutil.copy(run / "history.csv", folder)
    text = (run / "config.yaml").read_text()
    for end in range(1, len(text)):
        (folder / "config.yaml").write_text(text[:end])
        variants = read_variants([folder])
        assert [s for part in SECTIONS if (s := part.section(variants)) is not None]
        broken = "config.yaml" in dict(variants[0].runs[0].missing)
        assert broken or text[end - 1] == "\n", text[:end]


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_damaged_archive_is_named(run: Path, tmp_path: Path, place: float) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("report.npz", "start.npz"):
        held = bytearray((folder / name).read_bytes())
        for i in range(int(place * len(held)), int(place * len(held)) + 40):
            held[i] ^= 0xFF
        (folder / name).write_bytes(held)
    page = render(read_variants([folder]))
    named = " ".join(re.findall(r"[\w., ]+ is not used in 1 run\(s\)", page))
    assert "report.npz" in named
    assert "start.npz" in named
    assert '<section id="learning">' in page


def test_a_page_of_pictures_that_is_half_written_is_named_and_the_others_are_shown(
    run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    for epoch in (1, 2, 3):
        write_page(folder, epoch)
    last = folder / "pictures" / "epoch_003.npz"
    last.write_bytes(last.read_bytes()[:-30])
    assert "pictures/epoch_003.npz is not used" in render(read_variants([folder]))
    assert [text.en for text in drawn(folder)["pages_run"].steps] == [
        "after epoch 1",
        "after epoch 2",
    ]


def test_a_run_that_goes_on_says_how_far_it_is(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    lines = (run / "history.csv").read_text().splitlines(keepends=True)
    (folder / "history.csv").write_text("".join(lines[:3]))
    page = render(read_variants([folder]))
    assert "is not finished: this is after epoch 2 of 4." in page
    assert f"{folder}: results.json, diagnostics.json, report.npz. What this holds" in page
    assert "is not finished" not in render(read_variants([run]))


def test_a_table_that_is_cut_off_gives_its_whole_lines(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    text = (folder / "history.csv").read_text()
    (folder / "history.csv").write_text(text[:-20])
    (variant,) = read_variants([folder])
    assert variant.runs[0].history["epoch"].tolist() == [1, 2, 3]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a run folder"):
        read_variants([tmp_path])


def test_a_teacher_beside_the_runs_is_none_of_them(sweep: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(sweep, tmp_path / "all")
    (sweep / "teacher").mkdir()
    (sweep / "teacher" / "history.csv").write_text("epoch,train/loss\n1,2.0\n")
    (sweep / "teacher" / "teacher.json").write_text("{}")
    assert [variant.name for variant in read_variants([sweep])] == ["1", "6"]
