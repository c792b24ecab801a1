"""Spikformer against loops over steps, heads and tokens that keep the potentials by hand."""

from collections import defaultdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from estl.students import Spikformer
from estl.students.layers import PerToken
from estl.students.spikformer import (
    Block,
    PatchSplitting,
    SpikingSelfAttention,
    SpikingToken,
    softmax_free_attention,
)

# --- shapes and sizes


def test_48x48_with_two_poolings_gives_144_tokens_of_width_256() -> None:
    net = Spikformer(classes=7).eval()
    with torch.no_grad():
        output = net(torch.rand(1, 2, 2, 48, 48))
    assert output.patch_tokens.shape == (1, 2, 144, 256)
    assert output.features.shape == (1, 2, 256, 12, 12)
    assert output.class_token.shape == (1, 2, 256)
    assert output.logits.shape == (1, 2, 7)


def test_the_parameters_follow_from_the_layer_table() -> None:
    D, K, C, depth, r = 256, 10, 2, 2, 4
    convs = [(C, 32), (32, 64), (64, 128), (128, D), (D, D)]
    total = sum(9 * i * o + 2 * o for i, o in convs)
    linears = [(D, D)] * 4 + [(D, r * D), (r * D, D)]  # q, k, v, projection, MLP
    total += depth * sum(i * o + 2 * o for i, o in linears)
    total += D * K + K
    assert sum(p.numel() for p in Spikformer().parameters()) == total
    token = Spikformer(readout="token")
    assert sum(p.numel() for p in token.parameters()) == total + D


@pytest.mark.parametrize(
    ("poolings", "grid"), [(0, (11, 18)), (1, (6, 9)), (2, (3, 5)), (3, (2, 3)), (4, (1, 2))]
)
def test_each_pooling_halves_a_side_rounded_up(poolings: int, grid: tuple[int, int]) -> None:
    net = Spikformer(3, dim=8, depth=1, heads=2, poolings=poolings)
    output = net(torch.rand(2, 2, 2, 11, 18))
    assert output.features.shape == (2, 2, 8, *grid)
    assert output.patch_tokens.shape == (2, 2, grid[0] * grid[1], 8)


def test_only_the_last_stages_pool() -> None:
    kinds = [type(m[0]).__name__ for m in PatchSplitting(2, 8, 2).stages if len(list(m.children()))]
    assert kinds == ["Conv2d", "Conv2d", "Conv2d", "MaxPool", "Conv2d", "MaxPool"]


@pytest.mark.parametrize("readout", ["mean", "token"])
def test_features_are_the_patch_tokens_on_their_grid_row_by_row(readout: str) -> None:
    net = Spikformer(3, dim=8, depth=1, heads=2, readout=readout)
    output = net(torch.rand(2, 3, 2, 12, 20))
    assert output.features.shape == (2, 3, 8, 3, 5)
    for row in range(3):
        for column in range(5):
            token = output.patch_tokens[:, :, row * 5 + column]
            assert torch.equal(output.features[..., row, column], token)


def test_the_mean_readout_classifies_the_mean_token() -> None:
    output = Spikformer(3, dim=8, depth=1, heads=2)(torch.rand(2, 3, 2, 12, 12))
    assert output.pooled_head
    torch.testing.assert_close(output.class_token, output.patch_tokens.mean(2))
    torch.testing.assert_close(output.classify(output.features.mean((-2, -1))), output.logits)


def test_the_token_readout_classifies_the_class_token() -> None:
    output = Spikformer(3, dim=8, depth=1, heads=2, readout="token")(torch.rand(2, 3, 2, 12, 12))
    assert not output.pooled_head
    torch.testing.assert_close(output.classify(output.class_token), output.logits)
    assert not torch.allclose(output.classify(output.features.mean((-2, -1))), output.logits)


def test_wrong_options_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="heads=3 must divide dim=16"):
        Spikformer(dim=16, heads=3)
    with pytest.raises(ValueError, match="dim=12 must be a multiple of 8"):
        Spikformer(dim=12, heads=2)
    with pytest.raises(ValueError, match="poolings=5 must be 0 to 4"):
        Spikformer(dim=16, poolings=5)
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match='readout must be "mean" or "token", got \'cls\''):
        Spikformer(dim=16, readout="cls")


def test_the_neuron_can_be_changed_but_the_attention_fires_at_one_half() -> None:
    net = Spikformer(dim=8, heads=2, depth=2, neuron={"decay": 0.75})
    lifs = [m for m in net.modules() if hasattr(m, "options")]
    assert all(m.options["decay"] == 0.75 and m.options["gain"] == 0.5 for m in lifs)
    attention = {id(block.attention.neuron) for block in net.blocks}
    for lif in lifs:
        assert lif.options["threshold"] == (0.5 if id(lif) in attention else 1.0)


