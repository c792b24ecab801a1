import copy
import math

import pytest
import torch

from estl.data.simulator import simulate
from estl.guidance import LearnableEdgeDetector, SobelEdges, WrittenEdgeDetector
from estl.guidance.bridge import draw, even_rates, limit, predict, train_detector
from estl.guidance.grid import on_frames, resample
from estl.guidance.terms import (
    activation_log_attention,
    edge_alignment_loss,
    edge_attention,
    edge_events_loss,
    edge_smoothness_loss,
    edge_sparsity_loss,
)
from estl.types import Batch


def test_the_written_detector_has_the_written_layers() -> None:
    state = WrittenEdgeDetector().state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == {
        "encoder.0.weight": (64, 3, 3, 3),
        "encoder.0.bias": (64,),
        "encoder.2.weight": (128, 64, 3, 3),
        "encoder.2.bias": (128,),
        "encoder.4.weight": (128, 128, 3, 3),
        "encoder.4.bias": (128,),
        "edge_head.0.weight": (64, 128, 3, 3),
        "edge_head.0.bias": (64,),
        "edge_head.2.weight": (1, 64, 1, 1),
        "edge_head.2.bias": (1,),
    }
    layers = [*WrittenEdgeDetector().encoder, *WrittenEdgeDetector().edge_head]
    names = ["Conv2d", "ReLU"] * 4 + ["Conv2d", "Sigmoid"]
    assert [type(layer).__name__ for layer in layers] == names


def test_the_written_detector_s_edges_are_the_head_on_its_features() -> None:
    detector = WrittenEdgeDetector()
    rgb = torch.rand(2, 3, 9, 7)
    edges, features = detector(rgb)
    torch.testing.assert_close(features, detector.encoder(rgb))
    torch.testing.assert_close(edges, detector.edge_head(features))
    assert edges.shape == (2, 1, 9, 7)
    assert edges.min() > 0
    assert edges.max() < 1


def sobel_loop(rgb: torch.Tensor) -> tuple[list, list]:
    """Normalized (gx, gy) and magnitudes of one image (3,H,W), pixel by pixel."""
    _, H, W = rgb.shape
    red, green, blue = rgb.double().tolist()
    y = [
        [0.299 * red[i][j] + 0.587 * green[i][j] + 0.114 * blue[i][j] for j in range(W)]
        for i in range(H)
    ]

    def at(i: int, j: int) -> float:
        return y[min(max(i, 0), H - 1)][min(max(j, 0), W - 1)]

    weights = {-1: 1, 0: 2, 1: 1}
    g = [
        [
            (
                sum(w * (at(i + k, j + 1) - at(i + k, j - 1)) for k, w in weights.items()),
                sum(w * (at(i + 1, j + k) - at(i - 1, j + k)) for k, w in weights.items()),
            )
            for j in range(W)
        ]
        for i in range(H)
    ]
    top = max(math.hypot(*v) for row in g for v in row)
    g = [[(x / top, y / top) for x, y in row] for row in g]
    return g, [[math.hypot(*v) for v in row] for row in g]


def test_sobel_edges_and_features_equal_a_loop_over_pixels() -> None:
    H, W = 6, 5
    rgb = torch.rand(2, 3, H, W)
    edges, features = SobelEdges()(rgb)
    assert features.shape == (2, 128, H, W)
    for b in range(2):
        g, magnitude = sobel_loop(rgb[b])
        torch.testing.assert_close(edges[b, 0], torch.tensor(magnitude), atol=1e-5, rtol=1e-5)
        for s, k, i, j in ((0, 0, 2, 2), (0, 5, 0, 4), (1, 9, 3, 3), (3, 14, 5, 0), (7, 3, 1, 1)):
            window = [
                g[p][q]
                for p in range(max(0, i - s), min(H, i + s + 1))
                for q in range(max(0, j - s), min(W, j + s + 1))
            ]
            x, y = (sum(v[c] for v in window) / len(window) for c in (0, 1))
            angle = k * math.pi / 8
            expected = max(0.0, x * math.cos(angle) + y * math.sin(angle))
            assert features[b, 16 * s + k, i, j].item() == pytest.approx(expected, abs=1e-5)


