"""What `history.csv` and the screen say of each epoch is what happened in it."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from estl.students import VGGSNN
from estl.supervision import TSE
from estl.training.history import History, parts, write
from estl.training.learner import Learner
from estl.training.rates import cosine
from estl.training.results import peak_memory
from estl.types import Batch, Output

SIZES = (4, 4, 2)  # of the batches: the last one is shorter


def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [
        Batch(torch.rand(n, 2, 2, 8, 8, generator=draw), torch.randint(0, 3, (n,), generator=draw))
        for n in SIZES
    ]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Counting(Learner):
    """Counts, by a loop, what the student predicts right in each batch, and keeps the losses."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.right: dict[bool, list[int]] = {True: [], False: []}
        self.losses: list[float] = []
        self.student.register_forward_hook(self.count)

    def count(self, student: VGGSNN, given: tuple[torch.Tensor], output: Output) -> None:
        (batch,) = (batch for batch in batches() if torch.equal(batch.events, given[0]))
        found = 0
        for steps, label in zip(output.logits.tolist(), batch.label.tolist(), strict=True):
            scores = [sum(step[k] for step in steps) for k in range(3)]
            found += scores.index(max(scores)) == label
        self.right[student.training].append(found)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss


def tiny() -> VGGSNN:
    return VGGSNN(classes=3, in_channels=2, frame_size=(8, 8), layers=(4, "AP"), pooled=True)


@pytest.mark.slow
def test_every_epoch_has_its_own_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = Counting(tiny(), TSE(), lr=0.05)
    right, losses = learner.right, learner.losses
    trainer = Trainer(
        max_epochs=3,
        check_val_every_n_epoch=2,
        num_sanity_val_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
        callbacks=[History(tmp_path)],
    )
    data: DataLoader[Batch] = DataLoader(batches(), batch_size=None)
    trainer.fit(learner, data, data)

    rows = read(tmp_path)
    assert list(rows[0]) == [
        *("epoch", "train/tse", "watch/erased", "watch/erased_everywhere", "gradient/student"),
        "train/loss",
        *("train/acc", "val/acc", "lr", "seconds", "step_seconds", "memory_mib"),
    ]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for n, row in enumerate(rows):
        steps = slice(3 * n, 3 * n + 3)
        assert float(row["train/acc"]) == pytest.approx(sum(right[True][steps]) / 10)
        mean = sum(x * size for x, size in zip(losses[steps], SIZES, strict=True)) / 10
        assert float(row["train/loss"]) == pytest.approx(mean, rel=1e-5)
        assert row["train/tse"] == row["train/loss"]
        assert float(row["lr"]) == pytest.approx(0.05 * cosine(3 * n, 9, 0), rel=1e-5)
        assert 0 < 3 * float(row["step_seconds"]) <= float(row["seconds"]) < 60
        assert float(row["memory_mib"]) == pytest.approx(peak_memory(), rel=0.2)
    validated = right[False][1:]  # the first is the trainer's trial batch
    assert len(validated) == 3
    assert [row["val/acc"] for row in rows] == ["", f"{sum(validated) / 10:.6g}", ""]

    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == parts(learner).splitlines()
    assert [text.split("  ")[0] for text in shown[2:]] == [f"epoch {n}/3" for n in (1, 2, 3)]


def row(epoch: int, **others: float) -> dict[str, Any]:
    base = {"epoch": epoch, "train/cls": 0.5, "train/loss": 0.5, "train/acc": 0.25}
    return base | {"lr": 0.1, "seconds": 1.0} | others


def test_a_resumed_run_writes_over_what_it_trains_again(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 4):
        write(row(epoch), tmp_path / "history.csv")
    write(row(3, **{"train/cls": 0.125, "val/acc": 0.75}), tmp_path / "history.csv")
    rows = read(tmp_path)
    assert [r["epoch"] for r in rows] == ["1", "2", "3"]
    assert [r["train/cls"] for r in rows] == ["0.5", "0.5", "0.125"]
    assert [r["val/acc"] for r in rows] == ["", "", "0.75"]
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_a_run_resumed_with_another_term_keeps_the_rows_before(tmp_path: Path) -> None:
    write(row(1), tmp_path / "history.csv")
    write(row(2, **{"train/tet": 0.125}), tmp_path / "history.csv")
    first, second = read(tmp_path)
    assert list(first)[:4] == ["epoch", "train/cls", "train/tet", "train/loss"]
    assert (first["train/tet"], second["train/tet"]) == ("", "0.125")


def test_only_the_first_process_writes_but_all_take_the_means(tmp_path: Path) -> None:
    asked: list[str] = []

    class Other:
        is_global_zero, current_epoch, max_epochs = False, 0, 1
        optimizers = (torch.optim.SGD([torch.zeros(1)], lr=0.1),)

        @property
        def callback_metrics(self) -> dict[str, torch.Tensor]:
            asked.append("means")
            return {}

    history, learner = History(tmp_path), Learner(tiny(), TSE())
    for hook in (history.on_train_start, history.on_train_epoch_start, history.on_train_epoch_end):
        hook(Other(), learner)
    assert asked == ["means"]
    assert list(tmp_path.iterdir()) == []


def test_parts_are_named_with_their_sizes() -> None:
    size = 4 * 2 * 9 + 4 + 2 * 4 + 3 * 4 + 3  # convolution, batch norm, head
    text = parts(Learner(tiny(), TSE(learn_kappa=True)))
    assert text.splitlines()[0].startswith("TSE: True, tau_f=0.5, ")
    assert text.splitlines()[1] == f"VGGSNN, parameters: student {size}, kappa 1"
