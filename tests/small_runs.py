"""Small runs that end at a chosen epoch, as if they had been killed there."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from estl.training.recipe import parse_recipe
from estl.training.run import fit


class Killed(BaseException):
    """As if the process ended here."""


class Kill(Callback):
    """Ends a run at the start of an epoch, counted from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise Killed


def recipe(**loading: Any) -> dict[str, Any]:
    """Of a small run: three epochs of three batches."""
    data = {"batch_size": 16} | loading
    if "root" not in data:  # few samples to validate on, which would take longer than to train
        data = {"T": 3, "size": 16, "per_class": 4, "val_fraction": 0.02} | data
    return {
        "data": {
            "class_path": "estl.data.Shards" if "root" in data else "estl.data.Digits",
            "init_args": data,
        },
        "student": {"class_path": "estl.students.VGGSNN", "init_args": {"layers": [4, "AP", 4]}},
        "trainer": {"max_epochs": 3},
    }


def train(values: dict[str, Any], folder: Path, kill: int = -1) -> dict[str, Any]:
    """The last checkpoint of a run that ends at the start of epoch `kill`, or finishes."""
    config, given = parse_recipe(values | {"output_dir": str(folder)})
    with suppress(Killed):
        fit(config, given, callbacks=[Kill(kill)], test=False)
    return dict(torch.load(folder / "last.ckpt", weights_only=True))


def same(one: Any, two: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)
