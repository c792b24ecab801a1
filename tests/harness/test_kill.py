"""Eight kills of the harness, which makes a thousand: see `tests/harness/kill.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")
def test_runs_that_are_killed_end_as_unbroken_ones() -> None:
    command = [sys.executable, "-m", "tests.harness.kill", "--kills=8"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 kills" in done.stdout