# --- attention


@pytest.mark.parametrize(("N", "d"), [(50, 8), (8, 50), (16, 16)])
def test_attention_of_spikes_is_the_same_bit_for_bit_in_both_orders(N: int, d: int) -> None:
    q, k, v = (torch.rand(3, 2, 4, N, d) < 0.4).float()
    left, right = (q @ k.mT) @ v, q @ (k.mT @ v)
    assert torch.equal(left, right)
    assert torch.equal(softmax_free_attention(q, k, v), left)
    assert torch.equal(left, left.round())
    assert left.max() > 0


@pytest.mark.parametrize(("N", "d"), [(50, 8), (8, 50)])
def test_attention_takes_the_cheaper_order(N: int, d: int) -> None:
    q, k, v = torch.rand(3, 2, N, d)
    with FlopCounterMode(display=False) as counter:
        softmax_free_attention(q, k, v)
    assert counter.get_total_flops() == 2 * 2 * 2 * N * d * min(N, d)


# --- the transcription


def _normed(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, part: slice = slice(None)) -> Tensor:
    """Batch norm of eval mode, of a row of channels."""
    mean, var = norm.running_mean[part], norm.running_var[part]
    return norm.weight[part] * (x - mean) / (var + 1e-5).sqrt() + norm.bias[part]


class _Loop:
    """One step of one sample at a time in eval mode, potentials kept by hand."""

    def __init__(self) -> None:
        self.potential: dict[tuple[int, str], Tensor | float] = defaultdict(float)

    def lif(self, neuron: nn.Module, x: Tensor, threshold: float = 1.0, key: str = "") -> Tensor:
        """Fires where v >= threshold, with the slope of sigmoid(4 (v - threshold))."""
        v = 0.5 * self.potential[id(neuron), key] + 0.5 * x
        soft = torch.sigmoid(4 * (v - threshold))
        spike = (v >= threshold).to(v.dtype) + (soft - soft.detach())
        self.potential[id(neuron), key] = v * (1 - spike.detach())
        return spike

    def conv(self, layer: nn.Sequential, neuron: nn.Module, x: Tensor) -> Tensor:
        """Of a map (C,H,W)."""
        y = F.conv2d(x[None], layer[0].weight, padding=1)[0]
        return self.lif(neuron, _normed(layer[1], y.permute(1, 2, 0)).permute(2, 0, 1))

    def linear(self, layer: nn.Sequential, neuron: nn.Module, x: Tensor) -> Tensor:
        """Of tokens (N,D)."""
        y = torch.stack([_normed(layer[1], layer[0].weight @ token) for token in x])
        return self.lif(neuron, y)

    def attention(self, ssa: SpikingSelfAttention, x: Tensor) -> Tensor:
        (linear, norm), neuron = ssa.qkv
        N, D = x.shape
        qkv = []
        for i, name in enumerate("qkv"):
            part = slice(i * D, (i + 1) * D)
            current = torch.stack([_normed(norm, linear.weight[part] @ t, part) for t in x])
            qkv.append(self.lif(neuron, current, key=name))
        q, k, v = qkv
        d = D // ssa.heads
        rows = []
        for n in range(N):
            heads = []
            for h in range(ssa.heads):
                part = slice(h * d, (h + 1) * d)
                scores = torch.einsum("d,md->m", q[n, part], k[:, part])
                heads.append(torch.einsum("m,md->d", scores, v[:, part]))
            rows.append(torch.cat(heads))
        spikes = self.lif(ssa.neuron, ssa.scale * torch.stack(rows), threshold=0.5)
        return self.linear(*ssa.project, spikes)  # type: ignore[call-arg]

    def block(self, block: Block, x: Tensor) -> Tensor:
        x = x + self.attention(block.attention, x)
        first, first_lif, second, second_lif = block.mlp
        return x + self.linear(second, second_lif, self.linear(first, first_lif, x))

    def __call__(self, net: Spikformer, x: Tensor, poolings: int) -> tuple[Tensor, Tensor]:
        stages = list(net.patches.stages)
        for i in range(4):
            x = self.conv(stages.pop(0), stages.pop(0), x)
            if i >= 4 - poolings:
                stages.pop(0)
                x = F.max_pool2d(x[None], 3, 2, 1)[0]
        x = x + self.conv(*net.patches.position, x)  # type: ignore[call-arg]
        tokens = torch.stack([x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])])
        if net.token is not None:
            token = self.lif(net.token.neuron, net.token.current)
            tokens = torch.cat([token[None], tokens])
        for block in net.blocks:
            tokens = self.block(block, tokens)
        if net.token is None:
            read = tokens.sum(0) / len(tokens)
        else:
            read, tokens = tokens[0], tokens[1:]
        return net.head.weight @ read + net.head.bias, tokens


