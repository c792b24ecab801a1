"""Edges of an RGB image: learned from events, as the written design learns them, or fixed."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from estl.types import LUMA


class Edges(NamedTuple):
    """A detector's output for images; `rates`, the expected events, only if it learns them."""

    edges: Float[Tensor, "B 1 H W"]
    features: Float[Tensor, "B F H W"]
    rates: Float[Tensor, "B T 2 H W"] | None = None


class LearnableEdgeDetector(nn.Module):
    """Edges as an event camera defines them: where it fires when moved in front of the image.

    A small network predicts the rates r, the expected events of each step, polarity and pixel, and

        edges = 1 - exp(-mean over steps and polarities of r),

    the probability of an event in a frame's cell at the pixel's mean rate, if events are Poisson.
    (That of an event in any of the cells is 1 on most of a footprint, and grades no edge.)
    `edge_events_loss` trains it on recordings. Borders are replicated: an image's rim is no edge.

    Args:
        T: time steps of the recordings.
        width: channels of the first layer; the features have 2 `width`. Twice as many predicted no
            better for the time they take (docs/log.md).

    >>> detector = LearnableEdgeDetector(T=5)
    >>> edges, features = detector(torch.rand(2, 3, 16, 16))
    >>> edges.shape, features.shape
    (torch.Size([2, 1, 16, 16]), torch.Size([2, 32, 16, 16]))
    >>> detector.look(torch.rand(2, 3, 16, 16)).rates.shape
    torch.Size([2, 5, 2, 16, 16])
    """

    def __init__(self, T: int, width: int = 16) -> None:
        super().__init__()
        self.features = 2 * width
        self.encoder = nn.Sequential(
            _conv(3, width), nn.SiLU(), _conv(width, 2 * width), nn.SiLU(),
            _conv(2 * width, 2 * width), nn.SiLU(),
        )  # fmt: skip
        self.hidden = nn.Sequential(_conv(2 * width, width), nn.SiLU())
        self.rate_head = nn.Conv2d(width, 2 * T, 1)

    @torch.no_grad()
    def start_at(self, rates: Float[Tensor, "T 2"]) -> None:
        """Set the rates for an image about which nothing is known, which shortens training."""
        assert self.rate_head.bias is not None
        self.rate_head.bias.copy_(rates.flatten().clamp(min=1e-3).expm1().log())

    def forward(
        self, rgb: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B F H W"]]:
        """Edges in [0,1] and features of `rgb` in [0,1]."""
        edges, features, _ = self.look(rgb)
        return edges, features

    def look(self, rgb: Float[Tensor, "B 3 H W"]) -> Edges:
        """The same plus the rates, all from one pass."""
        features = self.encoder(rgb)
        rates = F.softplus(self.rate_head(self.hidden(features)).float()).unflatten(1, (-1, 2))
        return Edges(-torch.expm1(-rates.mean((1, 2)).unsqueeze(1)), features, rates)

    def look_on(
        self, rgb: Float[Tensor, "B 3 H W"], grid: int | tuple[int, int]
    ) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B F h w"]]:
        """Edges, and features averaged to `grid`, in the form that `guidance.kept.Kept` caches."""
        edges, features, _ = self.look(rgb)
        return edges, F.adaptive_avg_pool2d(features, grid)

    def look_at_rates(self, rgb: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B T 2 H W"]]:
        """Only the rates, in the form that `Kept` caches too."""
        rates = self.look(rgb).rates
        assert rates is not None
        return (rates,)


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, padding_mode="replicate")


class WrittenEdgeDetector(nn.Module):
    """The detector of the written design: only the other loss terms define what an edge is.

    >>> edges, features = WrittenEdgeDetector()(torch.rand(2, 3, 16, 16))
    >>> edges.shape, features.shape
    (torch.Size([2, 1, 16, 16]), torch.Size([2, 128, 16, 16]))
    """

    features = 128

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, 1, 1),
            nn.ReLU(),
        )
        self.edge_head = nn.Sequential(
            nn.Conv2d(128, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 1, 1), nn.Sigmoid()
        )

    def forward(
        self, rgb: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B 128 H W"]]:
        """Edges in [0,1] and features of `rgb` in [0,1]."""
        features = self.encoder(rgb)
        return self.edge_head(features), features


class SobelEdges(nn.Module):
    """Fixed edges with the interface of `LearnableEdgeDetector`, for the ablation.

    With g the Sobel gradient of the image's luma, divided by its largest magnitude in the image:

        edges                 = |g|
        features[:, 16s + k]  = max(0, <g averaged over a (2s+1) x (2s+1) window, direction k>)

    for 8 windows s and 16 directions k * 22.5 degrees. An image of one color has no edges: all
    zero. There are no parameters and no `state_dict` keys.

    >>> image = torch.zeros(1, 3, 4, 6)
    >>> image[..., 3:] = 1.0                       # dark left, bright right
    >>> edges, _ = SobelEdges()(image)
    >>> torch.testing.assert_close(edges[0, 0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0]))
    """

    SCALES, DIRECTIONS = 8, 16
    features = SCALES * DIRECTIONS

    luma: Tensor
    sobel: Tensor
    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        luma = torch.tensor(LUMA).view(1, 3, 1, 1)
        x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        angle = torch.arange(self.DIRECTIONS) * (2 * math.pi / self.DIRECTIONS)
        self.register_buffer("luma", luma, persistent=False)
        self.register_buffer("sobel", torch.stack([x, x.T]).unsqueeze(1), persistent=False)
        directions = torch.stack([angle.cos(), angle.sin()], dim=1).view(-1, 2, 1, 1)
        self.register_buffer("directions", directions, persistent=False)

    def forward(
        self, rgb: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B 128 H W"]]:
        """Edges and features of `rgb`, both in [0,1]."""
        g = self._gradient(rgb)
        means = [
            F.avg_pool2d(g, 2 * s + 1, stride=1, padding=s, count_include_pad=False)
            for s in range(self.SCALES)
        ]
        features = [F.conv2d(mean, self.directions) for mean in means]
        return _magnitude(g), torch.cat(features, dim=1).relu()

    def edges(self, rgb: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """The edges alone."""
        return _magnitude(self._gradient(rgb))

    def _gradient(self, rgb: Tensor) -> Tensor:
        """g, (B,2,H,W)."""
        gray = F.pad((rgb * self.luma).sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        g = F.conv2d(gray, self.sobel)
        return g / _magnitude(g).amax((2, 3), keepdim=True).clamp(min=1e-6)


def _magnitude(g: Tensor) -> Tensor:
    """|g| (B,1,H,W) of (B,2,H,W); a norm over two channels takes 80 times as long."""
    return torch.hypot(g[:, :1], g[:, 1:])


Detector = LearnableEdgeDetector | WrittenEdgeDetector | SobelEdges


def make_detector(kind: Literal["learned", "written", "sobel"], T: int | None = None) -> Detector:
    """A detector of the given kind.

    Raises:
        ValueError: learned edges without `T`.

    >>> make_detector("sobel").features
    128
    """
    if kind == "learned":
        if T is None:
            raise ValueError("T is missing: give the time steps of the recordings")
        return LearnableEdgeDetector(T)
    return WrittenEdgeDetector() if kind == "written" else SobelEdges()
