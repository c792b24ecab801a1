"""TSE for a dense task: where the digit is, from events, plain and under `DenseTSE`.

    python docs/segmentation.py

The data are the embedded digits: a simulated recording of 16x16 pixels, and a class for every pixel
of its image, 1 where it is bright and 0 where it is dark. A small spiking net of convolutions and
pooling sees the events, and one 1x1 convolution classifies every pixel at every step from the
spikes of all levels. All trainings share data and budget; a seed is shared by both supervisions.

The figures are on the test split: IoU, the intersection over the union of the predicted and the
true pixels of a class in the whole split, as a mean over both classes; the prediction at t is that
of the mean logits of the steps 1..t. It takes less than a minute on one core.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from estl.data.sets.digits import Digits
from estl.neurons import LIF
from estl.students.layers import Layers, PerStep, conv_norm
from estl.supervision import DenseTSE
from estl.types import Batch

CLASSES, T, SIZE, EPOCHS, SEEDS = 2, 6, 16, 3, (0, 1)


@dataclass(frozen=True)
class Scenes:
    """A batch with a label for every pixel: events (B,T,2,H,W), labels (B,H,W)."""

    events: Tensor
    labels: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Scenes":
        """1 where the image is bright, 0 where it is dark."""
        assert batch.image is not None
        return cls(batch.events, (batch.image[:, 0] > 0.5).long())


class Segmenter(nn.Module):
    """Events (B,T,2,H,W) to logits (B,T,K,H,W)."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            Layers(conv_norm(a, b), LIF.tet())
            for a, b in zip((2, *widths[:-1]), widths, strict=True)
        )
        self.pool = PerStep(nn.AvgPool2d(2))
        self.enlarge = PerStep(nn.UpsamplingNearest2d(size=SIZE))
        self.head = PerStep(nn.Conv2d(sum(widths), CLASSES, 1))

    def forward(self, events: Tensor) -> Tensor:
        """The head reads each level's spikes, enlarged to the size of the events."""
        spikes = [self.levels[0](events)]
        for level in self.levels[1:]:
            spikes.append(level(self.pool(spikes[-1])))
        logits: Tensor = self.head(torch.cat([self.enlarge(s) for s in spikes], 2))
        return logits


@torch.no_grad()
def mean_iou(net: nn.Module, scenes: Iterable[Scenes]) -> list[float]:
    """Mean IoU over the classes, in %, after each step."""
    net.eval()
    table = torch.zeros(T, CLASSES, CLASSES)  # true class, predicted class
    for s in scenes:
        predicted = net(s.events).cumsum(1).argmax(2)
        for t in range(T):
            pairs = (s.labels * CLASSES + predicted[:, t]).flatten()
            table[t] += pairs.bincount(minlength=CLASSES**2).view(CLASSES, CLASSES)
    hit = table.diagonal(dim1=1, dim2=2)
    return (100 * hit / (table.sum(1) + table.sum(2) - hit)).mean(1).tolist()


def train(supervision: DenseTSE, seed: int) -> tuple[list[float], float]:
    """Test IoU after each step, and the share of places erased in the last epoch."""
    torch.manual_seed(seed)
    data = Digits(T=T, size=SIZE, batch_size=64, seed=seed)
    net = Segmenter()
    batches = list(data.train_dataloader())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, EPOCHS * len(batches))
    for _ in range(EPOCHS):
        erased = 0.0
        for batch in data.train_dataloader():
            scenes = Scenes.of(batch)
            loss = supervision(net(scenes.events), scenes.labels)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            schedule.step()
            erased += loss.metrics["erased"].item() / len(batches)
    return mean_iou(net, map(Scenes.of, data.test_dataloader())), erased


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    steps = "".join(f"   t={t}" for t in range(1, T + 1))
    print(f"{'mean IoU, %':<24}{'seed':>5}{steps}   erased")
    start = time.perf_counter()
    for name, supervision in (
        ("plain (sum of CE)", DenseTSE(tau_f=2.0)),
        ("DenseTSE", DenseTSE(tau_f=0.5, kappa=0.0)),
    ):
        for seed in SEEDS:
            iou, erased = train(supervision, seed)
            figures = "".join(f"{x:6.1f}" for x in iou)
            print(f"{name:<24}{seed:>5}{figures}{100 * erased:7.1f} %", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
