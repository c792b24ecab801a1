"""Own data: recordings of your camera in a folder for each class, cut by windows.

    python examples/own_data.py             # seconds; writes 40 recordings into a temporary folder

The camera here is a few lines that write bars, which move to the right or down, as CSV. EVT, AEDAT
4, HDF5 and others do as well, mixed or not: docs/data.md.
"""

import tempfile
from pathlib import Path

import numpy as np
from lightning import Trainer

from estl import TET, VGGSNN, Learner, Recordings
from estl.evaluation.accuracy import evaluate

SENSOR = 32


def record(path: Path, down: bool, rng: np.random.Generator) -> None:
    """A recording of 0.6 s of a bar that crosses the sensor three times, and of noise."""
    n, noise = 1500, 300
    t = np.sort(rng.integers(0, 600_000, n))
    along, across = t % 200_000 * SENSOR // 200_000, rng.integers(0, SENSOR, n)
    along[rng.permutation(n)[:noise]] = rng.integers(0, SENSOR, noise)
    x, y = (across, along) if down else (along, across)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.column_stack([t, x, y, rng.integers(0, 2, n)])
    names = f"t,x@{SENSOR},y@{SENSOR},p"  # the sensor's size may stand in the names
    np.savetxt(path, table, "%d", delimiter=",", header=names, comments="")


def main(root: Path) -> float:
    """Accuracy on windows of held-out recordings."""
    rng = np.random.default_rng(0)
    for i in range(20):
        record(root / "right" / f"{i:02d}.csv", down=False, rng=rng)
        record(root / "down" / f"{i:02d}.csv", down=True, rng=rng)

    # All windows of a recording are in one split.
    data = Recordings(root, T=4, size=16, window="200ms", batch_size=16, by="time")
    print(f"{data.sizes} windows of 200 ms; classes {', '.join(data.classes)}")

    student = VGGSNN(len(data.classes), layers=(16, "AP", 16), pooled=True)
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Learner(student, TET(), lr=1e-2, warmup=1), data)
    accuracy = evaluate(student, data.loader("test"))
    print(f"test: {100 * accuracy.final:.1f} % of {accuracy.samples} windows right")
    return accuracy.final


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
