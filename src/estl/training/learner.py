"""The LightningModule: one student, one supervision, the optimizer and what a checkpoint holds.

What a checkpoint holds: `state_dict` is the student's, with the student's own keys and nothing
else, so that `student.load_state_dict(torch.load(path)["state_dict"])` deploys it. The trained
parts of the supervision are beside it (`supervision`), for resuming only.
"""

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal, get_args

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from estl.data.draws import epoch_seed
from estl.guidance.ranks import share
from estl.guidance.watch import edge_trouble
from estl.neurons.fused import one_forward
from estl.students.recompute import recomputing
from estl.supervision.schedule import set_progress
from estl.training.compiled import compiled
from estl.training.contract import check_choice, check_loss, check_numbers, check_student
from estl.training.groups import owner, parameter_groups
from estl.training.rates import constant, cosine, go_on, lengths, steps_done
from estl.training.trouble import FiniteCheck
from estl.types import Batch, Loss, Output, Supervision

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "constant"]


class Learner(LightningModule):
    """Trains `student` under `supervision`, from the weights it has (`load_weights` gives others).

    Lightning's `fit`, `validate`, `test` and `predict` take `EventData`, or loaders of `Batch` or
    of tuples (events, label) and (events, label, image).

    Args:
        student: a module whose forward takes events (B,T,C,H,W) and returns an `Output`.
        supervision: turns `(Output, Batch)` into a `Loss`.
        optimizer: "adamw", "adam", or "sgd" (with Nesterov momentum 0.9).
        lr: learning rate of the student and of every part not named in `part_lr`.
        weight_decay: applied to weights of two or more dimensions; not to biases and norms.
        schedule: "cosine" to zero over the run, or "constant".
        warmup: epochs at the start over which the rate rises to `lr`; may be a fraction.
        part_lr: learning rates of named parts of the supervision, such as
            `{edge_detector: 1e-3}`, or of modules of the student, as `{student.head: 1e-2}`.
        compile: whether the student's training steps run through `torch.compile`, which fuses batch
            norms, neurons and poolings: a quarter less time for a small VGGSNN, after a first step
            of half a minute and more (minutes for a deep student at many steps).
        recompute: whether the student's layers are computed again in the backward pass, with only
            spikes kept in between: two fifths to a half more time, a quarter to a third of the
            memory a sample of a deep student; less is saved where one layer is most of it.
        recipe: the resolved configuration, kept in the checkpoint.
        classes: class names in the order of the labels, kept in the checkpoint.
        fingerprint: fingerprint of the data, kept in the checkpoint.

    Raises:
        ValueError: an option outside its range, or `compile` with `recompute`; when training
            starts, an unknown name in `part_lr`, a frozen student, or what `contract.py` refuses.
    """

    def __init__(
        self,
        student: nn.Module,
        supervision: Supervision,
        *,
        optimizer: Optimizer = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Schedule = "cosine",
        warmup: float = 0.0,
        part_lr: dict[str, float] | None = None,
        compile: bool = False,  # PyTorch's word
        recompute: bool = False,
        recipe: dict[str, Any] | None = None,
        classes: tuple[str, ...] = (),
        fingerprint: str = "",
    ) -> None:
        super().__init__()
        rates = {f"part_lr of {part}": rate for part, rate in (part_lr or {}).items()}
        check_numbers({"lr": lr} | rates, {"weight_decay": weight_decay, "warmup": warmup})
        check_choice("optimizer", optimizer, get_args(Optimizer))
        check_choice("schedule", schedule, get_args(Schedule))
        if lr > 0.05 and optimizer != "sgd":
            warnings.warn(
                f"lr {lr} is one for SGD, and far above what {optimizer} trains with (1e-3 or so): "
                "lower --lr, or choose --optimizer sgd",
                stacklevel=2,
            )
        self.student = student
        self.supervision = supervision
        self.optimizer: Optimizer = optimizer
        self.lr, self.weight_decay = lr, weight_decay
        self.schedule, self.warmup = schedule, warmup
        self.part_lr = part_lr or {}
        self.recipe = recipe or {}
        self.classes, self.fingerprint = classes, fingerprint
        if recompute and compile:
            raise ValueError("learner.compile and learner.recompute: choose one of them")
        if recompute:
            recomputing(student)
        self.compiled = compiled(student) if compile else None
        self.finite = FiniteCheck()
        self.terms: dict[str, Tensor] = {}  # of the last step, for the progress bar
        self.warned, self.unseen = False, True  # unseen: what student and supervision return
        self.stepped = 0
        self.preparing: int | None = None  # batches that the supervision is prepared on at most
        self.told: list[dict[str, Any]] = []  # the optimizer's groups, as the options have them
        self.ahead = 0  # steps of the run beyond those that the trainer counts

    def on_train_epoch_start(self) -> None:
        """Seed each epoch on its own, so that a resumed run draws what an unbroken one draws."""
        seed = int(self.recipe.get("seed", 0))
        torch.manual_seed(epoch_seed(seed, self.current_epoch, self.global_rank))
        self.stepped = 0

    def on_fit_start(self) -> None:
        """Put the student in training mode, in case it was last used to predict."""
        if not self.student.training:
            self.student.train()

    def on_train_start(self) -> None:
        """Let the supervision prepare itself on batches as a step gets them; or resume a run."""
        if self.trainer.global_step == 0:
            self.supervision.prepare(islice(self._batches(), self.preparing))
            return
        go_on(self.trainer, self.told)
        self.ahead = steps_done(self.trainer) - self.trainer.global_step

    def _batches(self) -> Iterator[Batch]:
        """The training batches as a step gets them, over and over."""
        data: Any = self.trainer.datamodule or self  # type: ignore[attr-defined]
        while True:
            for batch in self.trainer.train_dataloader or ():
                yield data.on_after_batch_transfer(_batch(batch).to(self.device), 0)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Pass the training progress (steps done / total) to every scheduled module."""
        total = max(1, self.trainer.estimated_stepping_batches)
        set_progress(self.supervision, min(1.0, (self.global_step + self.ahead) / total))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; every term and metric is logged by its name, and the accuracy."""
        batch = self.supervision.extend(_batch(batch))
        with one_forward():
            output: Output = (self.compiled or self.student)(batch.events)
        if self.unseen:
            check_student(self.student, output, batch, len(self.classes))
        if not self.supervision.extends:  # which takes no samples without a label
            batch, output = batch.labeled, output.first(len(batch.labeled.label))
        loss: Loss = self.supervision(output, batch)
        if self.unseen:
            check_loss(self.supervision, loss)
            self.unseen = False
        self.finite.see(loss, batch)
        self.finite.stop(late=2)
        self.terms = {name: value.detach() for name, value in loss.terms.items()}
        values = {f"train/{name}": value for name, value in loss.terms.items()}
        values["train/loss"] = loss.total
        size = len(batch.label) - batch.unlabeled
        weight: Any = float(size)  # of an int Lightning takes the mean over processes as an int
        mean = output.logits[:size].detach().float().mean(1)
        values["train/acc"] = _accuracy(mean, batch.label[:size])
        values |= {f"watch/{name}": value for name, value in loss.metrics.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True)
        self.log("loss", loss.total, prog_bar=True, logger=False)
        if self.trainer.world_size == 1 or not self.trainer.is_last_batch:
            return loss.total
        # DDP takes the mean over processes, whose shares of an epoch's last batch may be uneven.
        return loss.total * share(size, batch.label.device) * self.trainer.world_size

    def on_train_epoch_end(self) -> None:
        """Stop, before anything is saved, if a loss was not finite; warn of edges that are gone."""
        self.finite.stop()
        learned = self.current_epoch + 1 > (self.trainer.max_epochs or 1) / 2
        trouble = edge_trouble(self.trainer.callback_metrics)
        if learned and trouble and not self.warned:
            self.warned = True
            warnings.warn(trouble, stacklevel=2)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop at a gradient that is not finite; log its norm by part: the student, and the
        children of a supervision.
        """
        if self.trainer.precision != "16-mixed":  # whose scaler leaves out steps that overflow
            self.finite.see_gradients(self.named_parameters())
            self.finite.stop(late=2)
        self.stepped += 1  # in this epoch, so that a resumed run logs what an unbroken one does
        if (self.stepped - 1) % max(1, self.trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        squares: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters():
            if parameter.grad is not None:
                part = owner(name)
                squares[part] = squares.get(part, 0) + parameter.grad.detach().square().sum()
        self.log_dict({f"gradient/{part}": square.sqrt() for part, square in squares.items()})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Cross-entropy and accuracy of the mean over time, the same for every supervision."""
        self._evaluate(batch, "val")

    def _evaluate(self, batch: Batch, split: str) -> None:
        batch = _batch(batch)
        output: Output = self.student(batch.events)
        if self.unseen:
            check_student(self.student, output, batch, len(self.classes))
        mean = output.logits.float().mean(1)
        correct = _accuracy(mean, batch.label)
        loss = F.cross_entropy(mean, batch.label)
        size: Any = float(len(batch.label))  # see `training_step`
        self.log(f"{split}/loss", loss, batch_size=size, sync_dist=True)
        self.log(f"{split}/acc", correct, prog_bar=True, batch_size=size, sync_dist=True)
        if split == "val":
            # Small validation splits tie often: the loss decides between equal accuracies.
            rank = correct - 1e-5 * loss
            self.log("val/rank", rank, batch_size=size, sync_dist=True, logger=False)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same for the test split; `evaluate` gives the accuracy after each time step."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits (B,K), their mean over time."""
        output: Output = self.student(_batch(batch).events)
        return output.logits.float().mean(1)

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of parameters (`estl.training.groups`)."""
        return parameter_groups(self, self.lr, self.weight_decay, self.part_lr)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule per step."""
        groups = self.groups()
        self.told = [dict(group) for group in groups]
        optimizer: torch.optim.Optimizer
        match self.optimizer:
            case "adamw":
                optimizer = torch.optim.AdamW(groups, lr=self.lr)
            case "adam":
                optimizer = torch.optim.Adam(groups, lr=self.lr)
            case "sgd":
                optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
        if self.schedule == "constant" and self.warmup == 0.0:
            return optimizer
        way = cosine if self.schedule == "cosine" else constant
        total, each = lengths(self.trainer)
        warmup = round(self.warmup * each)
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: way(s, total, warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the student's keys in `state_dict`; store the supervision's beside it."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = _below(state, "student.")
        checkpoint["supervision"] = _below(state, "supervision.")
        checkpoint["recipe"], checkpoint["classes"] = self.recipe, list(self.classes)
        checkpoint["fingerprint"] = self.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of `on_save_checkpoint`."""
        student, supervision = checkpoint["state_dict"], checkpoint["supervision"]
        checkpoint["state_dict"] = {f"student.{k}": v for k, v in student.items()} | {
            f"supervision.{k}": v for k, v in supervision.items()
        }


def _batch(given: Any) -> Batch:
    """A batch as it is, or that of a loader of tuples: (events, label), (events, label, image)."""
    return given if isinstance(given, Batch) else Batch(*given)


def _accuracy(mean: Tensor, label: Tensor) -> Tensor:
    """Share of samples whose logits (B,K), a mean over time, predict the label; on the device."""
    return (mean.argmax(-1) == label).float().mean()


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
