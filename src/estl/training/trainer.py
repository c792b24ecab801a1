"""Lightning's trainer for a recipe's options; what it refuses is a ValueError of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException


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


@contextmanager
def plainly() -> Iterator[None]:
    """Turn Lightning's complaints about options into ValueErrors."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(f"{error}: correct the keys of the trainer") from None
