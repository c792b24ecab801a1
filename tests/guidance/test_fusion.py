import unittest.mock
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.experiments.bench.supervisions import LiteralFusion
from estl.guidance import EdgeGuidedFusion, attention, fusion
from estl.guidance.edges import Edges


def pair(**options: Any) -> tuple[nn.Module, EdgeGuidedFusion]:
    """The literal module, and ours with its state; `query` in `options` goes to both."""
    sizes = {name: options[name] for name in ("clip_dim", "edge_dim", "heads") if name in options}
    literal = LiteralFusion(**sizes, query=options.get("query", "clip"))
    for parameter in literal.parameters():  # biases are zero at first, and would hide their terms
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    ours = EdgeGuidedFusion(**options)
    ours.load_state_dict(literal.state_dict(), strict=True)
    return literal, ours


def results(module: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """The output and all gradients of one scalar function of it."""
    module.zero_grad()
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = module(*leaves)
    torch.manual_seed(7)
    (out * torch.randn_like(out)).sum().backward()
    named = {name: p.grad for name, p in module.named_parameters()}
    return {"out": out.detach()} | named | dict(zip("pfw", (x.grad for x in leaves), strict=True))


def relative_error(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


@pytest.mark.parametrize("query", ["clip", "edge"])
@pytest.mark.parametrize("batch", [1, 3])
def test_output_and_all_gradients_equal_the_literal_module_in_float64(
    query: str, batch: int
) -> None:
    literal, ours = pair(clip_dim=24, edge_dim=5, heads=4, query=query)
    data = [torch.randn(batch, 9, 24), torch.rand(batch, 5, 6, 4), torch.rand(batch, 1, 6, 4)]
    data = [x.double() for x in data]
    expected, got = results(literal.double(), *data), results(ours.double(), *data)
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-12, rtol=1e-9, msg=name)


def test_output_and_all_gradients_equal_the_literal_module_in_float32_at_full_width() -> None:
    literal, ours = pair()
    data = torch.randn(1, 196, 768), torch.rand(1, 128, 56, 56), torch.rand(1, 1, 56, 56)
    expected, got = results(literal, *data), results(ours, *data)
    for name in expected:
        assert relative_error(got[name], expected[name]) < 1e-5, name


def test_edges_as_queries_are_the_same_in_one_chunk_or_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, ours = pair(clip_dim=16, edge_dim=4, heads=2, query="edge")
    data = torch.randn(2, 9, 16), torch.rand(2, 4, 5, 5), torch.rand(2, 1, 5, 5)
    whole = results(ours, *data)
    gate = ours.fuse(*data).gate_mean
    monkeypatch.setattr(fusion, "CHUNK", 7)
    parts = results(ours, *data)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=1e-4, msg=name)
    torch.testing.assert_close(ours.fuse(*data).gate_mean, gate)


def test_the_gate_at_each_patch_and_what_it_lets_in_are_those_of_the_literal_module() -> None:
    literal, ours = pair(clip_dim=24, edge_dim=5, heads=4)
    data = torch.randn(2, 9, 24), torch.rand(2, 5, 6, 4), torch.rand(2, 1, 6, 4)
    asked: list[Tensor] = []
    literal.gate.register_forward_hook(lambda module, args, out: asked.extend([*args, out]))
    with torch.no_grad():
        literal(*data)
    both, gate = asked
    patches, features, edges = data
    found = ours.gates(patches, Edges(edges, features), (3, 3))
    for b in range(2):
        for n in range(9):
            attended = both[b, n, 24:]
            row, column = divmod(n, 3)
            assert float(found["gate"][b, row, column]) == pytest.approx(
                float(gate[b, n].mean()), abs=1e-5
            )
            let_in = float((gate[b, n] * attended).square().sum().sqrt())
            assert float(found["added"][b, row, column]) == pytest.approx(let_in, abs=1e-5)
    assert not found["gate"].requires_grad
    assert ours.gates(patches, None, (3, 3)) == {}
    ours.edge_grid = (3, 2)
    coarser = ours.gates(patches, Edges(edges, features), (3, 3))
    ours.edge_grid = None
    smaller = Edges(*(F.adaptive_avg_pool2d(x, (3, 2)) for x in (edges, features)))
    for name, expected in ours.gates(patches, smaller, (3, 3)).items():
        torch.testing.assert_close(coarser[name], expected)
    asking = pair(clip_dim=24, edge_dim=5, heads=4, query="edge")[1]
    assert asking.gates(patches, Edges(edges, features), (3, 3)) == {}


