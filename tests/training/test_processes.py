"""Several processes train what one trains, and commands know what to do among them."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from estl.data.sets.digits import Digits
from estl.experiments.jobs import gpus
from estl.neurons import LIF
from estl.supervision import TET, TRE, TSE, EdgeGuidedDistillation, MeanCE, Sum
from estl.supervision.terms import WRITTEN
from estl.training import processes
from estl.training.learner import Learner
from estl.training.trainer import make_trainer
from estl.types import Output, Supervision
from tests.forked import start_processes
from tests.small_teacher import FixedTeacher

D = 8


class Student(nn.Module):
    """Two spiking layers without batch norm, whose statistics would be those of a process."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, D, 4, stride=4), nn.Conv2d(D, D, 3, padding=1)
        self.lif, self.head = LIF(), nn.Linear(D, 10)
        with torch.no_grad():
            self.first.weight.mul_(4)
            self.second.weight.mul_(4)

    def forward(self, events: Tensor) -> Output:
        x = events
        for layer in (self.first, self.second):
            x = self.lif(layer(x.flatten(0, 1)).unflatten(0, events.shape[:2]))
        pooled = x.mean((-2, -1))
        tokens = x.flatten(3).transpose(2, 3)
        return Output(self.head(pooled), x, self.head, pooled, tokens)


def guided(**options: Any) -> EdgeGuidedDistillation:
    """Without the detector's warm-up, whose Adam makes much of the last bit of a small gradient."""
    return EdgeGuidedDistillation(FixedTeacher(), student_dim=D, T=3, classes=10, **options)


def fused() -> EdgeGuidedDistillation:
    """With all terms: contrast has negatives of all processes."""
    weights = WRITTEN | {"edge_reg": 0.0}
    return guided(target="fused", heads=2, positives="class", weights=weights)


SUPERVISIONS = {
    "plain": MeanCE,
    "tet": TET,
    "tse": TSE,
    "tre": TRE,
    "guided": guided,
    "fused": fused,
    "sum": lambda: Sum([TSE(), TET(), guided(weights={"cls": 0.0})]),
}


def trained(name: str, folder: Path) -> dict[str, Tensor]:
    """Weights after ten steps of all processes together, and what was logged of the last epoch:
    five epochs of 15 samples and 14, which three processes cannot share evenly.
    """
    torch.manual_seed(1)
    student, supervision = Student(), SUPERVISIONS[name]()
    assert isinstance(supervision, Supervision)
    learner = Learner(student, supervision, optimizer="sgd", lr=0.05, recipe={"seed": 0})
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    data = Digits(T=3, size=16, per_class=3, batch_size=15)
    data.splits = data.splits | {"train": data.splits["train"][:-1]}
    options = {"max_epochs": 5, "accelerator": "cpu", "check_val_every_n_epoch": 5}
    off = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    trainer = make_trainer(options | off, default_root_dir=folder, **quiet)
    trainer.fit(learner, data)
    assert trainer.global_step == 10
    weights = learner.state_dict()
    assert all(not torch.equal(weights[k], before[k]) for k in weights if "student" in k)
    logged = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val/"))}
    assert {"train/loss", "train/acc", "val/loss", "val/acc"} <= logged.keys()
    return dict(weights) | logged


def one_of(rank: int, size: int, port: int, folder: str) -> None:
    """A process as torchrun starts it."""
    torch.set_num_threads(1)
    for key, value in {"RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}.items():
        os.environ[key] = os.environ[f"LOCAL_{key}"] = str(value)
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"}
    rank_zero_only.rank = rank  # type: ignore[attr-defined]  # as if imported with these
    found = {name: trained(name, Path(folder)) for name in SUPERVISIONS}
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.slow
@pytest.mark.usefixtures("without_compiling")
def test_processes_train_what_one_process_trains(tmp_path: Path) -> None:
    size = 3
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(one_of, (size, port, str(tmp_path)), size)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for name in SUPERVISIONS:
        alone = trained(name, tmp_path)
        for key, value in alone.items():
            for rank in range(size):
                here = found[rank][name][key]
                bound = 1e-5 if "/" in key else 1e-6  # losses are larger than weights
                torch.testing.assert_close(here, value, atol=bound, rtol=0, msg=f"{name} {key}")


def test_a_launcher_is_forgotten_by_its_first_process_and_the_others_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert processes.launched() is None
    assert processes.take_over() == 1
    given = {
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "3",
        "TORCHELASTIC_RUN_ID": "x",
        "GROUP_RANK": 0,
    }
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    for rank in ("4", "0"):
        monkeypatch.setenv("RANK", rank)
        assert processes.launched() == (int(rank), 6, 3)
        assert processes.take_over() == (3 if rank == "0" else 0)
    assert processes.launched() is None
    assert not {"RANK", *given} & os.environ.keys()


def test_a_restart_is_known_by_what_launchers_say_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        assert not processes.restarted()
        monkeypatch.setenv(name, "0")
        assert not processes.restarted()
        monkeypatch.setenv(name, "1")
        assert processes.restarted()
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in processes.stale_store()
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
        assert processes.stale_store() == ""
        monkeypatch.delenv(name)


def test_runs_at_a_time_share_the_gpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for count, jobs, seen in ((0, 2, [None] * 2), (1, 2, [None] * 2), (2, 1, [None])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert [place.get("CUDA_VISIBLE_DEVICES") for place in gpus(jobs)] == seen
    assert [place["CUDA_VISIBLE_DEVICES"] for place in gpus(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in gpus(2)] == ["3", "GPU-5"]
