"""A few thousand inputs of the harness, which takes a million: see `tests/harness/fuzz.py`."""

import os
from pathlib import Path

import pytest

from tests.forked import start
from tests.harness import fuzz


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")
def test_parsers_read_damaged_files_or_refuse_them_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    said = tmp_path / "said"
    words = ["--inputs=6000", "--seconds=8", f"--output-dir={tmp_path / 'found'}"]
    harness = start(words, said, said, fuzz.main)
    harness.join()
    assert harness.exitcode == 0, said.read_text()
    assert " 0 kinds of findings" in said.read_text()
