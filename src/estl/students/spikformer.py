"""Spikformer (Zhou et al., ICLR 2023): spiking patch splitting, self-attention, readout."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons import LIF
from estl.neurons.fused import one_forward
from estl.neurons.linear import Linear
from estl.neurons.norm import hooked
from estl.students.layers import (
    Layers,
    PerStep,
    PerToken,
    Readout,
    conv_norm,
    gradient_in_order,
    time_first,
)
from estl.students.pooling import MaxPool
from estl.students.recompute import again, ending_with_neurons, through
from estl.types import Output

Neuron = Callable[..., nn.Module]

WEIGHT = 2.0
"""Initial weight of batch norms: threshold / gain of `LIF.spikformer` (see `conv_norm`). With the
authors' 1, about 3 % of the neurons fire, and hardly any after the attention (docs/log.md).
"""

QKV_WEIGHT = 2.0**0.5
"""Initial weight of the norms of q, k and v, whose product grows with the cube of their rate. With
2, the attention's neuron fires nearly always (84 % on 48x48 at D = 256), with this value 15 %.
"""


def linear_norm(in_features: int, out_features: int, weight: float = WEIGHT) -> PerToken:
    """Linear layer (no bias: the norm has one) and batch norm, applied to every token.

    Truncated normal initialization (std 0.02, as the authors'); the norm has `weight` and bias 0.
    """
    linear = Linear(in_features, out_features, bias=False)
    norm = nn.BatchNorm1d(out_features)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.constant_(norm.weight, weight)
    return PerToken(linear, norm)


def softmax_free_attention(
    q: Float[Tensor, "*batch N d"], k: Float[Tensor, "*batch N d"], v: Float[Tensor, "*batch N d"]
) -> Float[Tensor, "*batch N d"]:
    """(q k^T) v, in the cheaper order.

    Without a softmax the product is associative: (q k^T) v takes 2 N^2 d multiplications, q (k^T v)
    takes 2 N d^2. For spikes both give exactly the same integers, as long as they are below 2^24.

    >>> q, k, v = (torch.rand(3, 5, 4).round() for _ in range(3))
    >>> torch.equal(softmax_free_attention(q, k, v), q @ k.mT @ v)
    True
    """
    N, d = q.shape[-2:]
    return q @ (k.mT @ v) if d < N else (q @ k.mT) @ v


class SpikingSelfAttention(nn.Module):
    """Spiking self-attention of tokens x (B,T,N,D), without a softmax:

        q, k, v = LIF(BN(x W_q)), LIF(BN(x W_k)), LIF(BN(x W_v))
        a = LIF(scale * (q k^T) v)     in each head, threshold 0.5
        y = LIF(BN(a W))

    Args:
        dim: width D.
        heads: number of heads, a divisor of D.
        scale: factor on the spike counts, 1/8 as in the authors' code. Counts grow as N * D /
            heads: with few tokens and channels, fewer heads or a larger scale make it fire.
        neuron: factory of the spiking layers; takes `threshold`.

    >>> SpikingSelfAttention(16, heads=2)(torch.rand(2, 4, 9, 16)).shape
    torch.Size([2, 4, 9, 16])
    """

    def __init__(
        self, dim: int, heads: int = 8, *, scale: float = 0.125, neuron: Neuron = LIF.spikformer
    ) -> None:
        super().__init__()
        if dim % heads != 0:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        self.heads, self.scale = heads, scale
        # One matrix for q, k and v equals three: norm and neuron treat each channel on its own.
        self.qkv = Layers(linear_norm(dim, 3 * dim, QKV_WEIGHT), neuron())
        self.neuron = neuron(threshold=0.5)
        self.project = Layers(linear_norm(dim, dim), neuron())

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Spikes of the attention layer."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B,T,N,3,heads,d)
        q, k, v = qkv.permute(3, 1, 0, 4, 2, 5)  # each (T,B,heads,N,d)
        counts = softmax_free_attention(q, k, v).transpose(2, 3).flatten(3)  # (T,B,N,D)
        spikes: Tensor = self.project(self.neuron(self.scale * counts.transpose(0, 1)))
        return spikes


class Block(nn.Module):
    """Encoder block: x + SSA(x), then x + MLP(x), where MLP is LIF(BN(linear)) twice.

    >>> Block(16, heads=2)(torch.rand(2, 4, 9, 16)).shape
    torch.Size([2, 4, 9, 16])
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        mlp_ratio: int = 4,
        scale: float = 0.125,
        neuron: Neuron = LIF.spikformer,
    ) -> None:
        super().__init__()
        hidden = dim * mlp_ratio
        self.attention = SpikingSelfAttention(dim, heads, scale=scale, neuron=neuron)
        self.mlp = Layers(linear_norm(dim, hidden), neuron(), linear_norm(hidden, dim), neuron())

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Tokens, each the sum of its spikes so far."""
        return self._mixed(self._attended(x))

    def recomputed(self, student: nn.Module, x: Tensor, levels: int) -> Tensor:
        """The same, with attention and MLP each recomputed in its backward pass."""
        if hooked(self):
            return again(student, self, x, levels=levels)
        x = again(student, self._attended, x, levels=levels)
        return again(student, self._mixed, x, levels=levels)

    def _attended(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.attention(x))

    def _mixed(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.mlp(x))


class PatchSplitting(nn.Module):
    """Spiking patch splitting, then relative position embedding.

    Four stages of 3x3 convolution, batch norm and LIF to D/8, D/4, D/2, D channels; the last
    `poolings` of them end with 3x3 max pooling of stride 2, which maps a size n to ceil(n/2). Then
    x + LIF(BN(conv(x))) encodes a token's position by its surroundings.

    >>> PatchSplitting(2, 16, poolings=2)(torch.rand(1, 4, 2, 12, 9)).shape
    torch.Size([1, 4, 16, 3, 3])
    """

    def __init__(
        self, in_channels: int, dim: int, poolings: int = 2, neuron: Neuron = LIF.spikformer
    ) -> None:
        super().__init__()
        if dim % 8 != 0:
            raise ValueError(f"dim={dim} must be a multiple of 8: patch splitting starts at dim/8")
        if not 0 <= poolings <= 4:
            raise ValueError(f"poolings={poolings} must be 0 to 4: there are four stages")
        widths = (in_channels, dim // 8, dim // 4, dim // 2, dim)
        stages: list[nn.Module] = []
        for i in range(4):
            stages += [conv_norm(widths[i], widths[i + 1], weight=WEIGHT), neuron()]
            if i >= 4 - poolings:
                stages.append(PerStep(MaxPool(3, stride=2, padding=1)))
        self.stages = Layers(*stages)
        self.position = Layers(conv_norm(dim, dim, weight=WEIGHT), neuron())

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T D h w"]:
        """Maps of spike sums; each place is a token."""
        return self.encode(self.stages(x))

    def encode(self, x: Float[Tensor, "B T D h w"]) -> Float[Tensor, "B T D h w"]:
        """The spikes plus those of the position embedding."""
        return cast(Tensor, x + self.position(x))


class SpikingToken(nn.Module):
    """A learned token that spikes: a LIF driven by a learned constant current per channel.

    It enters the encoder as spikes, like the patch tokens, and learns through the surrogate. With
    `LIF.spikformer` a current c >= 2 fires at every step, one from 1 to 2 less often, and one below
    1 never; c is initialized uniformly in [0,4], so that half the channels fire at each step.

    >>> SpikingToken(16)(steps=4).shape
    torch.Size([1, 4, 1, 16])
    """

    def __init__(self, dim: int, neuron: Neuron = LIF.spikformer) -> None:
        super().__init__()
        self.current = nn.Parameter(4 * torch.rand(dim))
        self.neuron = neuron()

    def forward(self, steps: int) -> Float[Tensor, "rows T 1 D"]:
        """Spikes of the token over `steps` steps: one row, or one per stream with its own start."""
        return cast(Tensor, self.neuron(self.current.expand(1, steps, 1, -1)))


class Spikformer(nn.Module):
    """Spikformer: patch splitting, `depth` encoder blocks, and a linear readout of each step.

    Images may have any size, since the position embedding is a convolution. Each pooling halves the
    sides, rounded up: with two poolings, 48x48 gives 12x12 = 144 tokens.

    Args:
        classes: number of classes K.
        in_channels: channels C of the events.
        dim: width D, a multiple of 8 and of `heads`.
        depth: number of encoder blocks.
        heads: heads of the self-attention.
        mlp_ratio: width of the MLP's hidden layer relative to D.
        scale: factor on the attention's spike counts (see `SpikingSelfAttention`).
        poolings: how many times, 0 to 4, patch splitting halves the maps.
        readout: what the head reads and `class_token` holds: the "mean" over the patch tokens, or a
            learned "token" (see `SpikingToken`) that takes part in the attention. TSE needs "mean".
        neuron: changes to the neuron `LIF.spikformer`, such as {"decay": 0.75}. The attention's
            threshold stays 0.5.

    Raises:
        ValueError: if `heads` or 8 do not divide `dim`, `poolings` is out of range, or for an
            unknown `readout`.

    >>> net = Spikformer(classes=5, dim=16, depth=1, heads=2)
    >>> output = net(torch.rand(2, 4, 2, 12, 12))
    >>> output.logits.shape, output.patch_tokens.shape, output.features.shape
    (torch.Size([2, 4, 5]), torch.Size([2, 4, 9, 16]), torch.Size([2, 4, 16, 3, 3]))
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 2,
        *,
        dim: int = 256,
        depth: int = 2,
        heads: int = 8,
        mlp_ratio: int = 4,
        scale: float = 0.125,
        poolings: int = 2,
        readout: Literal["mean", "token"] = "mean",
        neuron: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.recompute = False
        if readout not in ("mean", "token"):
            raise ValueError(f'readout must be "mean" or "token", got {readout!r}')
        lif = partial(LIF.spikformer, **(neuron or {}))
        self.classes, self.in_channels, self.dim = classes, in_channels, dim
        self.patches = PatchSplitting(in_channels, dim, poolings, lif)
        self.token = SpikingToken(dim, lif) if readout == "token" else None
        self.blocks = nn.Sequential(
            *(Block(dim, heads, mlp_ratio, scale, lif) for _ in range(depth))
        )
        self.head = Readout(dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @one_forward()
    def forward(self, events: Tensor) -> Output:
        """Logits, features and tokens of `events` (B,T,C,H,W); ValueError if these do not fit."""
        x = time_first(events, self.in_channels)
        if self.recompute:
            stages = ending_with_neurons(self.patches.stages)
            maps = through(self, [*stages, self.patches.encode], x).transpose(0, 1)
        else:
            maps = self.patches(x).transpose(0, 1)  # (T,B,D,h,w)
        T, B, D = maps.shape[:3]
        tokens = maps.flatten(3).mT  # (T,B,N,D)
        if self.token is not None:
            tokens = torch.cat((self.token(T).transpose(0, 1).expand(T, B, 1, D), tokens), dim=2)
        tokens = tokens.contiguous().transpose(0, 1)  # (B,T,N,D)
        if self.recompute:
            levels = 2 * len(self.blocks) + 2  # two neurons per block add spikes to a sum of two
            for block in self.blocks:
                tokens = cast(Block, block).recomputed(self, tokens, levels)
        else:
            tokens = self.blocks(tokens)
        tokens = gradient_in_order(tokens)
        if self.token is None:
            patch_tokens, class_token = tokens, tokens.mean(2)
        else:
            patch_tokens, class_token = tokens[:, :, 1:], tokens[:, :, 0]
        return Output(
            logits=self.classify(class_token),
            features=patch_tokens.mT.unflatten(3, maps.shape[3:]),
            classify=self.classify,
            class_token=class_token,
            patch_tokens=patch_tokens,
            pooled_head=self.token is None,
        )

    def classify(self, pooled: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
        """The whole head: one linear layer."""
        logits: Tensor = self.head(pooled)
        return logits
