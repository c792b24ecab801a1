"""Edges of an RGB image, learned or fixed, and the terms that act on an edge map."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from estl.types import LUMA


class LearnableEdgeDetector(nn.Module):
    """Edge map and edge features of an image, trained with the student.

    >>> edges, features = LearnableEdgeDetector()(torch.rand(2, 3, 16, 16))
    >>> edges.shape, features.shape
    (torch.Size([2, 1, 16, 16]), torch.Size([2, 128, 16, 16]))
    """

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
    zero. There are no parameters and no keys.

    >>> image = torch.zeros(1, 3, 4, 6)
    >>> image[..., 3:] = 1.0                       # dark left, bright right
    >>> edges, _ = SobelEdges()(image)
    >>> torch.testing.assert_close(edges[0, 0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0]))
    """

    SCALES, DIRECTIONS = 8, 16

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
        gray = F.pad((rgb * self.luma).sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        g = F.conv2d(gray, self.sobel)
        edges = g.norm(dim=1, keepdim=True)
        largest = edges.amax((2, 3), keepdim=True).clamp(min=1e-6)
        g, edges = g / largest, edges / largest
        means = [
            F.avg_pool2d(g, 2 * s + 1, stride=1, padding=s, count_include_pad=False)
            for s in range(self.SCALES)
        ]
        features = [F.conv2d(mean, self.directions) for mean in means]
        return edges, torch.cat(features, dim=1).relu()


def edge_sparsity_loss(edges: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Mean of the edge map: small where few pixels are edges.

    >>> edge_sparsity_loss(torch.full((1, 1, 2, 2), 0.25)).item()
    0.25
    """
    return edges.mean()


def edge_smoothness_loss(edges: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Total variation per pixel: sum of |differences| to the right and lower neighbor / (B H W).

    >>> edge_smoothness_loss(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).item()
    0.5
    """
    rows, columns = edges.diff(dim=2).abs().sum(), edges.diff(dim=3).abs().sum()
    return (rows + columns) / edges.numel()


def edge_attention(
    attention: Float[Tensor, "B h w"], edges: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B N"]:
    """The teacher's attention times the edges, each row summing to 1.

    The edge map is averaged over the cells of the attention's grid. An image without any edge gives
    the uniform distribution.

    >>> p = edge_attention(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[[0.2, 0.0, 0.6, 0.0]]]]))
    >>> torch.testing.assert_close(p, torch.tensor([[0.25, 0.75]]))
    """
    _, h, w = attention.shape
    pooled = F.adaptive_avg_pool2d(edges.float(), (h, w))
    product = (attention.float() * pooled.squeeze(1)).flatten(1) + 1e-12
    return product / product.sum(1, keepdim=True)


def activation_log_attention(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N"]:
    """Where the student is active: log softmax over tokens of the mean square over D.

    >>> log_q = activation_log_attention(torch.ones(1, 4, 8))
    >>> torch.testing.assert_close(log_q.exp(), torch.full((1, 4), 0.25))
    """
    return tokens.float().square().mean(2).log_softmax(dim=1)


def edge_alignment_loss(
    log_student: Float[Tensor, "B N"], teacher: Float[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """KL(teacher || student) = sum_n p_n (log p_n - log q_n), mean over the batch.

    >>> p, q = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    >>> by_hand = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    >>> torch.testing.assert_close(edge_alignment_loss(q.log(), p), by_hand)
    """
    return F.kl_div(log_student, teacher, reduction="batchmean")
