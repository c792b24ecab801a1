"""Run folders that tests read, and copy before they change them."""

from pathlib import Path

import pytest

from tests.report.fake_runs import write_run, write_sweep


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {"watch/edge_counts": -0.1, "watch/edge_spread": 0.1}
    return write_run(tmp_path_factory.mktemp("runs") / "one", **columns)


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep") / "all")
