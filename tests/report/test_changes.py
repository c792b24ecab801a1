"""What training changed, and what the data are checked for."""

import html
import json
import shutil
from pathlib import Path

import numpy as np

from estl.data.module import ItemData
from estl.report.collect import findings
from estl.report.drawing import VEIL
from estl.report.html import render
from estl.report.parts import Figure, Note, Table
from estl.report.sources import read_variants
from estl.supervision import MeanCE
from tests.report.fake_runs import BAD_NAME, drawn, parts, sections, shown_at, write_run


def activations(figure: Figure, t: int, column: int, columns: int) -> list[np.ndarray]:
    """The maps over pictures in one column of step t, from the first row on."""
    cells = {f"x{row * columns + column}".removesuffix("1" if row * columns + column == 1 else "")
             for row in range(4)}  # fmt: skip
    return [
        np.array(trace["z"])
        for trace in shown_at(figure, t)
        if trace["type"] == "heatmap" and trace["colorscale"] == VEIL and trace["xaxis"] in cells
    ]


def test_the_same_samples_are_shown_before_training_after_it_and_under_plain_supervision(
    tmp_path: Path,
) -> None:
    tse = write_run(tmp_path / "tse")
    alone = drawn(tse)["changes_tse"]
    kinds = ["events", "erased<br>before", "erased<br>after", "class<br>before", "class<br>after"]
    assert [text.en for text in alone.texts.values()] == kinds
    plain = write_run(tmp_path / "plain", seed=1, supervision=MeanCE())
    figures = drawn(tse, plain)
    beside = figures["changes_tse"]
    assert [text.en for text in beside.texts.values()] == [*kinds, "class<br>plain"]
    assert "Plain: the final weights of plain." in beside.caption.en
    assert [text.en for text in figures["changes_plain"].texts.values()][1:] == kinds[3:]
    rows = [0, 2, 5, 7]  # of eight samples
    for t in range(3):
        for column, folder, name in ((4, tse, "start"), (5, tse, "report"), (6, plain, "report")):
            held = np.load(folder / f"{name}.npz")["sample_activation"][rows, t]
            shown = activations(beside, t, column, 6)
            np.testing.assert_allclose(shown, held, atol=1e-3)
    before, after = (activations(beside, 2, column, 6) for column in (4, 5))
    assert np.abs(np.subtract(before, after)).max() > 0.01


def test_a_plain_run_of_other_samples_is_not_put_beside(tmp_path: Path) -> None:
    tse = write_run(tmp_path / "tse")
    plain = write_run(tmp_path / "plain", supervision=MeanCE())
    held = dict(np.load(plain / "report.npz"))
    held["sample_events"] = held["sample_events"][:, ::-1]  # the same steps in another order
    np.savez_compressed(plain / "report.npz", **held)
    shown = drawn(tse, plain)["changes_tse"].texts.values()
    assert "class<br>plain" not in [text.en for text in shown]
    (tse / "start.npz").unlink()
    assert "changes_tse" not in drawn(tse, plain)


def test_what_the_check_of_the_data_found_is_told_and_what_is_wrong_is_warned_of(
    run: Path, tmp_path: Path
) -> None:
    shown = sections(run)["data_section"].parts
    (found,) = (part for part in shown if isinstance(part, Table))
    data = parts().data
    assert isinstance(data, ItemData)
    items = [len(split) for split in data.splits.values()]
    assert max(items) > 20
    assert {row[0].en: row[1].en for row in found.rows} == {
        "items that were decoded": f"{sum(min(20, n) for n in items)} / {sum(items)}",
        "splits that lack something": "0",
        "recordings without their image": "0",
        "images without a recording (not used)": "0",
        "recordings that lie deeper than <class>/<name> (not used)": "0",
        "recordings that labels.csv does not name (not used)": "0",
        "folders without a recording (no classes)": "0",
        "unreadable items": "0",
        "leaks, the same in two splits": "0",
        "the same twice in one split": "0",
        "near duplicates across splits, to look at": "0",
    }
    assert not any(isinstance(part, Note) for part in shown)

    held = dict(np.load(run / "report.npz"))
    leaking = parts()
    assert isinstance(leaking.data, ItemData)
    splits = leaking.data.splits
    leaking.data.splits = dict(splits) | {"test": [*splits["test"], splits["train"][0]]}
    facts = json.loads(str(findings(leaking)["check"]))
    facts["found"]["unreadable"] = [5, *([f"{BAD_NAME}: not whole"] * 3)]
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    np.savez_compressed(folder / "report.npz", **(held | {"check": json.dumps(facts)}))
    warning, *_, table = sections(folder)["data_section"].parts
    assert isinstance(table, Table)
    assert isinstance(warning, Note)
    assert warning.warning
    cells = {row[0].en: row[1].en for row in table.rows}
    assert cells["leaks, the same in two splits"].startswith("1: name: train item ")
    assert cells["unreadable items"].endswith("; …")
    page = render(read_variants([folder]))
    assert "<img src=x" not in page
    assert html.escape(f"{BAD_NAME}: not whole", quote=False) in page
