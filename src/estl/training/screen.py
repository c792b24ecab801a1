"""What is on the screen while a student is trained, and what does not belong there."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor


class ProgressBar(RichProgressBar):
    """Lightning's, with epochs counted from 1, and beside it the loss and its largest terms."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the bar shows beside the speed."""
        metrics = super().get_metrics(trainer, pl_module)
        loss = {name: metrics[name] for name in metrics if name == "loss"}
        return loss | largest(getattr(pl_module, "terms", {}))

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"


def largest(terms: Mapping[str, Tensor], n: int = 4) -> dict[str, float]:
    """The `n` terms that the loss consists of most, in their order; none where it is one term.

    >>> from torch import tensor
    >>> largest({"cls": tensor(1.5), "kl": tensor(0.1), "edge": tensor(2.0)}, 2)
    {'cls': 1.5, 'edge': 2.0}
    """
    values = {name: float(term) for name, term in terms.items()}
    kept = sorted(values, key=lambda name: -abs(values[name]))[:n] if len(values) > 1 else []
    return {name: values[name] for name in values if name in kept}


def progress_bars() -> list[ProgressBar]:
    """One on a terminal, none in a file or a pipe."""
    return [ProgressBar()] if sys.stdout.isatty() else []


@contextmanager
def quiet() -> Iterator[None]:
    """Keep off the screen what Lightning, torch and transformers tell programmers.

    That is advice on workers and hardware, advertising, and deprecation warnings about each other.
    Warnings about the training itself stay. Also a decorator: `@quiet()`.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        for category in (DeprecationWarning, FutureWarning):
            module = r"(lightning|torch|transformers)(\.|$)"
            warnings.filterwarnings("ignore", category=category, module=module)
        for text in (".*exists and is not empty", ".*Skipping val loop", ".*has `__len__` defined"):
            warnings.filterwarnings("ignore", message=text)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
