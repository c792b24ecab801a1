"""A few thousand inputs of the harness, which takes a million: see `tests/harness/fuzz.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")
def test_parsers_read_damaged_files_or_refuse_them_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    command = [sys.executable, "-m", "tests.harness.fuzz", "--inputs=6000", "--seconds=8"]
    done = subprocess.run(
        [*command, f"--output-dir={tmp_path / 'found'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 kinds of findings" in done.stdout
