import numpy as np
import pytest
import torch

from estl.guidance.watch import border_share, correlation, edge_trouble, watch_edges


def test_the_correlation_is_numpy_s_of_each_image() -> None:
    a, b = torch.rand(3, 1, 5, 4), torch.rand(3, 1, 5, 4)
    expected = np.mean(
        [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a, b, strict=True)]
    )
    assert correlation(a, b).item() == pytest.approx(expected, rel=1e-4)
    assert correlation(a, torch.ones_like(a)) == 0


def test_the_share_of_the_border_counts_light_in_two_pixels() -> None:
    edges = torch.zeros(1, 1, 8, 8)
    edges[..., 0, :] = 1.0
    assert border_share(edges).item() == pytest.approx(64 / 48)  # all light in 48 of 64 pixels
    edges = torch.zeros(1, 1, 8, 8)
    edges[..., 3, 3] = 1.0
    assert border_share(edges) == 0


def frame(inside: float, outside: float) -> torch.Tensor:
    edges = torch.full((2, 1, 12, 12), outside)
    edges[..., 4:8, 4:8] = inside
    return edges


@pytest.mark.parametrize(
    ("edges", "says"),
    [
        (frame(0.9, 0.1), None),
        (frame(0.1, 0.9), "inverted: they correlate at -1.00 with edge_counts"),
        (frame(0.5, 0.5), "collapsed to one gray"),
    ],
)
def test_edges_that_are_none_are_named(edges: torch.Tensor, says: str | None) -> None:
    events = frame(1.0, 0.0)[:, :, None].expand(-1, 3, 2, -1, -1)
    seen = watch_edges(edges, frame(1.0, 0.0), events)
    trouble = edge_trouble({f"watch/{name}": value for name, value in seen.items()})
    assert trouble is None if says is None else says in str(trouble)


def test_edges_at_the_border_are_named() -> None:
    edges = torch.zeros(1, 1, 32, 32)
    edges[..., :2], edges[..., 15, 15] = 1.0, 1.0
    assert "lit at the border" in str(edge_trouble({"watch/edge_border": border_share(edges)}))
    assert edge_trouble({}) is None
