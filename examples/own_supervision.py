"""Own supervision: a loss over the time steps, alone and beside ESTL's TSE.

    python examples/own_supervision.py      # seconds; no download

With the class in a module `mine.py`, recipes and the command line find it by its path:
`estl fit --dataset digits --arch vggsnn-pooled --supervision mine.Rising`.
"""

import torch
from lightning import Trainer
from torch.nn import functional as F

from estl import TSE, VGGSNN, Batch, Digits, Learner, Loss, Output, Sum, Supervision
from estl.evaluation.accuracy import evaluate


class Rising(Supervision):
    """Cross-entropy at every step, of which later ones count more: step t with weight t."""

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss, with its terms and what is watched."""
        B, T, _ = output.logits.shape
        label = batch.label[:, None].expand(B, T)
        each = F.cross_entropy(output.logits.transpose(1, 2), label, reduction="none")  # (B,T)
        weight = torch.arange(1.0, T + 1, device=each.device)
        loss = (each * weight / weight.sum()).sum(1).mean()
        return Loss(loss, {"rising": loss}, {"first": each[:, 0].mean().detach()})


def trained(supervision: Supervision, data: Digits) -> float:
    """Test accuracy of a student under a supervision."""
    torch.manual_seed(0)
    student = VGGSNN(len(data.classes), layers=(16, "AP", 32, "AP"), pooled=True)
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Learner(student, supervision, lr=1e-2, warmup=1), data)
    return evaluate(student, data.loader("test")).final


def main() -> dict[str, float]:
    """Accuracy on held-out digits, by supervision."""
    data = Digits(T=3, size=16, per_class=40, batch_size=32)
    both = Sum([Rising(), TSE(reduction="mean")], weights=[0.5, 0.5])
    found = {"rising": trained(Rising(), data), "rising and TSE": trained(both, data)}
    for name, accuracy in found.items():
        print(f"{name}: {100 * accuracy:.1f} % of the test digits right")
    return found


if __name__ == "__main__":
    main()
