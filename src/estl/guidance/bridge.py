"""The bridge: recordings of images that were never recorded, drawn from the events they predict."""

import math
from collections.abc import Iterable
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.guidance.edges import LearnableEdgeDetector, SobelEdges
from estl.guidance.grid import on_frames
from estl.guidance.kept import Kept
from estl.guidance.ranks import mean, share
from estl.guidance.terms import edge_events_loss
from estl.types import Batch

WARM_UP_LR = 2e-2
"""Adam's learning rate for the detector before the student's first step."""

RISE = 20
"""Steps over which that rate rises."""

CLIP = 0.1
"""Norm to which the detector's gradient is clipped meanwhile. Without it one start in five learned
nothing from pictures of CIFAR-10, and all the others less (docs/log.md)."""

PROBES = 8
"""Recordings of a batch that `limit` is estimated from: 10^5 counts and more."""

MANY = 1e6
"""Trials of binomial counts that are Poisson's to a millionth of their variance."""


def train_detector(detector: LearnableEdgeDetector, batches: Iterable[Batch], steps: int) -> None:
    """So many steps of Adam on `edge_events_loss`, at a rate that rises, then falls to zero along a
    cosine, with clipped gradients.

    It starts at the mean rates of the first batch, and learns from recorded samples alone. Ranks of
    `torch.distributed` share gradients.

    Raises:
        ValueError: recordings without images.
    """
    optimizer = torch.optim.Adam(detector.parameters(), lr=WARM_UP_LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1.0, (s + 1) / (RISE + 1)) * (0.5 + 0.5 * math.cos(math.pi * s / steps)),
    )
    for step, whole in enumerate(islice(batches, steps)):
        batch = whole.labeled
        image = batch.images_for("the bridge")
        own = share(len(batch.label), batch.events.device)
        if step == 0:
            detector.start_at(mean(batch.events.mean((0, 3, 4)), own))
        rates = detector.look(on_frames(image, batch.events)).rates
        assert rates is not None
        optimizer.zero_grad()
        edge_events_loss(rates, batch.events).backward()
        for p in detector.parameters():
            p.grad = None if p.grad is None else mean(p.grad, own)
        nn.utils.clip_grad_norm_(detector.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()


@torch.no_grad()
def predict(
    detector: nn.Module | None,
    image: Float[Tensor, "U 3 h w"],
    batch: Batch,
    kept: Kept | None = None,
) -> Float[Tensor, "U T 2 H W"]:
    """Recordings of `image` as those in `batch`, drawn from what the detector predicts of it.

    Learned rates come with the `limit` that recordings of the batch have, given theirs. Those of
    a detector that is not trained may be `kept`.

    Raises:
        ValueError: a detector that predicts no events.
    """
    events = batch.events
    if isinstance(detector, SobelEdges):
        return draw(even_rates(detector.edges(on_frames(image, events)), events))
    if not isinstance(detector, LearnableEdgeDetector) or batch.image is None:
        raise ValueError(
            'the bridge draws from learned rates: set edges="learned", and a weight of edge_events '
            "or warm_up"
        )
    some = events[:PROBES]
    images = torch.cat([on_frames(x, events) for x in (batch.image[:PROBES], image)])
    look = detector.look_at_rates
    (rates,) = look(images) if kept is None else kept.of(detector)(look, images)
    known, asked = rates.split([len(some), len(image)])
    return draw(asked, limit(known, some))


def limit(
    rates: Float[Tensor, "B T 2 H W"], events: Float[Tensor, "B T 2 H W"]
) -> Float[Tensor, ""]:
    """How often a pixel can fire in a step at most, by the variance of recorded counts n.

    Of binomial counts with M trials and mean r the variance is r - r^2 / M. So

        M = sum r^2 / (sum r - sum (n - r)^2),

    rounded, at least 1, and `MANY` (no limit: Poisson) where counts vary as much as Poisson's or
    more. A pixel rests after each event, so that sharp edges give more even counts than Poisson's:
    on N-MNIST in five steps M is 6, and the variance of bright places a fifth of Poisson's. It
    stays on the device, which a step of training does not wait for.

    >>> r = torch.full((1, 1, 2, 1, 1), 2.0)
    >>> limit(r, torch.tensor([1.0, 3.0]).view(1, 1, 2, 1, 1)), limit(r, r + 2)
    (tensor(4.), tensor(1000000.))
    """
    spare = rates.sum() - (events - rates).square().sum()
    trials = (rates.square().sum() / spare).round().clamp(1.0, MANY)
    return torch.where(spare > 0, trials, MANY)


def draw(
    rates: Float[Tensor, "B T 2 H W"], limit: Float[Tensor, ""] | float = MANY
) -> Float[Tensor, "B T 2 H W"]:
    """Independent event counts of mean `rates`: binomial of `limit` trials, by default Poisson's.

    They have the variance r (1 - r / limit). A rate above the limit always gives it.

    >>> draw(torch.full((1, 2, 2, 3, 3), 3.0), limit=3.0).unique()
    tensor([3.])
    """
    trials = torch.as_tensor(limit, dtype=rates.dtype, device=rates.device)
    return torch.binomial(trials.expand_as(rates), (rates / trials).clamp(max=1.0))


def even_rates(
    edges: Float[Tensor, "B 1 H W"], events: Float[Tensor, "n T 2 H W"]
) -> Float[Tensor, "B T 2 H W"]:
    """Rates of fixed edges, a control: as the edges in place, and even over polarities.

    Each step has as many events over an image as a recording of `events` has there on average.

    >>> rates = even_rates(torch.rand(3, 1, 4, 4), torch.ones(2, 5, 2, 4, 4))
    >>> torch.testing.assert_close(rates.sum((2, 3, 4)), torch.full((3, 5), 32.0))
    """
    each = events.float().sum((2, 3, 4)).mean(0) / 2
    shares = edges / edges.sum((2, 3), keepdim=True).clamp(min=1e-6)
    return each.view(1, -1, 1, 1, 1) * shares.unsqueeze(1).expand(-1, len(each), 2, -1, -1)
