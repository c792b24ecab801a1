"""Trouble while a student is trained is named, and what it came of is kept."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from estl.data.sets import digits
from estl.data.shards import write_shards
from estl.neurons.norm import pairs
from estl.students import VGGSNN
from estl.training.checkpoint import read_checkpoint
from estl.training.recipe import parse_recipe
from estl.training.run import fit
from estl.training.trainer import plainly
from estl.training.trouble import FiniteCheck, Firing, NotFiniteError
from estl.types import Batch, Loss, Output
from tests.small_runs import recipe


class Root(nn.Module):
    """A finite value whose gradient is not, at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


def test_a_bad_gradient_is_named_although_the_loss_is_finite() -> None:
    module, check = nn.Sequential(nn.Linear(1, 1), Root()), FiniteCheck()
    loss = module[1].weight.sqrt().sum() + module[0].weight.sum()
    check.see(
        Loss(loss, {"cls": loss}), batch := Batch(torch.ones(1, 1, 1, 1, 1), torch.zeros(1).long())
    )
    loss.backward()
    check.see_gradients(module.named_parameters())
    with pytest.raises(NotFiniteError, match=r"the gradient of 1\.weight is not") as raised:
        check.stop()
    assert raised.value.batch is batch
    module.zero_grad()
    module[0].weight.grad = torch.full((1, 1), 1e30)  # whose square is not finite, as it is
    check.see_gradients(module.named_parameters())
    check.stop()


class Spoiled(VGGSNN):
    """A student that sees no numbers in one step of its training, if it is told so.

    No spike comes of them, so that the loss is finite.
    """

    def __init__(self, at: int = -1, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.left = at

    def forward(self, events: Tensor) -> Output:
        if self.training:
            self.left -= 1
            if self.left == -1:
                events = events * float("nan")
        return super().forward(events)


def spoiled(at: int, folder: Path) -> tuple[Any, Any]:
    values = recipe() | {"output_dir": str(folder)}
    arguments = {"layers": [4, "AP", 4], "at": at}
    values["student"] = {"class_path": f"{__name__}.Spoiled", "init_args": arguments}
    return parse_recipe(values)


class Batches(Callback):
    """Keeps the batches that were trained on."""

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.seen.append(batch)


@pytest.mark.slow
def test_the_batch_of_a_gradient_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    batches = Batches()
    with pytest.raises(
        FloatingPointError, match=r"the gradient of student\..* not finite"
    ) as raised:
        fit(*spoiled(4, tmp_path), callbacks=[batches], test=False)
    path = tmp_path / "not-finite.pt"
    assert str(raised.value).endswith(f"its batch is in {path} (torch.load)")
    assert len(batches.seen) == 5  # it stopped in the very step
    kept = torch.load(path, weights_only=True)
    assert torch.equal(kept["events"], batches.seen[-1].events)
    assert torch.equal(kept["label"], batches.seen[-1].label)
    last = read_checkpoint(tmp_path / "last.ckpt")
    assert last["epoch"] == 0
    assert all(value.isfinite().all() for value in last["state_dict"].values())


@pytest.mark.slow
def test_layers_that_do_not_fire_are_warned_of_once(tmp_path: Path) -> None:
    values = recipe() | {"output_dir": str(tmp_path)}

    class Deaf(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            *_, last = (m for m in pl_module.modules() if isinstance(m, nn.BatchNorm2d))
            nn.init.zeros_(last.weight)  # and its bias is 0

    with pytest.warns(UserWarning, match=r"epoch 1: silent layers: \S+: lower or") as caught:
        fit(*parse_recipe(values), callbacks=[Deaf()], test=False)
    assert len([w for w in caught if "silent" in str(w.message)]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_ends_a_run_in_one_line_and_it_goes_on_when_it_is_back(
    workers: int, tmp_path: Path
) -> None:
    root, run = tmp_path / "shards", tmp_path / "run"
    write_shards(digits.Digits(T=3, size=16, per_class=4), root, shard_size=8)
    shard = root / "train-000003.tar"

    class Vanish(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                shard.rename(tmp_path / "away")

    config, given = parse_recipe(
        recipe(root=str(root), num_workers=workers) | {"output_dir": str(run)}
    )
    with pytest.raises(OSError, match=r"train-000003\.tar") as raised:
        fit(config, given, callbacks=[Vanish()], test=False)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)
    assert str(raised.value).endswith(f"then go on with estl fit --resume {run}")
    assert read_checkpoint(run / "last.ckpt")["epoch"] == 0
    (tmp_path / "away").rename(shard)
    assert fit(config, given, run, test=False) is not None


# Either it is missed, or it was killed while it handed over a batch.
GONE = r"a (DataLoader worker \(pid|process that loads).*num_workers; then go on with"


@pytest.mark.slow
# PyTorch opens files to see whether there are too many: the signal may come while it does.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_process_that_loads_and_is_killed_is_said_in_one_line(tmp_path: Path) -> None:
    class Kill(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            (loader,) = trainer.train_dataloader._iterator._workers[:1]
            os.kill(loader.pid, signal.SIGKILL)

    values = recipe(num_workers=1) | {"output_dir": str(tmp_path)}
    with pytest.raises(OSError, match=GONE) as raised:
        fit(*parse_recipe(values), callbacks=[Kill()], test=False)
    assert "\n" not in str(raised.value)


def test_a_process_that_is_gone_is_no_traceback() -> None:
    text = "[/pytorch/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:5"
    with pytest.raises(OSError, match="another process of this training is gone"), plainly():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="other"), plainly():
        raise RuntimeError("other")


def test_looking_at_firing_rates_keeps_no_layer_from_its_fast_path() -> None:
    student = VGGSNN(5, frame_size=(8, 8), layers=(4, "AP", 4))
    firing, trainer = Firing(), SimpleNamespace(log_every_n_steps=1)
    firing.on_train_batch_start(trainer, SimpleNamespace(student=student), None, 0)
    assert len(firing.hooks) == 2
    assert pairs(student.layers[0][1], student.layers[1])
