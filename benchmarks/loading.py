"""How long a training step on N-MNIST waits for its data: at most a twentieth of the step.

    python benchmarks/loading.py NMNIST_PAIRS [--steps 19]

The set is decoded into a cache first. Then one process loads and trains a small pooled VGGSNN with
TSE; a figure is the median over the steps. Ends with an error where the bound is broken.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from estl.data import NMNISTPairs
from estl.students import VGGSNN
from estl.supervision import TSE

BOUND = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder with Train/ and Test/")
    parser.add_argument("--steps", type=int, default=19)
    options = parser.parse_args()

    torch.manual_seed(0)
    student = VGGSNN(frame_size=(34, 34), layers=(16, "AP", 32, "AP", 64, "AP", 128), pooled=True)
    supervision = TSE(tau_f=0.5, kappa=1.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    waited, worked = [], []
    with tempfile.TemporaryDirectory() as cache:
        data = NMNISTPairs(options.root, T=5, batch_size=32, images=False, cache=Path(cache))
        batches = iter(data.train_dataloader())
        for _ in range(options.steps):
            start = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            optimizer.zero_grad()
            supervision(student(batch.events), batch).total.backward()
            optimizer.step()
            waited.append(loaded - start)
            worked.append(time.perf_counter() - loaded)
    share = median(waited) / median(worked)
    print(
        f"waits {1e3 * median(waited):.2f} ms, a step takes {1e3 * median(worked):.1f} ms: "
        f"{share:.3f} of it, at most {BOUND}"
    )
    if share >= BOUND:
        raise SystemExit("loading is too slow")


if __name__ == "__main__":
    main()