def _shake(net: nn.Module) -> None:
    """Norms away from where they start, so that every layer fires in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1.5, 2.5)
            nn.init.normal_(module.bias, 1.0, 0.5)
            module.momentum = 0.9


def test_self_attention_equals_a_loop_over_steps_heads_and_tokens() -> None:
    ssa = SpikingSelfAttention(16, heads=4, scale=0.25).double()
    x = torch.randint(0, 3, (2, 4, 7, 16)).double()
    _shake(ssa)
    ssa(x)  # moves the running statistics
    ssa.eval()
    actual = ssa(x)
    samples = []
    for b in range(2):
        loop = _Loop()
        samples.append(torch.stack([loop.attention(ssa, x[b, t]) for t in range(4)]))
    expected = torch.stack(samples)
    assert 0.05 < actual.mean() < 0.95
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(actual)
    parameters = list(ssa.parameters())
    torch.testing.assert_close(
        torch.autograd.grad((actual * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
    )


@pytest.mark.parametrize(("poolings", "readout"), [(2, "mean"), (3, "token")])
def test_the_net_equals_a_loop_over_steps_in_output_and_gradient(
    poolings: int, readout: str
) -> None:
    net = Spikformer(
        5, 3, dim=16, depth=2, heads=2, mlp_ratio=2, scale=0.5, poolings=poolings, readout=readout
    ).double()
    events = 3 * torch.rand(2, 4, 3, 11, 14, dtype=torch.float64)
    _shake(net)
    net(events)  # moves the running statistics
    net.eval()
    output = net(events)
    logits, tokens = [], []
    for b in range(2):
        loop = _Loop()
        steps = [loop(net, events[b, t], poolings) for t in range(4)]
        logits.append(torch.stack([step[0] for step in steps]))
        tokens.append(torch.stack([step[1] for step in steps]))
    torch.testing.assert_close(output.patch_tokens, torch.stack(tokens))
    torch.testing.assert_close(output.logits, torch.stack(logits))
    weight = torch.randn_like(output.logits)
    parameters = list(net.parameters())
    actual = torch.autograd.grad((output.logits * weight).sum(), parameters)
    expected = torch.autograd.grad((torch.stack(logits) * weight).sum(), parameters)
    torch.testing.assert_close(actual, expected)
    assert all(g.abs().sum() > 0 for g in actual)


# --- tokens


def test_the_norm_of_tokens_takes_its_statistics_over_samples_steps_and_tokens() -> None:
    x = torch.rand(2, 4, 9, 8, dtype=torch.float64)
    y = PerToken(nn.BatchNorm1d(8)).double()(x)
    mean = x.mean((0, 1, 2))
    var = ((x - mean) ** 2).mean((0, 1, 2))
    torch.testing.assert_close(y, (x - mean) / (var + 1e-5).sqrt())


def test_the_token_fires_as_its_current_says() -> None:
    token = SpikingToken(4)
    with torch.no_grad():
        token.current.copy_(torch.tensor([0.9, 1.2, 1.5, 2.0]))
    spikes = token(6)[0, :, 0]
    # v = c (1 - 2^-t) since the last spike reaches 1 never, after 3 steps, after 2, after 1.
    assert spikes.sum(0).tolist() == [0, 2, 3, 6]


def test_the_token_reads_the_patches_through_the_attention_alone() -> None:
    net = Spikformer(3, dim=16, depth=1, heads=1, scale=1.0, readout="token").double()
    _shake(net)
    a, b = 3 * torch.rand(2, 2, 4, 2, 12, 12, dtype=torch.float64)
    net(a)
    net.eval()
    assert not torch.allclose(net(a).logits, net(b).logits)
    net.blocks[0].attention.scale = 0.0
    torch.testing.assert_close(net(a).logits, net(b).logits)


def test_gradients_come_in_the_order_of_memory_that_the_maps_have() -> None:
    """Otherwise every residual layer copies its own, and the pools theirs twice."""
    net = Spikformer(dim=16, depth=2, heads=2)
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(module: nn.Module, args: Any, maps: Tensor) -> None:
        maps.register_hook(lambda grad: seen.append((maps, grad)))

    net.patches.register_forward_hook(watch)
    output = net(torch.rand(3, 4, 2, 12, 12))
    tokens = output.tokens
    (output.logits.square().sum() + tokens.mean(1).square().sum()).backward()
    ((maps, grad),) = seen
    assert grad.stride() == maps.stride()
