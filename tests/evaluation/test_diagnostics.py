"""Diagnostics: counts against scalar loops, similarities against definitions, limits."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from estl.evaluation.accuracy import evaluate
from estl.evaluation.diagnostics import (
    diagnose,
    erased_per_step,
    prediction_entropy,
    step_cka,
    step_cosine,
)
from estl.evaluation.energy import AC_PJ, MAC_PJ, Activity, watch
from estl.neurons import LIF
from estl.students import VGGSNN, ResNet, Spikformer
from estl.students.adapters import from_spikingjelly
from estl.students.spikformer import SpikingSelfAttention, softmax_free_attention
from estl.supervision import TET, TRE, TSE, MeanCE, Schedule, Sum, tse_keep
from estl.types import Batch, direct_code

CPU = torch.device("cpu")


def _watch(net: nn.Module, x: Tensor, places: int = 1) -> Activity:
    activity = Activity()
    with torch.no_grad(), watch(net, activity, places):
        net(x)
    return activity


# Operations


def scalar_conv(x: Tensor, conv: nn.Conv2d) -> tuple[float, int]:
    """Sum of inputs over the synapses of a convolution, and their number, padding left out."""
    B, C, H, W = x.shape
    sizes: Any = conv.kernel_size, conv.stride, conv.dilation, conv.padding
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = sizes
    oh = (H + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (W + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    received, dense = 0.0, 0
    for b in range(B):
        for o in range(conv.out_channels):
            group = o // (conv.out_channels // conv.groups)
            for c in range(group * C // conv.groups, (group + 1) * C // conv.groups):
                for i in range(oh):
                    for j in range(ow):
                        for u in range(kh):
                            for v in range(kw):
                                y, z = i * sh - ph + u * dh, j * sw - pw + v * dw
                                if 0 <= y < H and 0 <= z < W:
                                    received += x[b, c, y, z].item()
                                    dense += 1
    return received, dense


CONVOLUTIONS = [
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 3, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (2, 3), padding=(0, 1), groups=2),
    nn.Conv2d(2, 2, 3, dilation=2, padding=2),
    nn.Conv2d(2, 3, 1, stride=2),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_operations_of_a_convolution_equal_a_scalar_loop(conv: nn.Conv2d) -> None:
    spikes = torch.randint(0, 3, (2, conv.in_channels, 5, 6)).float()
    received, dense = scalar_conv(spikes, conv)
    layer = _watch(nn.Sequential(conv), spikes).operations["0"]
    assert (layer.acs, layer.macs, layer.dense) == (received, 0.0, dense)
    values = torch.rand(2, conv.in_channels, 5, 6)
    layer = _watch(nn.Sequential(conv), values).operations["0"]
    assert (layer.acs, layer.macs) == (0.0, dense)
    assert layer.picojoules == pytest.approx(MAC_PJ * dense)


def test_at_rate_one_additions_are_as_many_as_dense_operations() -> None:
    for conv in CONVOLUTIONS:
        layer = _watch(nn.Sequential(conv), torch.ones(2, conv.in_channels, 5, 6)).operations["0"]
        assert layer.acs == layer.dense


@pytest.mark.parametrize(("pool", "places"), [(2, 1), ((1, 3), 1)])
def test_a_pooled_spike_reaches_each_synapse_behind_the_pooling(
    pool: int | tuple[int, int], places: int
) -> None:
    spikes = (torch.rand(3, 2, 6, 6) < 0.3).float()
    net = nn.Sequential(nn.AvgPool2d(pool), nn.Conv2d(2, 5, 1))
    assert _watch(net, spikes).operations["1"].acs == pytest.approx(5 * spikes.sum().item())


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def test_the_head_reads_a_mean_over_places_spike_by_spike() -> None:
    spikes = (torch.rand(3, 2, 7, 6, 6) < 0.3).float()
    net = nn.Sequential(nn.Flatten(-2), Mean(), nn.Linear(7, 5))
    layer = _watch(net, spikes, places=36).operations["2"]
    assert layer.acs == pytest.approx(5 * spikes.sum().item(), rel=1e-5)
    assert _watch(net, spikes).operations["2"].macs == 3 * 2 * 7 * 5


def test_one_other_value_in_any_batch_makes_macs_of_a_layer() -> None:
    net, activity = nn.Sequential(nn.Linear(4, 5)), Activity()
    with watch(net, activity):
        net(torch.ones(3, 4))
        assert activity.operations["0"].acs == 60
        net(torch.tensor([[0.0, 1.0, 1.0, 0.3]]))
        net(torch.ones(3, 4))
    assert (activity.operations["0"].acs, activity.operations["0"].macs) == (0.0, 140.0)


def test_images_of_eight_bits_make_macs_and_an_image_for_all_steps_is_read_once() -> None:
    net = VGGSNN(3, 2, (8, 8), layers=(4, "AP", 4), pooled=True).eval()
    image = torch.randint(0, 256, (2, 2, 8, 8)) / 255
    static, moving = direct_code(image, 4), direct_code(image, 4).contiguous()
    once = _watch(net, static, 16).operations["layers.0.0"]
    each = _watch(net, moving, 16).operations["layers.0.0"]
    assert once.macs == 2 * 2 * 4 * (6 * 6 * 9 + 4 * 6 * 6 + 4 * 4)
    assert each.macs == 4 * once.macs
    behind = _watch(net, moving, 16).operations["layers.3.0"]  # of pooled spikes
    assert (behind.macs, min(behind.scales)) == (0.0, 4)


def test_normalized_counts_make_macs_whatever_they_are_divided_by() -> None:
    """Quarters are natural numbers of four, as spikes behind a pooling of 2x2 are."""
    net = VGGSNN(3, 2, (8, 8), layers=(4, "AP", 4), pooled=True).eval()
    counts = torch.randint(0, 5, (2, 3, 2, 8, 8)).float()
    layer = _watch(net, counts / 4, 16).operations["layers.0.0"]
    assert (layer.acs, layer.macs) == (0.0, layer.dense)
    assert _watch(net, counts, 16).operations["layers.0.0"].macs == 0.0


def _spiking(B: int = 2, T: int = 3, C: int = 2, size: int = 8) -> Tensor:
    return torch.poisson(torch.ones(B, T, C, size, size))


@pytest.mark.parametrize(("N", "heads"), [(9, 2), (3, 1)], ids=["many_tokens", "few_tokens"])
def test_operations_of_attention_equal_a_scalar_loop(N: int, heads: int) -> None:
    attention = SpikingSelfAttention(12, heads)
    x = (torch.rand(2, 3, N, 12) < 0.5).float()
    kept = []
    attention.qkv.register_forward_hook(lambda _, __, y: kept.append(y))
    net = nn.Sequential(attention)
    layer = _watch(net, x).operations["0"]
    q, k, v = kept[0].unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    d = 12 // heads
    order = (k.mT, v, q) if d < N else (q, k.mT, v)
    acs = 0
    for b in range(2):
        for t in range(3):
            for h in range(heads):
                left, right, last = (factor[b, t, h] for factor in order)
                for i in range(left.shape[0]):
                    for j in range(left.shape[1]):
                        acs += int(left[i, j]) * right.shape[1]
                if d < N:  # q times (k^T v): each spike of q adds a row of d
                    acs += sum(int(s) * d for s in last.flatten())
                else:  # (q k^T) times v: each spike of v adds a column of N
                    acs += sum(int(s) * N for s in last.flatten())
    assert layer.acs == acs > 0
    assert layer.dense == 2 * 3 * heads * 2 * N * min(N, d) * d
    assert softmax_free_attention(q, k, v).sum() > 0


def test_rates_and_operations_of_a_student_are_those_of_its_spikes() -> None:
    net = ResNet((1,), (8,), 3, 2).eval()
    events = _spiking()
    spikes: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, x, y, name=name: spikes.update({name: y}))
    activity = _watch(net, events, places=64)
    assert set(activity.rates) == set(spikes)
    for name, rate in activity.rates.items():
        assert rate == pytest.approx(spikes[name].mean().item(), abs=1e-6)
    # The block's first layer reads the stem's spikes; inner places have 9 * 8 synapses.
    stem = spikes["stem.1"].flatten(0, 1)
    received, dense = scalar_conv(stem[:1, :1], nn.Conv2d(1, 8, 3, padding=1))
    first = activity.operations["stages.0.0.residual.0.0"]
    assert first.dense == dense * stem.shape[0] * stem.shape[1]
    assert received <= first.acs < first.dense
    assert set(activity.operations) == {
        name for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    assert all(layer.macs == 0 for layer in activity.operations.values())


def test_hooks_are_gone_afterwards_even_when_the_student_fails() -> None:
    net = ResNet((1,), (8,), 3, 2)
    with pytest.raises(ValueError, match="channels"), watch(net, Activity()):
        net(torch.rand(1, 2, 3, 8, 8))
    assert not any(m._forward_hooks for m in net.modules())


class Mixed(nn.Module):
    """Layers that are counted, that cannot be, that multiply nothing, that are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, 4, 8))
        self.words = nn.Embedding(3, 8)
        self.read = nn.Linear(8, 8)
        self.norm = nn.LayerNorm((4, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.idle = nn.Bilinear(8, 8, 8)
        self.widen = nn.ConvTranspose1d(4, 4, 3)

    def forward(self, index: Tensor) -> Tensor:
        x = self.norm(self.read(self.words(index) + self.place))
        x = self.attention(x, x, x)[0]
        y: Tensor = self.widen(self.recurrent(self.block(x))[0])
        return y


def test_layers_that_multiply_and_are_not_counted_are_named_once() -> None:
    net, activity = Mixed().eval(), Activity()
    index = torch.tensor([[0, 1, 2, 0]])
    with torch.no_grad(), watch(net, activity):
        net(index)
        net(index)
    assert activity.uncounted == ["attention", "block.self_attn", "recurrent", "widen"]
    assert set(activity.operations) == {"read", "block.linear1", "block.linear2"}


def test_neurons_of_spikingjelly_are_counted() -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron

    net = nn.ModuleDict(
        {
            "maps": nn.Sequential(layer.Conv2d(2, 4, 3), neuron.LIFNode(v_threshold=0.1)),
            "head": layer.Linear(4, 3),
        }
    )
    functional.set_step_mode(net, "m")
    student = from_spikingjelly(net, features=net["maps"], head=net["head"])
    found = diagnose(student, [Batch(_spiking(), torch.tensor([0, 1]))], CPU)
    assert 0 < found["firing_rate"]["net.maps.1"] < 1
    assert set(found["acs"]) == {"net.maps.0", "net.head"}
    assert found["energy_uj_total"] > 0


# Similarity, entropy, erasing


def test_cka_equals_its_definition_with_centered_kernels() -> None:
    for n, D in ((7, 3), (5, 20)):
        features = torch.randn(n, 4, D).double()
        found = step_cka(features)
        H = np.eye(n) - 1 / n
        for s in range(4):
            for t in range(4):
                K, L = (features[:, i].numpy() @ features[:, i].numpy().T for i in (s, t))

                def hsic(a: np.ndarray, b: np.ndarray) -> float:
                    return float(np.trace(a @ H @ b @ H))  # noqa: B023

                expected = hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))
                assert found[s, t].item() == pytest.approx(expected)