@pytest.mark.parametrize("query", ["clip", "edge"])
def test_the_gate_s_mean_is_that_of_the_gate_s_outputs(query: str) -> None:
    _, ours = pair(clip_dim=16, edge_dim=4, heads=2, query=query)
    gates: list[Tensor] = []
    with ours.gate.register_forward_hook(lambda module, args, out: gates.append(out)):
        fused = ours.fuse(torch.randn(2, 9, 16), torch.rand(2, 4, 5, 3), torch.rand(2, 1, 5, 3))
    torch.testing.assert_close(fused.gate_mean, gates[0].mean())
    assert not fused.gate_mean.requires_grad
    assert fused.feature.shape == (2, 16)


def test_edges_that_stay_give_the_same_without_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU, where few scores are formed; the kernel would compute a gradient of the edges."""
    _, ours = pair(clip_dim=24, edge_dim=5, heads=4)
    ours, x = ours.double(), torch.randn(3, 9, 24).double()
    edges = torch.rand(3, 5, 6, 4).double(), torch.rand(3, 1, 6, 4).double()

    def found() -> list[Tensor]:
        ours.zero_grad()
        ours(x, *edges).square().sum().backward()
        return [p.grad.clone() for p in ours.parameters() if p.grad is not None]

    kernel = unittest.mock.Mock(wraps=F.scaled_dot_product_attention)
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    formed = found()
    assert not kernel.called
    monkeypatch.setattr(attention, "DENSE", 3 * 4 * 9 * 24 - 1)
    fused = found()
    assert kernel.called
    torch.testing.assert_close(formed, fused, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("grid", "size"), [(3, (3, 3)), ((2, 4), (2, 4))])
def test_a_coarser_grid_averages_features_and_map(grid: Any, size: tuple[int, int]) -> None:
    literal, ours = pair(clip_dim=16, edge_dim=4, heads=2, edge_grid=grid)
    patches, features, edges = torch.randn(2, 9, 16), torch.rand(2, 4, 8, 7), torch.rand(2, 1, 8, 7)
    expected = literal(
        patches, F.adaptive_avg_pool2d(features, size), F.adaptive_avg_pool2d(edges, size)
    )
    torch.testing.assert_close(ours(patches, features, edges), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_result(threads: int) -> None:
    literal, ours = pair(clip_dim=16, edge_dim=4, heads=4)
    data = torch.randn(1, 9, 16), torch.rand(1, 4, 5, 5), torch.rand(1, 1, 5, 5)
    expected, before = results(literal, *data), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = results(ours, *data)
    finally:
        torch.set_num_threads(before)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_fusion_golden(golden: dict[str, Any]) -> None:
    torch.manual_seed(5)
    edge_proj = nn.Linear(8, 32)
    attn = nn.MultiheadAttention(32, 4, batch_first=True)
    gate = nn.Sequential(nn.Linear(64, 32), nn.Sigmoid())
    patches, features, edges = torch.randn(2, 9, 32), torch.rand(2, 8, 6, 6), torch.rand(2, 1, 6, 6)
    ours = EdgeGuidedFusion(clip_dim=32, edge_dim=8, heads=4)
    written = nn.ModuleDict({"edge_proj": edge_proj, "cross_attn": attn, "gate": gate})
    ours.load_state_dict(written.state_dict())
    out = ours(patches, features, edges)
    expected = golden["fusion"]
    torch.testing.assert_close(
        out[0, :8], torch.tensor(expected["out_row0_first8"]), atol=1e-5, rtol=0
    )
    assert out.sum().item() == pytest.approx(expected["out_sum"], abs=1e-5)


def test_autocast_is_near_float32() -> None:
    _, ours = pair(clip_dim=32, edge_dim=8, heads=4)
    data = torch.randn(2, 9, 32), torch.rand(2, 8, 6, 6), torch.rand(2, 1, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        low = ours(*data)
    torch.testing.assert_close(low.float(), ours(*data), atol=0.03, rtol=0.03)


def test_the_gate_starts_at_its_bias_also_at_zero() -> None:
    for bias in (-3.0, 0.0):
        assert (EdgeGuidedFusion(8, 2, 1, gate_bias=bias).gate[0].bias == bias).all()


def test_options_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for heads in (5, 0):
        with pytest.raises(ValueError, match=f"heads must divide clip_dim 768, got {heads}"):
            EdgeGuidedFusion(heads=heads)
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    unknown: Any = "edges"
    with pytest.raises(ValueError, match='query must be "clip" or "edge", got \'edges\''):
        EdgeGuidedFusion(query=unknown)
