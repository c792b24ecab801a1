"""Eight kills of the harness, which makes a thousand: see `tests/harness/kill.py`."""

import os
from pathlib import Path

import pytest

from tests.forked import start
from tests.harness import kill


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")
def test_runs_that_are_killed_end_as_unbroken_ones(tmp_path: Path) -> None:
    said = tmp_path / "said"
    harness = start(["--kills=8"], said, said, kill.main)
    harness.join()
    assert harness.exitcode == 0, said.read_text()
    assert "8 kills" in said.read_text()
