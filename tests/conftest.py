"""What all tests share: shape checks, the seed, and where the shared data are."""

import json
import os
from pathlib import Path
from typing import Any

from jaxtyping import install_import_hook

# Shapes and types in the annotations are checked at every call while the tests run. Not in
# `neurons.fused` (torch.compile traces it) and not in `training.learner` (Lightning introspects).
CHECKED = ["types", "neurons.lif", "students", "supervision", "guidance", "data", "evaluation"]
install_import_hook([f"estl.{name}" for name in CHECKED], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

SHARED = Path(os.environ.get("ESTL_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden figures and real recordings."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED}: set ESTL_SHARED to the folder with golden/ and data/")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, Any]:
    """The figures that must come out."""
    figures: dict[str, Any] = json.loads((shared / "golden" / "golden.json").read_text())
    return figures
