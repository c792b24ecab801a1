"""Which weights of a run are kept: callbacks around Lightning's `ModelCheckpoint`."""

import os
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from estl.training.rates import lengths


class Best(ModelCheckpoint):
    """Keeps the weights that are best on validation, named by their epoch, counted from 1."""

    def format_checkpoint_name(self, metrics: dict[str, Tensor], *args: Any, **kwargs: Any) -> str:
        """File name of a checkpoint."""
        metrics = metrics | {"epoch": metrics["epoch"] + 1}
        return super().format_checkpoint_name(metrics, *args, **kwargs)


class ValidateLast(Callback):
    """Validates the last epoch, whether or not `check_val_every_n_epoch` divides their number."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for validation after this epoch if it is the last."""
        ends = trainer.max_steps == trainer.global_step + lengths(trainer)[1]
        if ends or trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class WholeEpochs(Callback):
    """Lets a run that ends after a number of steps resume at the start of an epoch, as others do.

    With `max_steps`, Lightning takes the epoch that a checkpoint completes for an unfinished one:
    the next epoch would have no start, and what is done there would be skipped.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide the number of steps from the loops while they are restored."""
        self.max_steps = trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give it back to them."""
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps


class Here(Callback):
    """Lets a run folder that was moved, copied or mounted elsewhere be continued as the same one.

    Checkpoints name the best one by its path, and Lightning forgets its score if that has changed.

    Args:
        last: the callback whose folder is the run's.
    """

    def __init__(self, last: ModelCheckpoint) -> None:
        self.last = last

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the folder's present path into the states that the callbacks are about to read."""
        states = checkpoint["callbacks"]
        old = states.get(self.last.state_key, {}).get("dirpath")
        if old is not None and self.last.dirpath is not None:
            checkpoint["callbacks"] = moved(states, str(old), str(self.last.dirpath))


def moved(values: Any, old: str, new: str) -> Any:
    """Nested values, with every path in the folder `old` moved to the folder `new`.

    >>> moved({"best": "/a/r/x.ckpt", "scores": {"/a/r/x.ckpt": 1, "/a/r2": 2}}, "/a/r", "/b")
    {'best': '/b/x.ckpt', 'scores': {'/b/x.ckpt': 1, '/a/r2': 2}}
    """
    if isinstance(values, dict):
        return {moved(key, old, new): moved(value, old, new) for key, value in values.items()}
    if isinstance(values, str) and (values == old or values.startswith(old + os.sep)):
        return new + values.removeprefix(old)
    return values
