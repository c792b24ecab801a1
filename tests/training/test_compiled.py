"""A compiled student trains as the plain one, in processes of their own.

The types of shapes are checked at run time in this process, and the compiler cannot trace that.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

from estl.students import VGGSNN
from estl.supervision import TET
from estl.training.compiled import compiled
from estl.training.learner import Learner
from estl.types import Batch, Output
from tests.forked import start


def trained(words: Sequence[str]) -> int:
    """Train a student as it is, and compiled."""
    torch.manual_seed(0)
    # The last batch of an epoch is smaller. In float64 sums in another order turn no spike over.
    batches = [Batch(torch.rand(n, 2, 2, 8, 8).double(), torch.randint(3, (n,))) for n in (4, 4, 3)]
    student = VGGSNN(3, frame_size=(8, 8), layers=(4, "AP", 8)).double()
    for choice in ("plain", "compile"):
        trainer = Trainer(
            accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        twin = deepcopy(student)
        learner = Learner(twin, TET(), lr=0.01, compile=choice == "compile")
        trainer.fit(learner, DataLoader(batches, batch_size=None))
        torch.save(twin.state_dict(), Path(words[0], choice))
        print(choice, counters["stats"]["unique_graphs"])
    return 0


class Printing(VGGSNN):
    """What it does is no graph."""

    def forward(self, events: Tensor) -> Output:
        print(events.shape)
        return super().forward(events)


def refused(_: Sequence[str]) -> int:
    """Compile what cannot be compiled."""
    try:
        compiled(Printing(3, frame_size=(8, 8), layers=(4, "AP")))(torch.rand(2, 2, 2, 8, 8))
    except ValueError as error:
        print("refused:", error)
    return 0


@pytest.mark.slow
def test_a_compiled_student_trains_the_same_from_one_graph(tmp_path: Path) -> None:
    said = tmp_path / "said"
    process = start([str(tmp_path)], said, said, trained)
    process.join()
    assert process.exitcode == 0, said.read_text()
    assert "plain 0\n" in said.read_text()
    assert "compile 1\n" in said.read_text()
    weights = [torch.load(tmp_path / choice) for choice in ("plain", "compile")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_student_that_cannot_be_compiled_whole_is_refused_in_one_line(tmp_path: Path) -> None:
    said = tmp_path / "said"
    process = start([], said, said, refused)
    process.join()
    assert process.exitcode == 0, said.read_text()
    (line,) = [line for line in said.read_text().splitlines() if line.startswith("refused")]
    assert line.startswith("refused: learner.compile: Printing cannot be compiled (")
    assert line.endswith("): leave it out")
