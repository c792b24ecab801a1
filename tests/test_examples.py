"""The examples run, and what they train is better than chance."""

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    return run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.slow
def test_first_steps() -> None:
    assert example("first_steps")() > 0.4  # of ten classes, on 359 digits


@pytest.mark.slow
def test_own_data(tmp_path: Path) -> None:
    # 15 or more of 16 are right by chance in 3 of 10,000 cases.
    assert example("own_data")(tmp_path) >= 15 / 16


@pytest.mark.slow
def test_own_supervision() -> None:
    found = example("own_supervision")()
    assert list(found) == ["rising", "rising and TSE"]
    assert min(found.values()) > 0.4
