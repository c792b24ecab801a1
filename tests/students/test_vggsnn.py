"""VGGSNN against a loop over steps that keeps the potentials by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.students import VGGSNN


def test_the_default_net_has_the_parameters_of_tet() -> None:
    net = VGGSNN()
    assert sum(p.numel() for p in net.parameters()) == 9_271_498
    assert net.head.in_features == 4608


def test_the_stages_of_the_default_net_have_the_shapes_of_tet() -> None:
    net = VGGSNN().eval()
    shapes: list[tuple[int, ...]] = []
    for layer in net.layers:
        layer.register_forward_hook(lambda _, x, y: shapes.append(tuple(y.shape[2:])))
    with torch.no_grad():
        output = net(torch.rand(1, 1, 2, 48, 48))
    stages = [shape for i, shape in enumerate(shapes) if i == 0 or shape != shapes[i - 1]]
    assert stages == [
        (64, 48, 48),
        (128, 48, 48),
        (128, 24, 24),
        (256, 24, 24),
        (256, 12, 12),
        (512, 12, 12),
        (512, 6, 6),
        (512, 3, 3),
    ]
    assert len(shapes) == 8 * 2 + 4
    assert output.features.shape == (1, 1, 512, 3, 3)
    assert output.class_token.shape == (1, 1, 512)
    assert output.logits.shape == (1, 1, 10)


def _normed(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm of eval mode."""
    mean, var, weight, bias = (
        p[:, None, None] for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return weight * (x - mean) / (var + 1e-5).sqrt() + bias


def _spike(v: Tensor) -> Tensor:
    """1 where v > 1; the slope max(0, 1-|v-1|) comes from its antiderivative."""
    u = (v - 1).clamp(-1, 1)
    soft = u - u * u.abs() / 2
    return (v > 1).to(v.dtype) + (soft - soft.detach())


def _step_by_step(net: VGGSNN, events: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features of a net in eval mode: all layers at step t before any at t + 1."""
    stages = [m for m in net.layers if isinstance(m, nn.Sequential)]
    potential: list[Tensor | float] = [0.0] * len(stages)
    logits, features = [], []
    for t in range(events.shape[1]):
        x = events[:, t]
        for i, stage in enumerate(stages):
            if isinstance(stage[0], nn.AvgPool2d):
                rows = (x[..., ::2, :] + x[..., 1::2, :]) / 2
                x = (rows[..., ::2] + rows[..., 1::2]) / 2
                continue
            conv, norm = stage
            x = _normed(norm, F.conv2d(x, conv.weight, conv.bias, padding=1))
            v = 0.5 * potential[i] + x
            x = _spike(v)
            potential[i] = v * (1 - x)
        features.append(x)
        read = x.mean((2, 3)) if net.pooled else x.reshape(len(x), -1)
        logits.append(read @ net.head.weight.T + net.head.bias)
    return torch.stack(logits, 1), torch.stack(features, 1)


@pytest.mark.parametrize("pooled", [False, True])
def test_the_net_equals_a_loop_over_steps_in_output_and_gradient(pooled: bool) -> None:
    net = VGGSNN(5, 3, frame_size=(8, 12), layers=(6, "AP", 8, 10, "AP"), pooled=pooled).double()
    events = torch.rand(3, 5, 3, 8, 12, dtype=torch.float64) * 2
    net(events)  # moves the running statistics
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.05, 0.3)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, std=0.3)
    net.eval()
    output = net(events)
    logits, features = _step_by_step(net, events)
    assert 0.05 < output.features.mean() < 0.95
    torch.testing.assert_close(output.features, features)
    torch.testing.assert_close(output.logits, logits)
    weight = torch.randn_like(logits)
    parameters = list(net.parameters())
    actual = torch.autograd.grad((output.logits * weight).sum(), parameters)
    expected = torch.autograd.grad((logits * weight).sum(), parameters)
    torch.testing.assert_close(actual, expected)


def test_the_flattened_head_reads_places_and_refuses_pooled_features() -> None:
    net = VGGSNN(5, frame_size=(8, 8), layers=(6, "AP"))
    output = net(torch.rand(2, 3, 2, 8, 8))
    assert not output.pooled_head
    assert torch.equal(output.classify(output.features.flatten(2)), output.logits)
    with pytest.raises(ValueError, match=r"96 features.*got 6.*VGGSNN\(pooled=True\)") as error:
        output.classify(output.class_token)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"pooled": True}, {"frame_size": (2, 2)}])
def test_a_pooled_head_or_one_place_classifies_pooled_features(options: dict) -> None:
    net = VGGSNN(5, layers=(6, "AP"), **options)
    output = net(torch.rand(2, 3, 2, 2, 2))
    assert output.pooled_head
    torch.testing.assert_close(output.classify(output.features.mean((-2, -1))), output.logits)
    torch.testing.assert_close(output.class_token, output.features.mean((-2, -1)))


def test_the_pooled_net_takes_any_size_and_drops_the_last_row_of_an_odd_one() -> None:
    net = VGGSNN(5, layers=(6, "AP", 8, "AP"), pooled=True)
    assert net.head.in_features == net.dim == 8
    assert net(torch.rand(1, 2, 2, 9, 15)).features.shape == (1, 2, 8, 2, 3)


def test_the_flattened_net_takes_an_odd_frame_size() -> None:
    net = VGGSNN(5, frame_size=(9, 15), layers=(6, "AP", 8, "AP"))
    assert net.head.in_features == 8 * 2 * 3
    assert net(torch.rand(1, 2, 2, 9, 15)).logits.shape == (1, 2, 5)


def test_wrong_sizes_and_layers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"8x10.*frame_size=\(8, 8\)"):
        VGGSNN(frame_size=(8, 8), layers=(4,))(torch.rand(1, 2, 2, 8, 10))
    with pytest.raises(ValueError, match="3x8 is too small for 2 poolings"):
        VGGSNN(frame_size=(3, 8), layers=(4, "AP", "AP"))
    with pytest.raises(ValueError, match="3x8 is too small for 2 poolings"):
        VGGSNN(layers=(4, "AP", "AP"), pooled=True)(torch.rand(1, 2, 2, 3, 8))
    with pytest.raises(ValueError, match=r"layers=\('AP',\) holds no convolution"):
        VGGSNN(layers=("AP",))
    with pytest.raises(ValueError, match=r"widths > 0.*got 0"):
        VGGSNN(layers=(4, 0))


def test_the_neuron_can_be_changed_by_name() -> None:
    net = VGGSNN(frame_size=(4, 4), layers=(4, "AP", 4), neuron={"detach_reset": True})
    options = [m.options for m in net.layers if hasattr(m, "options")]
    assert len(options) == 2
    assert all(o["detach_reset"] and o["threshold"] == 1.0 for o in options)
