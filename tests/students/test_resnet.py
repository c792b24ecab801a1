"""Spiking ResNets against published parameter counts, and a loop over steps."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.students import ResNet, resnet18, resnet19, resnet34, resnet50
from estl.students.layers import PerStep
from estl.students.resnet import ResidualBlock


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_resnet19_has_the_parameters_of_tet() -> None:
    assert _count(resnet19(classes=10, in_channels=3)) == 12_630_858


@pytest.mark.parametrize(
    ("factory", "published"),
    [(resnet18, 11_689_512), (resnet34, 21_797_672), (resnet50, 25_557_032)],
)
def test_with_the_imagenet_stem_the_parameters_are_the_published_ones(
    factory: Callable[..., ResNet], published: int
) -> None:
    with torch.device("meta"):
        assert _count(factory(classes=1000, stem="7x7")) == published


@pytest.mark.parametrize(
    ("factory", "blocks", "convs", "expansion"),
    [
        (resnet18, (2, 2, 2, 2), "3,3", 1),
        (resnet34, (3, 4, 6, 3), "3,3", 1),
        (resnet50, (3, 4, 6, 3), "1,3,1", 4),
    ],
)
def test_the_parameters_follow_from_the_layer_table(
    factory: Callable[..., ResNet], blocks: tuple[int, ...], convs: str, expansion: int
) -> None:
    K, C = 7, 2
    total = 9 * C * 64 + 2 * 64
    width_in = 64
    for stage, number in enumerate(blocks):
        width = 64 * 2**stage
        for j in range(number):
            c = width_in
            kernels = [int(k) for k in convs.split(",")]
            for i, k in enumerate(kernels):
                out = width * expansion if i == len(kernels) - 1 else width
                total += k * k * c * out + 2 * out
                c = out
            if j == 0 and (stage > 0 or c != width_in):
                total += width_in * c + 2 * c
            width_in = c
    total += width_in * K + K
    with torch.device("meta"):
        net = factory(classes=K, in_channels=C)
    assert _count(net) == total
    assert net.dim == width_in == 512 * expansion


def test_the_stages_of_resnet19_have_the_shapes_of_tet() -> None:
    net = resnet19().eval()
    shapes: list[tuple[int, ...]] = []
    for part in [net.stem, *net.stages, *net.head]:
        part.register_forward_hook(lambda _, x, y: shapes.append(tuple(y.shape[2:])))
    with torch.no_grad():
        output = net(torch.rand(1, 1, 3, 32, 32))
    assert shapes == [
        (64, 32, 32),
        (128, 32, 32),
        (256, 16, 16),
        (512, 8, 8),
        (256,),
        (256,),
        (10,),
    ]
    assert [len(stage) for stage in net.stages] == [3, 3, 2]
    assert output.features.shape == (1, 1, 512, 8, 8)


def test_the_imagenet_stem_quarters_the_image() -> None:
    net = ResNet((1,), (8,), stem="7x7")
    assert net(torch.rand(1, 2, 3, 33, 64)).features.shape == (1, 2, 8, 9, 16)


def test_the_shortcut_is_a_convolution_only_where_shapes_change() -> None:
    assert isinstance(ResidualBlock(8, 8).shortcut, nn.Identity)
    assert isinstance(ResidualBlock(8, 16).shortcut, PerStep)
    assert isinstance(ResidualBlock(8, 8, stride=2).shortcut, PerStep)


class _Loop:
    """One step of a net in eval mode at a time, potentials kept by hand."""

    def __init__(self) -> None:
        self.potential: dict[nn.Module, Tensor | float] = {}  # keyed by the layer before or the LIF

    def conv(self, layer: nn.Sequential, x: Tensor) -> Tensor:
        conv, norm = layer
        x = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
        return norm.weight[:, None, None] * x + norm.bias[:, None, None]

    def lif(self, neuron: nn.Module, x: Tensor) -> Tensor:
        """Fires where v > 1; the slope max(0, 1-|v-1|) comes from its antiderivative."""
        v = 0.5 * self.potential.get(neuron, 0.0) + x
        u = (v - 1).clamp(-1, 1)
        soft = u - u * u.abs() / 2
        spike = (v > 1).to(v.dtype) + (soft - soft.detach())
        self.potential[neuron] = v * (1 - spike)
        return spike

    def block(self, block: ResidualBlock, x: Tensor) -> Tensor:
        *first, last = (layer for layer in block.residual if isinstance(layer, PerStep))
        y = x
        for conv in first:
            y = self.lif(conv, self.conv(conv, y))
        y = self.conv(last, y)
        shortcut = block.shortcut
        x = x if isinstance(shortcut, nn.Identity) else self.conv(shortcut, x)
        return self.lif(block.neuron, x + y)

    def __call__(self, net: ResNet, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.lif(net.stem[1], self.conv(net.stem[0], x))
        if len(net.stem) == 3:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in cast(Any, net.stages):
            for block in stage:
                x = self.block(block, x)
        pooled = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
        if isinstance(net.head, nn.Sequential):
            first, neuron, last = net.head
            pooled = self.lif(neuron, pooled @ first.weight.T + first.bias)
        else:
            last = net.head
        return pooled @ last.weight.T + last.bias, x


@pytest.mark.parametrize(
    "options",
    [{"hidden": 12}, {"bottleneck": True}, {"stem": "7x7"}],
    ids=["resnet19", "resnet50", "imagenet"],
)
def test_the_net_equals_a_loop_over_steps_in_output_and_gradient(options: dict) -> None:
    net = ResNet((2, 1), (8, 12), classes=5, in_channels=2, **options).double()
    events = torch.rand(2, 4, 2, 10, 12, dtype=torch.float64) * 2
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = 0.9
    net(events)  # moves the running statistics
    net.eval()
    output = net(events)
    loop = _Loop()
    steps = [loop(net, events[:, t]) for t in range(4)]
    logits, features = (torch.stack(x, dim=1) for x in zip(*steps, strict=True))
    assert 0.05 < output.features.mean() < 0.95
    torch.testing.assert_close(output.features, features)
    torch.testing.assert_close(output.logits, logits)
    weight = torch.randn_like(logits)
    parameters = list(net.parameters())
    actual = torch.autograd.grad((output.logits * weight).sum(), parameters)
    expected = torch.autograd.grad((logits * weight).sum(), parameters)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"bottleneck": True}], ids=["basic", "bottleneck"])
def test_one_sample_at_one_step_has_half_the_gradient_of_the_same_twice(
    options: dict, training: bool
) -> None:
    net = ResNet((1, 1), (8, 12), classes=5, in_channels=2, **options).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, mean=0.5, std=0.3)
    net.train(training)
    events, weight = 2 * torch.rand(1, 1, 2, 8, 8).double(), torch.randn(5).double()
    parameters = list(net.parameters())

    def gradients(events: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((net(events).logits * weight).sum(), parameters)

    for hooked in (False, True):
        if hooked:
            cast(Any, net.stages[1])[0].residual.register_forward_hook(lambda *_: None)
        found, twice = gradients(events), gradients(events.repeat(2, 1, 1, 1, 1))
        assert all(g.any() for g in found)
        torch.testing.assert_close(found, tuple(g / 2 for g in twice))


def test_classify_is_the_whole_head_with_its_neuron_stepped_over_time() -> None:
    net = ResNet((1,), (8,), classes=5, hidden=16)
    output = net(torch.rand(2, 4, 3, 6, 6))
    pooled = output.features.mean((-2, -1))
    assert torch.equal(output.classify(pooled), output.logits)
    # Any number of rows, each with its own potentials: places folded into the batch, as TSE asks.
    rows = output.features.permute(0, 3, 4, 1, 2).flatten(0, 2)
    places = output.classify(rows)
    assert places.shape == (2 * 36, 4, 5)
    torch.testing.assert_close(places[7:8], output.classify(rows[7:8]))
    # Time matters: the last step alone, from rest, differs from the last step after the others.
    strong = 3 * torch.rand(64, 4, 8)
    assert not torch.allclose(net.classify(strong)[:, 3:], net.classify(strong[:, 3:]))


def test_stages_and_widths_must_pair_up_and_the_stem_be_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"blocks=\(1, 1\) and widths=\(8,\)"):
        ResNet((1, 1), (8,))
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match="stem='5x5' must be one of 3x3, 7x7"):
        ResNet((1,), (8,), stem="5x5")
