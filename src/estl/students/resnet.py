"""Spiking ResNets: TET's ResNet-19 (Deng et al., ICLR 2022), and ResNet-18/34/50 on its blocks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons import LIF
from estl.neurons.fused import one_forward
from estl.neurons.norm import hooked
from estl.students.layers import (
    Layers,
    PerStep,
    Readout,
    conv_norm,
    fire,
    one_by_one,
    time_first,
)
from estl.students.pooling import MaxPool
from estl.students.recompute import again, ending_with_neurons
from estl.types import Output

Neuron = Callable[[], nn.Module]
Stem = Literal["3x3", "7x7"]


class ResidualBlock(nn.Module):
    """y = LIF(residual(x) + shortcut(x)).

    The residual is two 3x3 convolutions to `width` channels or, in a bottleneck, a 1x1, a 3x3 and a
    1x1 convolution, the last to 4 * width. The first 3x3 has the stride. Where the shape changes,
    the shortcut is a 1x1 convolution and norm.

    >>> ResidualBlock(8, 4, stride=2, bottleneck=True)(torch.rand(1, 4, 8, 6, 6)).shape
    torch.Size([1, 4, 16, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        bottleneck: bool = False,
        neuron: Neuron = LIF.tet,
    ) -> None:
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        if bottleneck:
            first, middle = conv_norm(in_channels, width, 1), conv_norm(width, width, stride=stride)
            last = conv_norm(width, out_channels, 1)
            self.residual = Layers(first, neuron(), middle, neuron(), last)
        else:
            first, last = conv_norm(in_channels, width, stride=stride), conv_norm(width, width)
            self.residual = Layers(first, neuron(), last)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else conv_norm(in_channels, out_channels, 1, stride=stride)
        )
        self.neuron = neuron()

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T D h w"]:
        """Spikes of the block."""
        if self._called_as_a_whole():
            spikes: Tensor = self.neuron(self.residual(x) + self.shortcut(x))
            return spikes
        return self._end(one_by_one(self._inner(), x), x)

    def recomputed(self, student: nn.Module, x: Tensor) -> Tensor:
        """The same, with each convolution recomputed in its backward pass."""
        if self._called_as_a_whole() or hooked(self):
            return again(student, self, x)
        inner = x
        for part in ending_with_neurons(self._inner()):
            inner = again(student, part, inner)
        return again(student, self._end, inner, x)

    def _called_as_a_whole(self) -> bool:
        plain = type(self.residual) is Layers and not torch.compiler.is_compiling()
        return not plain or hooked(self.residual)

    def _inner(self) -> nn.Sequential:
        return cast(nn.Sequential, self.residual[:-1])

    def _end(self, inner: Tensor, x: Tensor) -> Tensor:
        """Spikes for the last convolution of the residual, of `inner`, plus the shortcut of `x`."""
        return fire(self.residual[-1], self.neuron, inner, x, self.shortcut)


class ResNet(nn.Module):
    """Spiking ResNet for images of any size; `resnet18` to `resnet50` build the named ones.

    A convolutional stem, stages of residual blocks (stride 1 in the first, 2 at the start of the
    others), global average pooling, and a head.

    Args:
        blocks: number of blocks of each stage.
        widths: width of each stage.
        classes: number of classes K.
        in_channels: channels C of the events.
        bottleneck: whether blocks have three convolutions, four times as wide outside as inside.
        hidden: width of a fully connected LIF layer before the last linear one, or None.
        stem: "3x3" for small images, or "7x7" as on ImageNet: stride 2, then 3x3 max pooling of
            stride 2.
        stem_width: channels of the stem.
        neuron: changes to the neuron `LIF.tet`, such as {"detach_reset": True}.

    Raises:
        ValueError: if `blocks` and `widths` differ in length, or for an unknown `stem`.

    >>> net = ResNet(blocks=(1, 1), widths=(8, 16), classes=5)
    >>> output = net(torch.rand(2, 4, 3, 12, 12))
    >>> output.logits.shape, output.features.shape
    (torch.Size([2, 4, 5]), torch.Size([2, 4, 16, 6, 6]))
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        classes: int = 10,
        in_channels: int = 3,
        *,
        bottleneck: bool = False,
        hidden: int | None = None,
        stem: Stem = "3x3",
        stem_width: int = 64,
        neuron: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.recompute = False
        if len(blocks) != len(widths):
            raise ValueError(
                f"blocks={tuple(blocks)} and widths={tuple(widths)} must have one entry a stage"
            )
        if stem not in get_args(Stem):
            raise ValueError(f"stem={stem!r} must be one of {', '.join(get_args(Stem))}")
        lif = partial(LIF.tet, **(neuron or {}))
        if stem == "3x3":
            self.stem = Layers(conv_norm(in_channels, stem_width), lif())
        else:
            self.stem = Layers(
                conv_norm(in_channels, stem_width, 7, stride=2),
                lif(),
                PerStep(MaxPool(3, stride=2, padding=1)),
            )
        stages = []
        channels = stem_width
        for i, (number, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = nn.Sequential()
            for j in range(number):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(
                    ResidualBlock(channels, width, stride, bottleneck=bottleneck, neuron=lif)
                )
                channels = 4 * width if bottleneck else width
            stages.append(stage)
        self.stages = nn.Sequential(*stages)
        self.head: nn.Module
        if hidden is None:
            self.head = Readout(channels, classes)
        else:
            spiking = Readout(channels, hidden)
            # It reads rates of about 0.2 and no norm follows: with PyTorch's initialization its LIF
            # would be silent (docs/log.md).
            nn.init.normal_(spiking.weight, std=5 / channels**0.5)
            self.head = nn.Sequential(spiking, lif(), Readout(hidden, classes))
        self.classes, self.in_channels, self.dim = classes, in_channels, channels

    @one_forward()
    def forward(self, events: Tensor) -> Output:
        """Logits and features of `events` (B,T,C,H,W); ValueError if these do not fit."""
        x = time_first(events, self.in_channels)
        if self.recompute:
            features = again(self, self.stem, x, levels=None)
            for stage in self.stages:
                for block in stage.children():
                    features = cast(ResidualBlock, block).recomputed(self, features)
        else:
            features = self.stages(self.stem(x))
        pooled = features.mean((-2, -1))
        return Output(self.classify(pooled), features, self.classify, class_token=pooled)

    def classify(self, pooled: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
        """The whole head; its LIF, if it has one, runs over T."""
        logits: Tensor = self.head(pooled)
        return logits


def resnet18(classes: int = 10, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-18: 2-2-2-2 basic blocks of 64, 128, 256, 512 channels. Options are those of `ResNet`.

    >>> sum(p.numel() for p in resnet18(classes=1000, stem="7x7").parameters())
    11689512
    """
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), classes, in_channels, **options)


def resnet19(classes: int = 10, in_channels: int = 3, **options: Any) -> ResNet:
    """TET's ResNet-19: 3-3-2 basic blocks of 128, 256, 512 channels, a head of 256 spiking units.

    >>> sum(p.numel() for p in resnet19().parameters())
    12630858
    """
    return ResNet((3, 3, 2), (128, 256, 512), classes, in_channels, hidden=256, **options)


def resnet34(classes: int = 10, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-34: 3-4-6-3 basic blocks of 64, 128, 256, 512 channels."""
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), classes, in_channels, **options)


def resnet50(classes: int = 10, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-50: 3-4-6-3 bottleneck blocks of 64, 128, 256, 512 inner channels, so D = 2048."""
    widths = (64, 128, 256, 512)
    return ResNet((3, 4, 6, 3), widths, classes, in_channels, bottleneck=True, **options)