def test_cka_ignores_rotation_scale_and_shift_but_not_a_linear_map() -> None:
    x, y = torch.randn(30, 6).double(), torch.randn(30, 6).double()
    rotation = torch.linalg.qr(torch.randn(6, 6).double())[0]
    a = step_cka(torch.stack((x, x @ rotation * 3 + 1, y, y @ rotation), 1))
    assert a[0, 1].item() == pytest.approx(1.0)
    assert a[0, 2].item() == pytest.approx(a[1, 2].item())
    assert a[0, 2].item() == pytest.approx(a[0, 3].item())
    squeezed = x * torch.tensor([9.0, 1, 1, 1, 1, 0.1])
    assert step_cka(torch.stack((x, squeezed), 1))[0, 1] < 0.9
    torch.testing.assert_close(a, a.mT)


def test_cka_of_features_that_do_not_vary_is_undefined() -> None:
    x = torch.randn(5, 2, 3)
    x[:, 1] = 1.0
    found = step_cka(x)
    assert found[0, 0].item() == pytest.approx(1.0)
    assert found[0, 1].isnan()
    assert found[1, 1].isnan()


def test_cosine_equals_a_scalar_loop_and_is_zero_of_silence() -> None:
    features = torch.rand(3, 4, 2, 3, 3).round()
    features[0, 1] = 0
    found = step_cosine(features)
    for s in range(4):
        for t in range(4):
            total = 0.0
            for b in range(3):
                x, y = features[b, s].flatten().tolist(), features[b, t].flatten().tolist()
                length = math.sqrt(sum(v * v for v in x) * sum(v * v for v in y))
                total += sum(u * v for u, v in zip(x, y, strict=True)) / length if length else 0.0
            assert found[s, t].item() == pytest.approx(total / 3, abs=1e-6)


