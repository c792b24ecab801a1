"""A small CLIP vision tower and its training objective, for use where the Hub is out of reach."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from estl.guidance.teacher import CLIP_MEAN, CLIP_STD
from estl.neurons.linear import make_linears_fast
from estl.types import Batch, Loss, Output, Supervision

Objective = Literal["embedding", "linear"]


class ClipTower(nn.Module):
    """A CLIP vision tower with a classifier, as a student of still images (T = 1).

    It has two heads: one reads the pooled feature (`logits`), one the mean of the patches
    (`classify`). If a tower is trained only through its class token, its patches, from which the
    distillation's target is made, are far less informative (docs/log.md). A head is a `CosineHead`
    (objective="embedding") or a linear layer ("linear").

    Args:
        classes: number of classes K.
        image_size: side of the square that images are resized to, a multiple of `patch`.
        patch: side of a patch in pixels.
        dim: width E, a multiple of `heads`.
        depth: number of layers.
        heads: attention heads.
        objective: kind of the heads.

    Raises:
        ValueError: sizes that do not divide, or an unknown objective.

    >>> output = ClipTower(5, image_size=16, patch=8, dim=16, depth=1, heads=2)(
    ...     torch.rand(2, 1, 3, 16, 16))
    >>> output.logits.shape, output.features.shape
    (torch.Size([2, 1, 5]), torch.Size([2, 1, 16, 2, 2]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        *,
        image_size: int = 32,
        patch: int = 4,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        objective: Objective = "embedding",
    ) -> None:
        super().__init__()
        if min(image_size, patch, dim, depth, heads) < 1:
            raise ValueError(
                f"image_size={image_size}, patch={patch}, dim={dim}, depth={depth} and "
                f"heads={heads} must be at least 1"
            )
        if objective not in get_args(Objective):
            raise ValueError(
                f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}"
            )
        if image_size % patch or dim % heads:
            raise ValueError(
                f"image_size={image_size} must be a multiple of patch={patch}, and dim={dim} of "
                f"heads={heads}"
            )
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            hidden_size=dim,
            intermediate_size=4 * dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            image_size=image_size,
            patch_size=patch,
        )
        self.tower = CLIPVisionModel(config)
        make_linears_fast(self.tower)
        self.image_size, self.grid = image_size, image_size // patch
        self.dim, self.in_channels, self.classes = dim, 3, classes
        head = CosineHead if objective == "embedding" else nn.Linear
        self.head: nn.Module = head(dim, classes)
        self.patch_head: nn.Module = head(dim, classes)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def forward(self, events: Tensor) -> Output:
        """Logits and patch features of images (B,1,3,H,W) in [0,1]."""
        x = events[:, 0]
        size = (self.image_size, self.image_size)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0.0, 1.0)
        out = self.tower(pixel_values=(x - self.mean) / self.std)
        pooled = out.pooler_output[:, None]
        patches = out.last_hidden_state[:, 1:].transpose(1, 2)
        return Output(
            logits=self.head(pooled),
            features=patches.unflatten(2, (self.grid, self.grid))[:, None],
            classify=self.patch_head,
            class_token=pooled,
            pooled_head=False,
        )


class BothHeads(Supervision):
    """CE(logits, label) + CE(classify(mean of the patches), label), see `ClipTower`."""

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        patches = output.classify(output.features.mean((-2, -1)))
        pooled = F.cross_entropy(output.logits.mean(1), batch.target)
        patches = F.cross_entropy(patches.mean(1), batch.target)
        return Loss(pooled + patches, {"pooled": pooled, "patches": patches})


class CosineHead(nn.Module):
    """Logits against learned class embeddings w_k, in place of CLIP's text embeddings:

        logit_k = exp(s) * cos(P x, w_k),    exp(s) <= 100

    with a learned scale s (Radford et al. 2021, section 2.3).
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        self.embeddings = nn.Parameter(torch.randn(classes, dim))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows K"]:
        """Logits of pooled features."""
        cosine = F.normalize(self.project(x), dim=-1) @ F.normalize(self.embeddings, dim=-1).T
        return self.scale.exp().clamp(max=100.0) * cosine