def test_sobel_is_fixed_in_range_and_silent_on_one_color() -> None:
    sobel = SobelEdges()
    assert list(sobel.parameters()) == []
    assert sobel.state_dict() == {}
    edges, features = sobel(torch.rand(3, 3, 12, 12))
    assert edges.amax((1, 2, 3)).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert edges.min() >= 0
    assert features.min() >= 0
    assert features.max() <= 1 + 1e-6
    edges, features = sobel(torch.full((1, 3, 8, 8), 0.3))
    assert edges.max() < 0.2  # rounding of the brightness, not an edge
    faint = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(sobel.edges(faint / 500), sobel.edges(faint), atol=1e-4, rtol=0)
    assert features.isfinite().all()


def test_edge_regularization_equals_loops() -> None:
    edges = torch.rand(2, 1, 4, 3)
    e, total, variation = edges.double(), 0.0, 0.0
    for b in range(2):
        for i in range(4):
            for j in range(3):
                total += e[b, 0, i, j].item()
                if i + 1 < 4:
                    variation += abs(e[b, 0, i + 1, j] - e[b, 0, i, j]).item()
                if j + 1 < 3:
                    variation += abs(e[b, 0, i, j + 1] - e[b, 0, i, j]).item()
    assert edge_sparsity_loss(edges).item() == pytest.approx(total / 24)
    assert edge_smoothness_loss(edges).item() == pytest.approx(variation / 24)
    assert edge_smoothness_loss(torch.rand(1, 1, 1, 1)).item() == 0


