import numpy as np
import pytest
import torch

from estl.guidance.watch import (
    border_share,
    correlation,
    edge_trouble,
    watch_attention,
    watch_edges,
)


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
    assert border_share(torch.zeros(1, 1, 8, 8)).isfinite()


def test_edges_are_compared_with_sobel_and_with_the_counts_of_the_first_images() -> None:
    edges, sobel, counts = torch.rand(3, 1, 6, 9), torch.rand(3, 1, 6, 9), torch.rand(2, 4, 2, 6, 9)

    def alike(a: torch.Tensor, b: torch.Tensor) -> float:
        pairs = zip(a.flatten(1), b.flatten(1), strict=True)
        return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in pairs]))

    seen = watch_edges(edges, sobel, counts)
    assert seen["edge_sobel"].item() == pytest.approx(alike(edges, sobel), rel=1e-4)
    expected = alike(edges[:2], counts.sum((1, 2)))
    assert seen["edge_counts"].item() == pytest.approx(expected, rel=1e-4)
    assert seen["edge_border"] == border_share(edges)
    spread = np.mean([image.numpy().std() for image in edges])
    assert seen["edge_spread"].item() == pytest.approx(spread, rel=1e-4)
    assert "edge_counts" not in watch_edges(edges, sobel, torch.rand(2, 4, 3, 6, 9))  # pictures


def test_even_attention_is_not_sharp() -> None:
    even = torch.full((2, 6), 1 / 6)
    assert watch_attention(even, even)["attention_sharp"].item() == pytest.approx(0.0, abs=1e-6)


def frame(inside: float, outside: float) -> torch.Tensor:
    edges = torch.full((2, 1, 12, 16), outside)
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
    assert "inverted" in str(edge_trouble({"watch/edge_sobel": torch.tensor(-0.2)}))
    assert edge_trouble({}) is None