def test_entropy_runs_from_zero_to_the_logarithm_of_the_classes() -> None:
    sure = torch.zeros(1, 3, 5)
    sure[..., 2] = 200.0
    assert prediction_entropy(sure).abs().max() < 1e-6
    even = prediction_entropy(torch.full((2, 3, 5), -7.0))
    torch.testing.assert_close(even, torch.full((2, 3), math.log(5)))


def test_entropy_is_that_of_the_mean_logits_so_far() -> None:
    logits = torch.randn(2, 3, 4).double()
    found = prediction_entropy(logits)
    for b in range(2):
        for t in range(3):
            z = [sum(logits[b, s, k].item() for s in range(t + 1)) / (t + 1) for k in range(4)]
            p = [math.exp(v) / sum(math.exp(u) for u in z) for v in z]
            expected = -sum(v * math.log(v) for v in p)
            assert found[b, t].item() == pytest.approx(expected, rel=1e-5)


def test_erased_counts_places_and_samples_of_each_step() -> None:
    keep = torch.rand(6, 3, 2, 2) < 0.5
    keep[:, 0] = True
    keep[2, 1] = False
    places, everywhere = erased_per_step(keep)
    for t in range(3):
        gone = [[not bool(k) for k in keep[b, t].flatten()] for b in range(6)]
        assert places[t].item() == pytest.approx(sum(map(sum, gone)) / 24)
        assert everywhere[t].item() == pytest.approx(sum(map(all, gone)) / 6)


