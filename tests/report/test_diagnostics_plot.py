"""The picture of a diagnosis."""

from pathlib import Path

import pytest
import torch

from estl.evaluation.diagnostics import diagnose
from estl.report.diagnostics import plot
from estl.students import Spikformer
from estl.types import Batch


@pytest.mark.slow
def test_the_plot_is_a_picture_also_where_cka_is_undefined(tmp_path: Path) -> None:
    batches = [Batch(torch.poisson(torch.ones(B, 3, 2, 8, 8)), torch.arange(B) % 3) for B in (5, 2)]
    student = Spikformer(3, 2, dim=16, depth=1, heads=2, scale=1.0)
    found = diagnose(student, batches, torch.device("cpu"))
    found["cka"][0][1] = None
    plot(found, tmp_path / "diagnosis.png")
    assert (tmp_path / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
