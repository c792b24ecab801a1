"""Edge-guided fusion: CLIP's patches and the image's edges become one structure-aware feature.

At full resolution there is one edge token per pixel, 50,176 tokens of CLIP's width for an image.
`EdgeGuidedFusion` computes the same numbers on the edge channels, without forming them.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from estl.guidance.attention import attend
from estl.guidance.edges import Edges
from estl.neurons.linear import Linear, linear

CHUNK = 4096
"""Number of edge tokens in memory at once where edges are the queries."""


class Fused(NamedTuple):
    """What `EdgeGuidedFusion.fuse` returns: the feature; the part of it that attention added
    (the mean of g * a); and how far the gate is open.
    """

    feature: Float[Tensor, "B E"]
    added: Float[Tensor, "B E"]
    gate_mean: Float[Tensor, ""]


Sums = tuple[Tensor, Tensor, Tensor]
"""Sums over queries of x and of g * a, (B,E) each, and the sum of g over everything."""


class EdgeGuidedFusion(nn.Module):
    """Cross-attention between CLIP patches p_n and edge tokens z_m, gated and averaged.

        z_m = w_m * edge_proj(f_m)                  f: edge features, w: edge map, m: a pixel
        a   = cross_attn(x, y, y)                   x = p, y = z (query="clip"), or
                                                    x = z, y = p (query="edge")
        g   = sigmoid(W [x, a] + b)
        out = mean over the queries of x + g * a

    The specification has both directions: in its module CLIP queries the edges (default), in its
    overview the edges query CLIP, which swaps x and y, so that the output is a mean over pixels.
    The parameters are the same. Dropout is zero.

    With query="clip" the tokens z (M pixels x E) and the scores (heads x N x M) are never formed.
    Since z_m = [W_e | b_e] u_m with u_m = [w_m * f_m, w_m], keys and values are linear in u:

        score_nm = q_n . W_k z_m = ([W_e | b_e]^T W_k^T q_n) . u_m      (b_k drops out of a softmax)
        a_n      = W_o (W_v [W_e | b_e] ubar_n + b_v) + b_o,   ubar_n = sum_m softmax(score)_nm u_m

    per head, so that fused attention runs on `edge_dim` + 1 channels, for all heads at once: their
    queries differ, their keys are the same. It is exact up to rounding. With query="edge", tokens
    are formed `CHUNK` at a time, and recomputed in the backward pass.

    Args:
        clip_dim: E, width of the patches.
        edge_dim: channels of the edge features.
        heads: attention heads; must divide `clip_dim`.
        query: which side gives the queries, "clip" or "edge".
        edge_grid: side or (rows, columns) to which edges are averaged first; None keeps all pixels.
        gate_bias: initial value of b; a negative one closes the gate, so that the output starts
            near the mean of x. None for the usual small random numbers.

    Raises:
        ValueError: for `heads` that do not divide `clip_dim`, or an unknown `query`.

    >>> fusion = EdgeGuidedFusion(clip_dim=32, edge_dim=8, heads=4)
    >>> fusion(torch.rand(2, 9, 32), torch.rand(2, 8, 6, 6), torch.rand(2, 1, 6, 6)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        clip_dim: int = 768,
        edge_dim: int = 128,
        heads: int = 8,
        *,
        query: Literal["clip", "edge"] = "clip",
        edge_grid: int | tuple[int, int] | None = None,
        gate_bias: float | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or clip_dim % heads:
            raise ValueError(f"heads must divide clip_dim {clip_dim}, got {heads}")
        if query not in ("clip", "edge"):
            raise ValueError(f'query must be "clip" or "edge", got {query!r}')
        self.edge_proj = nn.Linear(edge_dim, clip_dim)
        self.cross_attn = nn.MultiheadAttention(clip_dim, heads, batch_first=True)
        gate = Linear(2 * clip_dim, clip_dim)
        if gate_bias is not None:
            nn.init.constant_(gate.bias, gate_bias)
        self.gate = nn.Sequential(gate, nn.Sigmoid())
        self.query = query
        self.edge_grid = edge_grid

    def forward(
        self,
        clip_patches: Float[Tensor, "B N E"],
        edge_features: Float[Tensor, "B F H W"],
        edge_map: Float[Tensor, "B 1 H W"],
    ) -> Float[Tensor, "B E"]:
        """The structure-aware feature of each image."""
        return self.fuse(clip_patches, edge_features, edge_map).feature

    def fuse(
        self,
        clip_patches: Float[Tensor, "B N E"],
        edge_features: Float[Tensor, "B F h w"],
        edge_map: Float[Tensor, "B 1 H W"],
    ) -> Fused:
        """The same, with the mean of the gate over queries and channels (without gradient).
        Features may be on the `edge_grid` already.
        """
        edge_features, edge_map = self._on_grid(edge_features), self._on_grid(edge_map)
        if self.query == "clip":
            attended = self._attend_to_edges(clip_patches, edge_features, edge_map)
            sums = self._gated_sum(clip_patches, attended)
            count = clip_patches.shape[1]
        else:
            sums = self._ask_clip(clip_patches, edge_features, edge_map)
            count = edge_map[0].numel()
        x, added, gate = (total / count for total in sums)
        return Fused(x + added, added, gate / added.numel())

    @torch.no_grad()
    def gates(
        self, clip_patches: Float[Tensor, "B N E"], look: Edges | None, grid: tuple[int, int]
    ) -> dict[str, Float[Tensor, "B h w"]]:
        """For plots, on the `grid` of the patches: "gate", how far it is open at each, the mean of
        g over channels; and "added", how much it lets through there, |g * a|. Empty without edges,
        or if edges are the queries.
        """
        if self.query != "clip" or look is None:
            return {}
        edges = self._on_grid(look.features), self._on_grid(look.edges)
        attended = self._attend_to_edges(clip_patches, *edges)
        gate = self.gate(torch.cat([clip_patches, attended], dim=-1))
        found = {"gate": gate.mean(-1), "added": (gate * attended).norm(dim=-1)}
        return {name: values.unflatten(1, grid) for name, values in found.items()}

    def _on_grid(self, x: Tensor) -> Tensor:
        """Edges, or their features, as the attention sees them."""
        return x if self.edge_grid is None else F.adaptive_avg_pool2d(x, self.edge_grid)

    def _attend_to_edges(self, patches: Tensor, features: Tensor, weights: Tensor) -> Tensor:
        """cross_attn(patches, z, z) without z; see the class."""
        B, N, E = patches.shape
        heads = self.cross_attn.num_heads
        d = E // heads
        w_q, w_k, w_v = self.cross_attn.in_proj_weight.chunk(3)
        b_q, _, b_v = self.cross_attn.in_proj_bias.chunk(3)

        # Zeros up to a multiple of 8 channels: an unaligned width has no fused kernel on CUDA.
        padding = -(features.shape[1] + 1) % 8
        zeros = weights.new_zeros(()).expand(B, padding, *weights.shape[2:])
        parts = features * weights, weights, zeros
        u = torch.cat([x.flatten(2).mT for x in parts], dim=2)  # B HW F'
        proj = torch.cat([self.edge_proj.weight, self.edge_proj.bias.unsqueeze(1)], dim=1)
        proj = F.pad(proj, (0, padding))  # E F'

        q = linear(patches, w_q, b_q).view(B, N, heads, d)
        q = torch.einsum("bnhd,hdf->bhnf", q, (w_k @ proj).view(heads, d, -1))
        # Every head has the same keys, so that all heads are one with more queries.
        u_bar = attend(q.flatten(1, 2), u, d**-0.5).unflatten(1, (heads, N))
        values = torch.einsum("bhnf,hdf->bnhd", u_bar, (w_v @ proj).view(heads, d, -1))
        out = self.cross_attn.out_proj
        return linear(values.reshape(B, N, E) + b_v, out.weight, out.bias)

    def _gated_sum(self, x: Tensor, attended: Tensor) -> Sums:
        """Sums over the queries of x and of g * a, and the sum of g."""
        gate = self.gate(torch.cat([x, attended], dim=-1))
        return x.sum(1), (gate * attended).sum(1), gate.detach().sum()

    def _ask_clip(self, patches: Tensor, features: Tensor, weights: Tensor) -> Sums:
        """The sums of `_gated_sum` with z as queries."""

        def part(f: Tensor, w: Tensor) -> Sums:
            z = self.edge_proj(f.transpose(1, 2)) * w.transpose(1, 2)
            attended, _ = self.cross_attn(z, patches, patches, need_weights=False)
            return self._gated_sum(z, attended)

        rows = (x.flatten(2).split(CHUNK, dim=2) for x in (features, weights))
        chunks = zip(*rows, strict=True)
        sums = [checkpoint(part, f, w, use_reentrant=False) for f, w in chunks]
        x, added, gate = (torch.stack(s).sum(0) for s in zip(*sums, strict=True))
        return x, added, gate
