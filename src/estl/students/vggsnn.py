"""VGGSNN of TET (Deng et al., ICLR 2022), the reference network for DVS-CIFAR10."""

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons import LIF
from estl.neurons.fused import one_forward
from estl.students.layers import Layers, PerStep, Readout, conv_norm, time_first
from estl.students.lean import leanly
from estl.students.pooling import AvgPool
from estl.types import Output

Layer = int | Literal["AP"]
"""Width of a convolution, or 2x2 average pooling."""


class VGGSNN(nn.Module):
    """Spiking VGG: 3x3 convolution (with bias), batch norm and LIF at each width; average pooling.

    The defaults are TET's net, 64-128-AP-256-256-AP-512-512-AP-512-512-AP on 2x48x48 with one
    linear layer on the flattened maps: 9,271,498 parameters.

    Args:
        classes: number of classes K.
        in_channels: channels C of the events.
        frame_size: (H,W) of the events. The pooled variant also takes any other size.
        layers: widths of the convolutions, and "AP" for 2x2 average pooling, which drops the last
            row or column of an odd size.
        pooled: put the linear layer on the mean over places (D -> K); TET's is on the flattened
            maps (D*H*W -> K). TSE needs this, since it classifies each place.
        neuron: changes to the neuron `LIF.tet`, such as {"detach_reset": True}.

    Raises:
        ValueError: if `layers` has no width, or anything other than widths and "AP", or pools
            `frame_size` down to nothing.

    >>> import torch
    >>> net = VGGSNN(classes=5, frame_size=(8, 8), layers=(8, "AP", 16, "AP"))
    >>> output = net(torch.rand(3, 4, 2, 8, 8))
    >>> output.logits.shape, output.features.shape
    (torch.Size([3, 4, 5]), torch.Size([3, 4, 16, 2, 2]))
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 2,
        frame_size: tuple[int, int] = (48, 48),
        *,
        layers: Sequence[Layer] = (64, 128, "AP", 256, 256, "AP", 512, 512, "AP", 512, 512, "AP"),
        pooled: bool = False,
        neuron: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.recompute = False
        stages: list[nn.Module] = []
        width = in_channels
        for layer in layers:
            if layer == "AP":
                stages.append(PerStep(AvgPool(2)))
            elif isinstance(layer, int) and layer > 0:
                stages += [conv_norm(width, layer, bias=True), LIF.tet(**(neuron or {}))]
                width = layer
            else:
                raise ValueError(f'layers must hold widths > 0 and "AP", got {layer!r}')
        if len(stages) == list(layers).count("AP"):
            raise ValueError(f"layers={tuple(layers)} holds no convolution: add a width")
        self.classes, self.in_channels, self.dim = classes, in_channels, width
        self.frame_size, self.pooled = tuple(frame_size), pooled
        self.poolings = list(layers).count("AP")
        H, W = self._grid(*frame_size)
        self.layers = Layers(*stages)
        self.head = Readout(width if pooled else width * H * W, classes)
        if pooled:
            # It reads rates of about 0.1: with PyTorch's initialization its logits are too small to
            # learn quickly (docs/log.md).
            nn.init.normal_(self.head.weight, std=5 / width**0.5)
        self.pooled_head = pooled or H * W == 1

    def _grid(self, H: int, W: int) -> tuple[int, int]:
        """Size of the last maps."""
        h, w = H >> self.poolings, W >> self.poolings
        if h == 0 or w == 0:
            raise ValueError(
                f"an image of {H}x{W} is too small for {self.poolings} poolings: give at least"
                f" {2**self.poolings}x{2**self.poolings} or fewer AP in layers"
            )
        return h, w

    @one_forward()
    def forward(self, events: Tensor) -> Output:
        """Logits and features of `events` (B,T,C,H,W); ValueError if these do not fit."""
        x = time_first(events, self.in_channels)
        size = tuple(x.shape[-2:])
        if not self.pooled and size != self.frame_size:
            raise ValueError(
                f"events are {size[0]}x{size[1]}, but the head was built for"
                f" frame_size={self.frame_size}: build the student with the size of the data"
            )
        self._grid(*size)
        features = leanly(self, self.layers, x) if self.recompute else self.layers(x)
        pooled = features.mean((-2, -1))
        return Output(
            logits=self.classify(pooled if self.pooled else features.flatten(2)),
            features=features,
            classify=self.classify,
            class_token=pooled,
            pooled_head=self.pooled_head,
        )

    def classify(self, pooled: Float[Tensor, "B T F"]) -> Float[Tensor, "B T K"]:
        """The whole head, on pooled features (B,T,D) or, if not `pooled`, flattened (B,T,D*H*W)."""
        if pooled.shape[-1] != self.head.in_features:
            raise ValueError(
                f"this head reads {self.head.in_features} features a step, got {pooled.shape[-1]}:"
                " to classify pooled features build the student as VGGSNN(pooled=True)"
            )
        logits: Tensor = self.head(pooled)
        return logits
