"""Lightning's trainer for a recipe's options; what it refuses is a ValueError of one line."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

Logging = Literal["tensorboard", "csv", "wandb"]


def make_trainer(options: dict[str, Any], **own: Any) -> Trainer:
    """A trainer.

    Args:
        options: of the recipe.
        own: arguments of `Trainer` beside these.

    Raises:
        ValueError: no such device, or options that Lightning refuses.

    >>> make_trainer({"accelerator": "cpu", "devices": 0})
    Traceback (most recent call last):
    ValueError: trainer.accelerator cpu with trainer.devices 0: `Trainer(devices=0)` value is ...
    """
    try:
        return Trainer(**options | own)
    except (MisconfigurationException, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"trainer.accelerator {options.get('accelerator')} with trainer.devices "
            f"{options.get('devices')}: {reason}: correct these, or the key that it names"
        ) from None


def make_logger(name: Logging, folder: Path) -> Logger:
    """Lightning's logger of this name, which writes into a run folder.

    Weights & Biases obeys its own variables: WANDB_MODE=offline keeps a run on this machine.

    Raises:
        ValueError: wandb is not installed.
    """
    if name == "wandb":
        if find_spec("wandb") is None:
            raise ValueError("trainer.logger wandb needs wandb: pip install 'estl[wandb]'")
        return WandbLogger(folder.name, save_dir=folder, project="estl")
    if name == "csv":  # which empties its folder: a resumed run takes the next one
        names = itertools.chain(["csv"], (f"csv-{i}" for i in itertools.count(2)))
        free = next(version for version in names if not (folder / version).exists())
        return CSVLogger(folder, name="", version=free)
    return TensorBoardLogger(str(folder), name="", version="tensorboard")


@contextmanager
def plainly() -> Iterator[None]:
    """Turn Lightning's complaints about options into ValueErrors."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(f"{error}: correct the keys of the trainer") from None
