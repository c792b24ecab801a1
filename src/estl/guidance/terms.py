"""The loss terms: what trains the edges, where the student should look, what it should see."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Activity = Literal["energy", "softmax"]

FLOOR = 0.01
"""Added to a token's energy, in units of the mean one: see `activation_log_attention`."""


def edge_events_loss(
    rates: Float[Tensor, "B T 2 H W"], events: Float[Tensor, "..."]
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the recorded counts n if they are Poisson with rates r.

    P(n) = r^n exp(-r) / n! gives -log P(n) = r - n log r + log n!, and without the last term, which
    no parameter changes,

        mean over samples, steps, polarities and pixels of r - n log r.

    Its gradient in log r is r - n, so that the rates become the mean counts of what looks alike,
    even if counts are not Poisson or not integers.

    Args:
        rates: expected events, above 0.
        events: counts on the same grid.

    Raises:
        ValueError: frames that differ from the rates in steps, channels or size.

    >>> import torch
    >>> r, n = torch.full((1, 1, 2, 1, 1), 2.0), torch.ones(1, 1, 2, 1, 1)
    >>> torch.testing.assert_close(edge_events_loss(r, n), 2 - torch.tensor(2.0).log())
    """
    if rates.shape != events.shape:
        raise ValueError(
            f"edge_events: rates {tuple(rates.shape)}, but frames {tuple(events.shape)}; it needs "
            "event frames of T steps and two polarities: without them choose edges written or sobel"
        )
    return (rates - events * rates.clamp(min=1e-8).log()).mean()


def edge_sparsity_loss(edges: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Mean of the edge map: small where few pixels are edges.

    >>> import torch
    >>> edge_sparsity_loss(torch.full((1, 1, 2, 2), 0.25)).item()
    0.25
    """
    return edges.mean()


def edge_smoothness_loss(edges: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Total variation per pixel: sum of |differences| to the right and lower neighbor / (B H W).

    >>> import torch
    >>> edge_smoothness_loss(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).item()
    0.5
    """
    rows, columns = edges.diff(dim=2).abs().sum(), edges.diff(dim=3).abs().sum()
    return (rows + columns) / edges.numel()


def edge_attention(
    attention: Float[Tensor, "B h w"], edges: Float[Tensor, "B 1 H W"] | None
) -> Float[Tensor, "B N"]:
    """The teacher's attention times the edges, if there are any, each row summing to 1.

    The edge map is averaged over the cells of the attention's grid. An image without any edge gives
    the uniform distribution.

    >>> import torch
    >>> p = edge_attention(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[[0.2, 0.0, 0.6, 0.0]]]]))
    >>> torch.testing.assert_close(p, torch.tensor([[0.25, 0.75]]))
    """
    product = attention.float()
    if edges is not None:
        _, h, w = attention.shape
        product = product * F.adaptive_avg_pool2d(edges.float(), (h, w)).squeeze(1)
    product = product.flatten(1) + 1e-12
    return product / product.sum(1, keepdim=True)


def activation_log_attention(
    tokens: Float[Tensor, "B N D"], how: Activity = "energy"
) -> Float[Tensor, "B N"]:
    """Where the student is active: the logarithm of a distribution over tokens.

    With e_n the mean square of token n over D and m its mean over tokens,

        "energy":   q_n = (e_n + FLOOR m) / sum_k (e_k + FLOOR m)
        "softmax":  q = softmax(e)                                    (the written form)

    Spiking rates are at most 1, so that no entry of a softmax of them is more than e times another:
    it stays close to the uniform distribution whatever the student does. The share of the energy
    has no such bound. Its floor keeps the gradient of a token without any spike finite; a student
    without any spikes gets the uniform distribution.

    >>> import torch
    >>> log_q = activation_log_attention(torch.ones(1, 4, 8))
    >>> torch.testing.assert_close(log_q.exp(), torch.full((1, 4), 0.25))
    """
    energy = tokens.float().square().mean(2)
    if how == "softmax":
        return energy.log_softmax(dim=1)
    energy = energy + FLOOR * energy.mean(1, keepdim=True) + 1e-12
    return (energy / energy.sum(1, keepdim=True)).log()


def edge_alignment_loss(
    log_student: Float[Tensor, "B N"], teacher: Float[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """KL(teacher || student) = sum_n p_n (log p_n - log q_n), mean over the batch.

    >>> import torch
    >>> p, q = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    >>> by_hand = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    >>> torch.testing.assert_close(edge_alignment_loss(q.log(), p), by_hand)
    """
    return F.kl_div(log_student, teacher, reduction="batchmean")


def feature_loss(
    student: Float[Tensor, "*B E"], target: Float[Tensor, "*B E"], normalize: bool = True
) -> Float[Tensor, ""]:
    """Mean squared difference of features, both layer-normalized unless `normalize` is off.

    >>> import torch
    >>> x = torch.rand(2, 8)
    >>> torch.testing.assert_close(feature_loss(x, 3 * x + 1), torch.tensor(0.0), atol=1e-3, rtol=0)
    """
    if normalize:
        student, target = (F.layer_norm(x, x.shape[-1:]) for x in (student, target))
    return F.mse_loss(student, target)
