"""Trouble while a student is trained: non-finite values, layers that no longer compute."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from estl.evaluation.energy import spiking_layers
from estl.neurons.norm import of_spikes
from estl.training.files import aside
from estl.training.processes import rank
from estl.types import Batch, Loss

SATURATED = 0.99
"""Spikes per neuron and step, above which a layer hardly tells anything."""


class NotFiniteError(FloatingPointError):
    """A loss or gradient that is not finite, with the batch that it came from."""

    def __init__(self, what: str, batch: Batch | None = None) -> None:
        super().__init__(
            f"{what} not finite: training stopped; lower --lr, or look at the term's inputs; the "
            "last checkpoint is intact"
        )
        self.batch = batch

    def kept(self, folder: Path) -> FloatingPointError:
        """The error for a run that keeps the batch in its folder, as tensors by name."""
        if self.batch is None:
            return self
        path = folder / (f"not-finite-{rank()}.pt" if rank() else "not-finite.pt")
        with suppress(OSError):  # of the two errors, this one is not the one to tell
            parts = {name: x for name, x in vars(self.batch).items() if isinstance(x, Tensor)}
            with aside(path) as file:
                torch.save({name: x.detach().cpu() for name, x in parts.items()}, file)
            return FloatingPointError(f"{self}; its batch is in {path} (torch.load)")
        return self


class _Asked(NamedTuple):
    """Which of some values were bad, of a batch, and when the answer is there."""

    what: str
    names: list[str]
    bad: Tensor
    batch: Batch | None
    known: torch.cuda.Event | None


class FiniteCheck:
    """Watches losses and gradients for values that are not finite, without making a GPU wait.

    Its answer is fetched asynchronously, and is read while the next step is computed.

    >>> check = FiniteCheck()
    >>> for value in (1.0, float("nan")):
    ...     term = torch.tensor(value)
    ...     check.see(Loss(term, {"cls": term}))
    >>> check.stop()
    Traceback (most recent call last):
    estl.training.trouble.NotFiniteError: the loss (cls) is not finite: training stopped; ...
    """

    def __init__(self) -> None:
        self.asked: list[_Asked] = []
        self.batch: Batch | None = None

    def see(self, loss: Loss, batch: Batch | None = None) -> None:
        """Note the loss of a step."""
        self.batch = batch
        parts = loss.terms | {"total": loss.total}
        self._note("loss", list(parts), [x.detach() for x in parts.values()])

    def see_gradients(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Note the gradients of parameters, of the batch whose loss was seen last."""
        found = [(name, p.grad.detach()) for name, p in named if p.grad is not None]
        if found:
            largest = torch._foreach_norm([grad for _, grad in found], float("inf"))
            self._note("gradient", [name for name, _ in found], largest)

    def _note(self, what: str, names: list[str], values: Iterable[Tensor]) -> None:
        bad = ~torch.isfinite(torch.stack([x.float() for x in values]))
        known = None
        if bad.is_cuda:
            bad, known = bad.to("cpu", non_blocking=True), torch.cuda.Event()
            known.record()
        self.asked.append(_Asked(what, names, bad, self.batch, known))

    def stop(self, late: int = 0) -> None:
        """Raise NotFiniteError if what was seen is not finite, except the last `late` on a GPU.

        The text names the terms of the first loss that was not finite, or the parameter nearest to
        the loss, from which the other bad gradients come.
        """
        while self.asked and (self.asked[0].known is None or len(self.asked) > late):
            one = self.asked.pop(0)
            if one.known is not None:
                one.known.synchronize()
            bad = [name for name, at in zip(one.names, one.bad.tolist(), strict=True) if at]
            if not bad:
                continue
            if one.what == "loss":
                terms = ", ".join(name for name in bad if name != "total") or "total"
                raise NotFiniteError(f"the loss ({terms}) is", one.batch)
            more = f", as are {len(bad) - 1} others," if len(bad) > 1 else ""
            raise NotFiniteError(f"the gradient of {bad[-1]}{more} is", one.batch)


class Firing(Callback):
    """Warns, once a run, of spiking layers that were silent or saturated for a whole epoch.

    They are looked at in logged steps, but not in compiled ones, which have no layers.
    """

    def __init__(self) -> None:
        self.warned = False
        self.hooks: list[Any] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from nothing."""
        self.rates: dict[str, list[Tensor]] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the layers in this step, if it is one that is logged."""
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self.warned or batch_idx % every or getattr(pl_module, "compiled", None) is not None:
            return
        for name, layer in spiking_layers(pl_module.student):  # type: ignore[arg-type]
            self.hooks.append(layer.register_forward_hook(self._look(name)))

    def _look(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            spikes = out[0] if isinstance(out, tuple) else out
            self.rates.setdefault(name, []).append(spikes.detach().float().mean())

        return of_spikes(hook)

    def on_train_batch_end(self, *args: Any) -> None:
        """Look no longer."""
        while self.hooks:
            self.hooks.pop().remove()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn."""
        seen = {name: torch.stack(rates).tolist() for name, rates in self.rates.items()}
        if not self.warned and (trouble := firing_trouble(seen)):
            self.warned = True
            rank_zero_warn(f"epoch {trainer.current_epoch + 1}: {trouble}")


def firing_trouble(rates: dict[str, list[float]]) -> str:
    """What is wrong with layers, given their firing rates in steps of an epoch; "" if nothing.

    >>> firing_trouble({"a": [0.2, 0.1], "b": [0.0, 0.0], "c": [0.0, 0.5], "d": [1.0]})
    'silent layers: b; saturated layers: d: lower or raise their thresholds, or --lr'
    >>> firing_trouble({"a": [0.2]})
    ''
    """
    silent = [name for name, seen in rates.items() if max(seen) == 0]
    full = [name for name, seen in rates.items() if min(seen) > SATURATED]
    parts = [("silent", silent), ("saturated", full)]
    told = [f"{kind} layers: {_some(names)}" for kind, names in parts if names]
    return f"{'; '.join(told)}: lower or raise their thresholds, or --lr" if told else ""


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are.

    >>> _some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