# The whole


STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "vggsnn": lambda: VGGSNN(3, 2, (8, 8), layers=(8, "AP", 12), pooled=True),
    "resnet_hidden": lambda: ResNet((1, 1), (8, 12), 3, 2, hidden=16),
    "spikformer": lambda: Spikformer(3, 2, dim=16, depth=1, heads=2, scale=1.0),
}


def _batches() -> list[Batch]:
    return [
        Batch(_spiking(5), torch.tensor([0, 1, 2, 0, 1])),
        Batch(_spiking(2), torch.tensor([2, 2])),
    ]


@pytest.mark.parametrize("name", list(STUDENTS))
def test_diagnosis_is_json_and_adds_up(name: str) -> None:
    student, batches = STUDENTS[name](), _batches()
    supervision = Sum([MeanCE(), TSE(tau_f=0.0, kappa=0.0)])
    found = diagnose(student, batches, CPU, supervision)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["samples"] == 7
    assert found["accuracy"] == pytest.approx(evaluate(student, batches, CPU).per_step)
    assert found["energy_uj_total"] == pytest.approx(
        (AC_PJ * sum(found["acs"].values()) + MAC_PJ * sum(found["macs"].values())) / 1e6
    )
    assert found["energy_uj_total"] < found["energy_uj_dense"]
    assert found["uncounted"] == []
    assert sum(found["macs"].values()) == 0  # event counts are integers: nothing multiplies
    lifs = {n for n, m in student.named_modules() if isinstance(m, LIF)}
    assert set(found["firing_rate"]) == lifs
    attention = [n for n, m in student.named_modules() if isinstance(m, SpikingSelfAttention)]
    assert set(attention) <= set(found["acs"])
    keeps = []
    with torch.no_grad():
        for batch in batches:
            o = student(batch.events)
            keeps.append(tse_keep(o.features, o.classify, batch.label, tau_f=0.0, kappa=0.0))
    places, everywhere = erased_per_step(torch.cat(keeps))
    assert found["erased"] == pytest.approx(places.tolist())
    assert found["erased_everywhere"] == pytest.approx(everywhere.tolist())
    assert found["erased"][0] == 0 < found["erased"][1]


def test_diagnosis_does_not_depend_on_the_batches_and_needs_no_tse() -> None:
    student = STUDENTS["resnet_hidden"]().double()
    whole = Batch(_spiking(6).double(), torch.arange(6) % 3)
    one = diagnose(student, [whole], CPU)
    parts = [Batch(whole.events[i : i + 2], whole.label[i : i + 2]) for i in (0, 2, 4)]
    three = diagnose(student, parts, CPU)
    assert one["erased"] is None
    for name in ("accuracy", "entropy", "firing_rate", "acs", "energy_uj"):
        assert three[name] == pytest.approx(one[name]), name
    np.testing.assert_allclose(three["cosine"], one["cosine"], rtol=1e-5)


def test_a_learned_kappa_is_the_one_of_the_diagnosis() -> None:
    student, batches = STUDENTS["vggsnn"](), _batches()
    fixed = diagnose(student, batches, CPU, TSE(tau_f=0.1, kappa=0.5))
    learned = diagnose(student, batches, CPU, TSE(tau_f=0.1, kappa=0.5, learn_kappa=True))
    assert learned["erased"] == fixed["erased"]


def test_no_batches_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        diagnose(STUDENTS["vggsnn"](), [], CPU)


def test_a_supervision_says_which_places_it_would_erase() -> None:
    student = STUDENTS["vggsnn"]().eval()
    batch = _batches()[0]
    with torch.no_grad():
        output = student(batch.events)
    expected = tse_keep(output.features, output.classify, batch.label, tau_f=0.2, kappa=0.3)
    assert not expected.all()
    scheduled = TSE(Schedule(2.0, 0.2, "linear"), kappa=0.3)
    assert scheduled.keep(output, batch).all()
    scheduled.at(1.0)
    hybrid = Sum([MeanCE(), Sum([TET(), scheduled])])
    for supervision in (TSE(tau_f=0.2, kappa=0.3), scheduled, hybrid, hybrid.eval()):
        assert torch.equal(supervision.keep(output, batch), expected)
    for other in (MeanCE(), TET(), TRE(), Sum([TET(), TSE()], weights=[1.0, 0.0])):
        assert other.keep(output, batch) is None
