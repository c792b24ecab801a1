"""First steps: train a spiking network on simulated recordings of digits, test it, and run it live.

python examples/first_steps.py          # seconds; no download
"""

from lightning import Trainer

from estl import TSE, VGGSNN, Digits, Learner, step
from estl.evaluation.accuracy import evaluate


def main() -> float:
    """Accuracy on held-out digits."""
    data = Digits(T=3, size=16, per_class=40, batch_size=32)
    print(f"{data.sizes} recordings of {len(data.classes)} classes")

    student = VGGSNN(len(data.classes), layers=(16, "AP", 32, "AP"), pooled=True)
    trainer = Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Learner(student, TSE(reduction="mean"), lr=1e-2, warmup=1), data)

    accuracy = evaluate(student, data.loader("test"))
    for t, share in enumerate(accuracy.per_step, 1):
        print(f"after step {t}: {100 * share:.1f} % of {accuracy.samples} right")

    # Live: one frame at a time, with the state of the neurons in your hands.
    batch, state = next(iter(data.loader("test"))), None
    for frame in batch.events[:1].unbind(1):  # (1,C,H,W)
        logits, state = step(student, frame, state)
        print(f"a {batch.label[0]} looks like a {logits.argmax().item()}")
    return accuracy.final


if __name__ == "__main__":
    main()
