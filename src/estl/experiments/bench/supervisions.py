"""What supervisions cost beyond plain, and `tse_loss` and the fusion against literal versions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.experiments.bench.race import Work
from estl.experiments.bench.students import BUILD, events
from estl.guidance.fusion import EdgeGuidedFusion
from estl.supervision import TET, TRE, TSE, MeanCE
from estl.supervision.tse import tse_loss
from estl.types import Batch

KINDS = {"plain": MeanCE, "tse": TSE, "tet": TET, "tre": TRE}


def step(student: str, size: tuple[int, int, int], kind: str) -> Work:
    """Forward and backward of a student of `BUILD` under a supervision of `KINDS`."""
    torch.manual_seed(0)
    net, supervision = BUILD[student](), KINDS[kind]()
    batch = Batch(events(*size), torch.arange(size[0]) % 10)

    def work() -> None:
        net.zero_grad()
        supervision(net(batch.events), batch).total.backward()

    return work


def literal_tse(
    features: Tensor, head: nn.Module, labels: Tensor, tau_f: float, kappa: float
) -> Tensor:
    """`tse_loss` step by step, as its equations stand: 7 to 12 of Liu et al. 2025.

    >>> head, labels = nn.Linear(8, 3), torch.tensor([0, 2])
    >>> features = torch.rand(2, 4, 8, 6, 6)
    >>> torch.testing.assert_close(literal_tse(features, head, labels, 0.3, 0.5),
    ...                            tse_loss(features, head, labels, tau_f=0.3, kappa=0.5))
    """
    B, T = features.shape[:2]
    total = features.new_zeros(())
    past: list[Tensor] = []
    for t in range(T):
        map_t = features[:, t]
        keep = torch.ones_like(map_t[:, :1])
        if past:
            with torch.no_grad():
                mean = torch.stack(past).mean(0)
                p = mean.softmax(-1)[torch.arange(B), :, :, labels]
                tau_d = p.flatten(1).mean(1) + kappa * p.flatten(1).std(1)
                threshold = tau_d.clamp(min=tau_f).view(B, 1, 1)
                keep = (p < threshold).unsqueeze(1).to(map_t.dtype)
        total = total + F.cross_entropy(head((map_t * keep).mean((-2, -1))), labels)
        with torch.no_grad():
            past.append(head(map_t.permute(0, 2, 3, 1)))
    return total


def tse(sizes: tuple[int, int, int, int, int], literal: bool, order: str = "student") -> Work:
    """Forward and backward of the loss alone, at B, T, C, H = W and K; features lie in memory as a
    "student" gives them, (T,B,H,W,C), or in the order of their shape, "plain".
    """
    B, T, C, H, K = sizes
    torch.manual_seed(0)
    features = torch.rand(B, T, C, H, H)
    if order == "student":
        features = features.permute(1, 0, 3, 4, 2).contiguous().permute(1, 0, 4, 2, 3)
    features.requires_grad_()
    head = nn.Linear(C, K)
    labels = torch.arange(B) % K
    loss = literal_tse if literal else tse_loss

    def work() -> None:
        features.grad = None
        loss(features, head, labels, tau_f=0.5, kappa=1.0).backward()

    return work


class LiteralFusion(nn.Module):
    """The fusion as written, plus the option `query`: forms every edge token and every score."""

    def __init__(
        self, clip_dim: int = 768, edge_dim: int = 128, heads: int = 8, query: str = "clip"
    ) -> None:
        super().__init__()
        self.edge_proj = nn.Linear(edge_dim, clip_dim)
        self.cross_attn = nn.MultiheadAttention(clip_dim, heads, batch_first=True)
        self.gate = nn.Sequential(nn.Linear(clip_dim * 2, clip_dim), nn.Sigmoid())
        self.query = query

    def forward(self, patches: Tensor, features: Tensor, edges: Tensor) -> Tensor:
        """The fused feature (B,E)."""
        tokens = self.edge_proj(features.flatten(2).mT) * edges.flatten(2).mT
        x, y = (patches, tokens) if self.query == "clip" else (tokens, patches)
        added, _ = self.cross_attn(query=x, key=y, value=y)
        gate = self.gate(torch.cat([x, added], dim=-1))
        fused: Tensor = (x + gate * added).mean(dim=1)
        return fused


def fusion(batch: int, side: int, literal: bool) -> Work:
    """Forward and backward of the fusion of 196 patches with an edge map of a side."""
    torch.manual_seed(0)
    module: nn.Module = LiteralFusion() if literal else EdgeGuidedFusion()
    features = torch.rand(batch, 128, side, side, requires_grad=True)
    edges = torch.rand(batch, 1, side, side, requires_grad=True)
    patches = torch.randn(batch, 196, 768)

    def work() -> None:
        for x in (features, edges, *module.parameters()):
            x.grad = None
        module(patches, features, edges).square().sum().backward()

    return work
