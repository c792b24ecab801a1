"""What is monitored while edges are learned: whether they are edges, and of what."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

RIM = 2  # pixels at each side that count as border
COLLAPSED = 1e-4  # lowest edge_spread; an untrained written detector has about 4e-4
BORDER = 3.0  # highest edge_border


class Maps(NamedTuple):
    """Maps of a batch to plot, see `EdgeGuidedDistillation.maps`; None for what it lacks."""

    edges: Float[Tensor, "B 1 H W"] | None
    sobel: Float[Tensor, "B 1 h2 w2"]
    teacher: Float[Tensor, "B h w"]
    student: Float[Tensor, "B h w"]
    gate: Float[Tensor, "B h3 w3"] | None = None
    added: Float[Tensor, "B h3 w3"] | None = None


def correlation(a: Float[Tensor, "B 1 H W"], b: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Pearson's correlation over the pixels of each image, mean over images; 0 if one is uniform.

    >>> x = torch.rand(2, 1, 4, 4)
    >>> torch.testing.assert_close(correlation(x, 1 - 2 * x), torch.tensor(-1.0))
    """
    a, b = (x.float().flatten(1) - x.float().flatten(1).mean(1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=1).mean()


def inner(edges: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 h w"]:
    """The map without its outer `RIM` pixels."""
    return edges[..., RIM:-RIM, RIM:-RIM]


def border_share(edges: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Share of a map in its outer `RIM` pixels, over that of an even map: above 1 if brighter.

    >>> border_share(torch.full((1, 1, 8, 8), 0.3))
    tensor(1.)
    """
    inside, total = inner(edges.float()), edges.float().sum().clamp(min=1e-12)
    return (1 - inside.sum() / total) / (1 - inside.numel() / edges.numel())


def footprint(events: Float[Tensor, "B T 2 H W"]) -> Float[Tensor, "B 1 H W"]:
    """The number of events at each pixel, over steps and polarities.

    >>> footprint(torch.ones(1, 3, 2, 4, 4)).unique()
    tensor([6.])
    """
    return events.float().sum((1, 2)).unsqueeze(1)


def watch_edges(
    edges: Float[Tensor, "B 1 h w"],
    sobel: Float[Tensor, "B 1 H W"],
    events: Float[Tensor, "n T C H W"],
) -> dict[str, Tensor]:
    """What is logged about an edge map, which carries no gradient.

    `edge_mean`; `edge_spread`, the standard deviation over an image's pixels; `edge_border`
    (`border_share`); and the correlations `edge_sobel` with the Sobel map and, for event frames,
    `edge_counts` with the event counts of the first n images, on the frames' grid. Below 0 the
    edges are inverted: bright where there is nothing.
    """
    seen = F.adaptive_avg_pool2d(edges, (sobel.shape[-2], sobel.shape[-1]))
    found = {
        "edge_mean": edges.mean(),
        "edge_spread": edges.flatten(1).std(1, correction=0).mean(),
        "edge_border": border_share(seen),
        "edge_sobel": correlation(seen, sobel),
    }
    if events.shape[2] == 2:
        found["edge_counts"] = correlation(seen[: len(events)], footprint(events))
    return found


def watch_attention(
    student: Float[Tensor, "B N"], teacher: Float[Tensor, "B N"]
) -> dict[str, Tensor]:
    """For two distributions over tokens: the mass that they share, and how sharp the student's is,
    1 - entropy / log N: 0 if uniform, 1 if all of it is on one token.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    >>> watch_attention(q, p)
    {'attention_overlap': tensor(0.5000), 'attention_sharp': tensor(1.)}
    """
    entropy = -torch.xlogy(student, student).sum(1).mean()
    overlap = torch.minimum(student, teacher).sum(1).mean()
    sharp = 1 - entropy / math.log(student.shape[1])
    return {"attention_overlap": overlap, "attention_sharp": sharp}


def spread(x: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """Square root of the variance of the directions x / |x| over the batch, in [0,1].

    >>> spread(torch.ones(3, 4)).item()
    0.0
    """
    direction = F.normalize(x.float(), dim=1)
    return direction.var(0, correction=0).sum().sqrt()


def edge_trouble(metrics: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the edges of an epoch, in one line, from the logged `watch/` metrics.

    >>> edge_trouble({"watch/edge_counts": torch.tensor(-0.4)})
    'the edges are inverted: they correlate at -0.40 with edge_counts; give edge_events a weight'
    """
    seen = {k.removeprefix("watch/"): float(v) for k, v in metrics.items() if "watch/edge_" in k}
    if seen.get("edge_spread", 1.0) < COLLAPSED:
        return (
            f"the edge map has collapsed to one gray (standard deviation below {COLLAPSED}): give "
            "edge_events a weight, or lower that of edge_reg"
        )
    for name in ("edge_counts", "edge_sobel"):
        if seen.get(name, 0.0) < -0.1:
            return (
                f"the edges are inverted: they correlate at {seen[name]:.2f} with {name}; give "
                "edge_events a weight"
            )
    if seen.get("edge_border", 1.0) > BORDER:
        return (
            f"the edges are lit at the border ({seen['edge_border']:.1f} times an even share): "
            "give edge_events a weight"
        )
    return None
