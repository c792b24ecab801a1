"""Lightning's trainer for a recipe's options; what it refuses is a ValueError of one line."""

import itertools
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from estl.training.processes import launched, stale_store

Logging = Literal["tensorboard", "csv", "wandb"]

WHOLLY = ("64", "64-true", "16-true", "bf16-true")
"""Precisions of weights and batches themselves: Lightning cannot convert a `Batch`, and at 16 bits
potentials would be rounded at every step."""


def make_trainer(options: dict[str, Any], **own: Any) -> Trainer:
    """A trainer, over all processes if a launcher such as torchrun has started several.

    Args:
        options: the recipe's.
        own: further arguments of `Trainer`.

    Raises:
        ValueError: no such device, a logger that is not installed, options that Lightning refuses.

    >>> make_trainer({"accelerator": "cpu", "devices": 0})
    Traceback (most recent call last):
    ValueError: trainer.accelerator cpu with trainer.devices 0: `Trainer(devices=0)` value is ...
    """
    if str(precision := options.get("precision")) in WHOLLY:
        raise ValueError(f"trainer.precision is {precision}: give 32, or bf16 or 16 (mixed)")
    devices = options.get("devices", "auto")
    if isinstance(devices, str) and not re.fullmatch(r"auto|-?\d+( *, *\d+)*,?", devices):
        raise ValueError(f"trainer.devices is {devices}: give how many, or which (0,1), or auto")
    _refuse_missing(options.get("logger"))
    found = launched()
    if found is not None and options.get("devices", "auto") == "auto":
        nodes = {"num_nodes": found.size // found.here} if found.size > found.here else {}
        options = options | {"devices": found.here} | nodes
    try:
        return Trainer(**options | own)
    except (MisconfigurationException, RuntimeError, ImportError, TypeError) as error:
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
    _refuse_missing(name)
    if name == "wandb":
        return WandbLogger(folder.name, save_dir=folder, project="estl")
    if name == "csv":  # which empties its folder: a resumed run takes the next one
        names = itertools.chain(["csv"], (f"csv-{i}" for i in itertools.count(2)))
        free = next(version for version in names if not (folder / version).exists())
        return CSVLogger(folder, name="", version=free)
    return TensorBoardLogger(str(folder), name="", version="tensorboard")


def _refuse_missing(logger: Logging | None) -> None:
    if logger == "wandb" and find_spec("wandb") is None:
        raise ValueError("trainer.logger wandb needs wandb: pip install 'estl[wandb]'")


@contextmanager
def plainly() -> Iterator[None]:
    """Turn whatever ends a training into errors of one line.

    Raises:
        ValueError: options that Lightning rejects; an error in the data, from a loader worker.
        OSError: an error in a file, from a loader worker; a worker or training process is gone.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(f"{error}: correct the keys of the trainer") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConnectionError) and _handed_over(error):
            raise OSError(_gone(f"process that loads is gone ({error})")) from None
        if (said := _of_loader(str(error))) is None:
            raise
        raise (OSError if isinstance(error, OSError) else ValueError)(said) from None
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if gone := re.search(r"DataLoader worker \(.*?\) (exited \w+|is killed[^.]*)", text):
            raise OSError(_gone(gone[0])) from None
        if isinstance(error, dist.DistError) or "gloo" in text:
            what = "another process of this training is gone, or cannot be reached"
            raise OSError(f"{what} ({text[:80]}){stale_store()}") from None
        raise


def _handed_over(error: ConnectionError) -> bool:
    """Whether the error came from taking a batch from another process."""
    places = traceback.extract_tb(error.__traceback__)
    return any("multiprocessing" in place.filename for place in places)


def _gone(what: str) -> str:
    return f"a {what}: it may have run out of memory, give a smaller --data.init_args.num_workers"


def _of_loader(text: str) -> str | None:
    """The message of a loader worker's error, out of the traceback that comes with it.

    >>> _of_loader("Caught OSError in DataLoader worker process 0.\\nOriginal Traceback (most "
    ...            "recent call last):\\n  File ...\\nOSError: no file x\\n")
    'no file x'
    """
    if "\nOriginal Traceback" not in text:
        return None
    return text.strip().splitlines()[-1].partition(": ")[2]
