"""A compiled student trains as the plain one, in processes of their own.

The types of shapes are checked at run time in this process, and the compiler cannot trace that.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

TRAINED = """
import sys, torch
from copy import deepcopy
from lightning import Trainer
from torch.utils.data import DataLoader
from estl.students import VGGSNN
from estl.supervision import TET
from estl.training.learner import Learner
from estl.types import Batch

torch.manual_seed(0)
# The last batch of an epoch is smaller. In float64 sums in another order turn no spike over.
batches = [Batch(torch.rand(n, 3, 2, 8, 8).double(), torch.randint(3, (n,))) for n in (4, 4, 3)]
student = VGGSNN(3, frame_size=(8, 8), layers=(4, "AP", 8)).double()
for choice in ("plain", "compile"):
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    twin = deepcopy(student)
    learner = Learner(twin, TET(), lr=0.01, compile=choice == "compile")
    trainer.fit(learner, DataLoader(batches, batch_size=None))
    torch.save(twin.state_dict(), f"{sys.argv[1]}/{choice}")
    print(choice, torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""

REFUSED = """
from torch import rand
from estl.students import VGGSNN
from estl.training.compiled import compiled

class Printing(VGGSNN):
    def forward(self, events):
        print(events.shape)
        return super().forward(events)

try:
    compiled(Printing(3, frame_size=(8, 8), layers=(4, "AP")))(rand(2, 2, 2, 8, 8))
except ValueError as error:
    print("refused:", error)
"""


def python(code: str, *args: str) -> str:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_a_compiled_student_trains_the_same_from_one_graph(tmp_path: Path) -> None:
    said = python(TRAINED, str(tmp_path))
    assert "plain 0\n" in said
    assert "compile 1\n" in said
    weights = [torch.load(tmp_path / choice) for choice in ("plain", "compile")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_student_that_cannot_be_compiled_whole_is_refused_in_one_line() -> None:
    (line,) = [line for line in python(REFUSED).splitlines() if line.startswith("refused")]
    assert line.startswith("refused: learner.compile: Printing cannot be compiled (")
    assert line.endswith("): leave it out")
