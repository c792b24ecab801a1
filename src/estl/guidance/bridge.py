"""The bridge: recordings of never-recorded images, drawn from the events predicted for them."""

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
"""Number of steps over which that rate rises."""

CLIP = 0.1
"""Norm to which the detector's gradient is clipped meanwhile. Without it, one start in five learned
nothing from images of CIFAR-10, and all the others less (docs/log.md)."""

PROBES = 8
"""Number of recordings of a batch from which `limit` is estimated: 10^5 counts and more."""

MANY = 1e6
"""Number of trials at which binomial counts are Poisson to a millionth of their variance."""


def train_detector(detector: LearnableEdgeDetector, batches: Iterable[Batch], steps: int) -> None:
    """Train with `steps` steps of Adam on `edge_events_loss`, with clipped gradients and a learning
    rate that rises, then falls to zero along a cosine.

    The detector starts at the mean rates of the first batch, and learns only from recorded samples.
    Gradients are averaged over the ranks of `torch.distributed`.

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
    """Recordings of `image` like those in `batch`, drawn from what the detector predicts for it.

    With learned rates, the `limit` is that of the batch's recordings, given their rates. The rates
    of a detector that is not trained may be cached in `kept`.

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
    """How often a pixel can fire in a step at most, estimated from the variance of counts n.

    Binomial counts with M trials and mean r have the variance r - r^2 / M. So

        M = sum r^2 / (sum r - sum (n - r)^2),

    rounded, at least 1, and `MANY` (no limit: Poisson) where counts vary as much as Poisson's or
    more. A pixel rests after each event, so that counts at sharp edges vary less than Poisson's:
    on N-MNIST in five steps M is 6, and the variance at bright places is a fifth of Poisson's. The
    result stays on the device, so that a training step does not wait for it.

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
    """Independent event counts with mean `rates`: binomial with `limit` trials, by default Poisson.

    They have the variance r (1 - r / limit). A rate above the limit always gives the limit.

    >>> draw(torch.full((1, 2, 2, 3, 3), 3.0), limit=3.0).unique()
    tensor([3.])
    """
    trials = torch.as_tensor(limit, dtype=rates.dtype, device=rates.device)
    return torch.binomial(trials.expand_as(rates), (rates / trials).clamp(max=1.0))


def even_rates(
    edges: Float[Tensor, "B 1 H W"], events: Float[Tensor, "n T 2 H W"]
) -> Float[Tensor, "B T 2 H W"]:
    """Rates from fixed edges, a control: proportional to the edges, equal for both polarities.

    Each step has as many events per image as the recordings `events` have at that step on average.

    >>> rates = even_rates(torch.rand(3, 1, 4, 4), torch.ones(2, 5, 2, 4, 4))
    >>> torch.testing.assert_close(rates.sum((2, 3, 4)), torch.full((3, 5), 32.0))
    """
    each = events.float().sum((2, 3, 4)).mean(0) / 2
    shares = edges / edges.sum((2, 3), keepdim=True).clamp(min=1e-6)
    return each.view(1, -1, 1, 1, 1) * shares.unsqueeze(1).expand(-1, len(each), 2, -1, -1)