def test_edge_alignment_equals_a_loop() -> None:
    B, N, D = 2, 4, 3
    tokens = torch.randn(B, N, D)
    attention, edges = torch.rand(B, 2, 2), torch.rand(B, 1, 4, 6)
    expected = 0.0
    for b in range(B):
        energy = [sum(tokens[b, n, d].item() ** 2 for d in range(D)) / D for n in range(N)]
        q = [math.exp(x) / sum(math.exp(y) for y in energy) for x in energy]
        p = []
        for i in range(2):
            for j in range(2):
                cell = [edges[b, 0, 2 * i + k, 3 * j + m].item() for k in (0, 1) for m in (0, 1, 2)]
                p.append(attention[b, i, j].item() * sum(cell) / 6)
        p = [x / sum(p) for x in p]
        expected += sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True)) / B
    loss = edge_alignment_loss(
        activation_log_attention(tokens, "softmax"), edge_attention(attention, edges)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() > 0.01


def test_edge_alignment_is_defined_with_gradient_for_an_image_without_edges() -> None:
    edges = torch.zeros(1, 1, 4, 4, requires_grad=True)
    attention = edge_attention(torch.rand(1, 2, 2), edges)
    torch.testing.assert_close(attention, torch.full((1, 4), 0.25))
    looks, faint = torch.rand(1, 2, 2), torch.rand(1, 1, 4, 4)  # of many tokens each has little
    torch.testing.assert_close(edge_attention(looks, faint / 1e5), edge_attention(looks, faint))
    edge_alignment_loss(torch.randn(1, 4).log_softmax(1), attention).backward()
    assert edges.grad.isfinite().all()


def test_the_edges_are_the_probability_of_an_event_at_the_mean_rate() -> None:
    detector = LearnableEdgeDetector(T=3, width=4)
    rgb = torch.rand(2, 3, 9, 7)
    edges, features, rates = detector.look(rgb)
    assert rates.shape == (2, 3, 2, 9, 7)
    assert features.shape == (2, 8, 9, 7)
    for b, i, j in ((0, 0, 0), (1, 8, 3), (1, 4, 6)):
        mean = sum(rates[b, t, p, i, j].item() for t in range(3) for p in range(2)) / 6
        assert edges[b, 0, i, j].item() == pytest.approx(1 - math.exp(-mean), rel=1e-4)
    again = detector(rgb)
    assert torch.equal(again[0], edges)
    assert torch.equal(again[1], features)
    for seen in (edges, features, rates):
        (slope,) = torch.autograd.grad(seen.sum(), detector.encoder[0].weight, retain_graph=True)
        assert slope.abs().max() > 0


def test_a_detector_starts_at_the_rates_of_its_steps_and_polarities() -> None:
    detector, start = LearnableEdgeDetector(T=3, width=2), torch.rand(3, 2) * 4
    start[1, 0] = 0.0
    detector.rate_head.weight.data.zero_()
    detector.start_at(start)
    with torch.autocast("cpu", torch.bfloat16):  # rates are float32 there too
        rates = detector.look(torch.rand(1, 3, 4, 5)).rates
    expected = start.clamp(min=1e-3)  # but the layer's bias is rounded
    torch.testing.assert_close(rates[0, :, :, 2, 3], expected, atol=0.0, rtol=0.02)


def test_the_rim_of_an_image_is_no_edge_of_a_learned_detector() -> None:
    gray = torch.full((1, 3, 12, 10), 0.4)
    edges, _ = LearnableEdgeDetector(T=2)(gray)
    torch.testing.assert_close(edges, edges[:, :, 5:6, 5:6].expand_as(edges))
    written, _ = WrittenEdgeDetector()(gray)  # its padding is black
    assert (written - written[:, :, 5:6, 5:6]).abs().max() > 1e-3


def test_the_events_term_equals_a_loop_and_its_gradient_finite_differences() -> None:
    rates = (torch.rand(2, 3, 2, 2, 4, dtype=torch.float64) + 0.1).requires_grad_()
    events = torch.randint(0, 5, rates.shape).double()
    total = 0.0
    for r, n in zip(rates.flatten().tolist(), events.flatten().tolist(), strict=True):
        likelihood = math.exp(-r) * r**n / math.factorial(int(n))
        total -= math.log(likelihood) + math.log(math.factorial(int(n)))
    assert edge_events_loss(rates, events).item() == pytest.approx(total / rates.numel())
    assert torch.autograd.gradcheck(lambda r: edge_events_loss(r, events), rates)
    log_rates = rates.detach().log().requires_grad_()
    edge_events_loss(log_rates.exp(), events).backward()
    expected = (rates.detach() - events) / rates.numel()
    torch.testing.assert_close(log_rates.grad, expected)
    low = torch.tensor([1e-4, 0.0]).view(1, 1, 2, 1, 1)
    loss = edge_events_loss(low, torch.tensor([1.0, 0.0]).view_as(low))
    assert loss.item() == pytest.approx((1e-4 + 4 * math.log(10)) / 2)


@pytest.mark.slow
def test_a_detector_is_trained_by_adam_at_a_rate_that_rises_and_falls() -> None:
    image = torch.rand(3, 3, 8, 8)
    events = 9 * image[:, None, :2].expand(-1, 2, -1, -1, -1)
    batch = Batch(events, torch.zeros(3, dtype=torch.long), image)
    detector = LearnableEdgeDetector(T=2, width=2)
    for p in detector.parameters():
        p.data *= 4  # gradients of such weights are clipped
    ours = copy.deepcopy(detector)
    detector.start_at(batch.events.mean((0, 3, 4)))
    optimizer = torch.optim.Adam(detector.parameters())
    for step in range(30):
        half_cosine = 0.5 + 0.5 * math.cos(math.pi * step / 30)
        optimizer.param_groups[0]["lr"] = 0.02 * min(1.0, (step + 1) / 21) * half_cosine
        parameters = list(detector.parameters())
        loss = edge_events_loss(detector.look(batch.image).rates, batch.events)
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g * min(1.0, 0.1 / float(norm))
        optimizer.step()
    train_detector(ours, iter([batch] * 31), 30)
    for p, expected in zip(ours.parameters(), detector.parameters(), strict=True):
        torch.testing.assert_close(p, expected, atol=1e-4, rtol=1e-3)
        assert p.grad is None


@pytest.mark.slow
def test_rates_become_the_events_of_an_edge_that_moves() -> None:
    images = torch.zeros(8, 3, 16, 16)
    for k in range(8):
        images[k, :, :, 4 + k :] = 1.0
    events = simulate(images, steps=3, amplitude=3.0)
    detector = LearnableEdgeDetector(T=3)
    seen = [0, 1, 2, 4, 5, 6, 7]
    shown = Batch(events[seen], torch.zeros(7, dtype=torch.long), images[seen])
    train_detector(detector, [shown] * 150, steps=150)
    edges, _, rates = detector.look(images[3:4])
    counts = events[3:4]
    for t in range(3):
        for p in range(2):
            total = counts[0, t, p].sum().item()
            assert rates[0, t, p].sum().item() == pytest.approx(total, rel=0.2, abs=8), (t, p)
    expected = 1 - (-counts[0].mean((0, 1))).exp()
    lit = expected > 0
    assert edges[0, 0][~lit].mean() < 0.03
    assert (edges[0, 0] - expected)[lit].abs().mean() < 0.1


def test_a_bridge_over_recordings_without_images_is_refused_in_a_line() -> None:
    alone = Batch(torch.ones(2, 3, 2, 8, 8), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="an image beside each recording: choose paired data"):
        train_detector(LearnableEdgeDetector(T=3), [alone], steps=1)


def test_drawn_recordings_have_the_predicted_mean_and_variance() -> None:
    rates = torch.tensor([0.0, 0.05, 0.7, 3.0]).view(1, 1, 2, 2, 1)
    drawn = draw(rates.expand(40_000, -1, -1, -1, -1))
    error = 5 * (rates / 40_000).sqrt()
    assert ((drawn.mean(0) - rates[0]).abs() <= error).all()
    torch.testing.assert_close(drawn.var(0), rates[0], atol=2e-3, rtol=0.05)
    pairs = torch.corrcoef(drawn.flatten(1)[:, 1:].T)
    assert (pairs - torch.eye(3)).abs().max() < 0.03


def test_the_limit_is_that_of_binomial_counts() -> None:
    def of(rates: list[float], counts: list[float]) -> float:
        r, n = (torch.tensor(x).view(1, 1, 2, -1, 1) for x in (rates, counts))
        return limit(r, n).item()

    assert of([2.0, 2.0], [1.0, 2.0]) == 3.0  # 8 / (4 - 1), rounded
    assert of([0.3, 0.3], [0.3, 0.3]) == 1.0  # one at least
    assert of([2.0, 2.0], [4.0, 2.0]) == 1e6  # as uneven as Poisson's


def test_recordings_are_drawn_with_the_limit_of_the_first_of_the_batch() -> None:
    """The brightness of an image is its rate, and counts are exactly that: 204 / 36 trials."""
    rates = torch.arange(1.0, 11.0).view(-1, 1, 1, 1)
    batch = Batch(
        rates.unsqueeze(1).expand(-1, 3, 2, 4, 4),
        torch.zeros(10, dtype=torch.long),
        rates.expand(-1, 3, 4, 4),
    )
    detector = LearnableEdgeDetector(T=3)
    detector.look_at_rates = lambda rgb: (rgb[:, None, :1].expand(-1, 3, 2, -1, -1),)
    drawn = predict(detector, torch.full((2, 3, 4, 4), 9.0), batch)
    assert torch.equal(drawn, torch.full((2, 3, 2, 4, 4), 6.0))  # a rate above it gives it


def test_fixed_edges_of_one_gray_have_no_events() -> None:
    assert not even_rates(torch.zeros(2, 1, 4, 4), torch.ones(3, 5, 2, 4, 4)).any()


def test_energies_align_where_a_softmax_of_rates_cannot() -> None:
    """Twelve fully active tokens among 144 silent ones, and a teacher that looks at just these."""
    tokens = torch.zeros(1, 156, 8)
    tokens[:, :12] = 1.0
    looks = torch.zeros(1, 156)
    looks[:, :12] = 1 / 12
    q = {how: activation_log_attention(tokens, how).exp() for how in ("energy", "softmax")}
    assert q["softmax"][:, :12].sum() < 0.2
    assert q["energy"][:, :12].sum() > 0.98
    assert edge_alignment_loss(q["energy"].log(), looks) < 0.02
    assert edge_alignment_loss(q["softmax"].log(), looks) > 1.5
    silent = activation_log_attention(torch.zeros(1, 4, 8, requires_grad=True))
    torch.testing.assert_close(silent.exp(), torch.full((1, 4), 0.25))


def test_attention_of_half_precision_is_computed_in_float32() -> None:
    tokens, looks = torch.rand(2, 4, 8).bfloat16(), torch.rand(2, 2, 2).bfloat16()
    edges = torch.rand(2, 1, 4, 6).bfloat16()
    for got, expected in (
        (activation_log_attention(tokens), activation_log_attention(tokens.float())),
        (edge_attention(looks, None), edge_attention(looks.float(), None)),
        (edge_attention(looks, edges), edge_attention(looks.float(), edges.float())),
    ):
        torch.testing.assert_close(got, expected)


def test_the_share_of_energy_equals_a_loop_and_moves_a_silent_token_gently() -> None:
    tokens = torch.rand(2, 5, 3)
    tokens[0, 2] = 0.0
    tokens.requires_grad_()
    log_q = activation_log_attention(tokens)
    for b in range(2):
        energy = [sum(x * x for x in token) / 3 for token in tokens[b].tolist()]
        floor = 0.01 * sum(energy) / 5
        for n in range(5):
            expected = (energy[n] + floor) / (sum(energy) + 5 * floor)
            assert log_q[b, n].exp().item() == pytest.approx(expected, rel=1e-4)
    edge_alignment_loss(log_q, torch.full((2, 5), 0.2)).backward()
    assert tokens.grad.abs().max() < 10


def test_resample_agrees_with_bilinear_weights_computed_by_hand() -> None:
    def weights(n_in: int, n_out: int) -> torch.Tensor:
        """Triangle of half-width max(1, scale) around each target center, normalized."""
        scale, rows = n_in / n_out, []
        for o in range(n_out):
            center = (o + 0.5) * scale - 0.5
            row = [max(0.0, 1 - abs(i - center) / max(1.0, scale)) for i in range(n_in)]
            rows.append([x / sum(row) for x in row])
        return torch.tensor(rows)

    for source, target in (
        ((14, 14), (12, 12)),
        ((4, 4), (6, 5)),
        ((14, 14), (4, 3)),
        ((3, 5), (4, 2)),
    ):
        tokens = torch.randn(2, source[0] * source[1], 5, requires_grad=True)
        rows, columns = weights(source[0], target[0]), weights(source[1], target[1])
        maps = tokens.detach().unflatten(1, source)
        expected = torch.einsum("ih,jw,bhwe->bije", rows, columns, maps).flatten(1, 2)
        resampled = resample(tokens, source, target)
        torch.testing.assert_close(resampled, expected, atol=1e-5, rtol=1e-5)
        assert not resampled.requires_grad
        image, frames = maps[..., :3].permute(0, 3, 1, 2), torch.zeros(1, 1, 2, *target)
        smaller = on_frames(image, frames).permute(0, 2, 3, 1).flatten(1, 2)
        torch.testing.assert_close(smaller, expected[..., :3], atol=1e-5, rtol=1e-5)
        half = tokens.detach().bfloat16()
        rounded = resample(half.float(), source, target).bfloat16()
        assert torch.equal(resample(half, source, target), rounded)


def test_resample_to_the_same_grid_changes_nothing() -> None:
    tokens = torch.randn(2, 6, 5)
    assert torch.equal(resample(tokens, (2, 3), (2, 3)), tokens)


@pytest.mark.parametrize(
    ("source", "target"), [((3, 3), (2, 2)), ((2, 4), (0, 4)), ((0, 0), (2, 2))]
)
def test_a_grid_that_does_not_fit_is_refused(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="cannot lay 8 tokens"):
        resample(torch.rand(1, 8, 2), source, target)
