"""TSE of per-place labels: a scalar transcription, its relation to TSE, limits."""

import math
import statistics
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.supervision import DenseTSE, Schedule, dense_tse_keep, dense_tse_loss, tse_keep


def scalar_dense(
    logits: Tensor, labels: Tensor, tau_f: float, kappa: float, void: int = -100
) -> tuple[Tensor, list[bool]]:
    """The summed loss and the mask in the order of its four dimensions, in loops over scalars."""
    B, T, K, H, W = logits.shape
    total = torch.zeros((), dtype=torch.float64)
    asked = sum(label != void for label in labels.flatten().tolist())
    mask: list[bool] = []
    for b in range(B):
        for t in range(T):
            every = [(i, j) for i in range(H) for j in range(W)]
            places = [(i, j) for i, j in every if labels[b, i, j] != void]
            keep = dict.fromkeys(every, True)
            if t > 0 and len(places) > 1:
                p = {}
                for i, j in places:
                    mean = [logits[b, :t, k, i, j].mean().item() for k in range(K)]
                    y = int(labels[b, i, j])
                    p[i, j] = math.exp(mean[y]) / sum(math.exp(m) for m in mean)
                tau_d = statistics.mean(p.values()) + kappa * statistics.stdev(p.values())
                keep |= {place: not p[place] >= max(tau_f, tau_d) for place in places}
            mask += keep.values()
            for i, j in places:
                if keep[i, j]:
                    z = logits[b, t, :, i, j]
                    total = total + (z.exp().sum().log() - z[labels[b, i, j]]) / asked
    return total, mask


def make(B: int = 2, T: int = 4, K: int = 3, H: int = 3, W: int = 4) -> tuple[Tensor, Tensor]:
    logits = 2 * torch.randn(B, T, K, H, W, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, K, (B, H, W))


@pytest.mark.parametrize(("tau_f", "kappa"), [(0.3, 0.5), (0.0, 0.0), (0.7, 0.0)])
def test_loss_mask_and_gradient_equal_a_scalar_transcription(tau_f: float, kappa: float) -> None:
    logits, labels = make()
    expected, mask = scalar_dense(logits, labels, tau_f, kappa)
    keep = dense_tse_keep(logits, labels, tau_f=tau_f, kappa=kappa)
    assert keep.flatten().tolist() == mask
    assert 0 < (~keep).sum() < keep[:, 1:].numel()
    loss = dense_tse_loss(logits, labels, tau_f=tau_f, kappa=kappa)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    (ours,), (oracle,) = (torch.autograd.grad(x, logits) for x in (loss, expected))
    torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-12)


@pytest.mark.parametrize("void", [-100, 255, 0])
@pytest.mark.parametrize(("tau_f", "kappa"), [(0.3, 0.5), (0.0, 0.0)])
def test_void_places_are_in_no_mean_and_no_threshold(tau_f: float, kappa: float, void: int) -> None:
    logits, labels = make(B=4)
    labels[torch.rand(labels.shape) < 0.4] = void
    labels[1] = void  # a sample of void places alone, one with a place and one with none of them
    labels[2] = void
    labels[2, 0, 1] = 2
    labels[3] = labels[3].where(labels[3] != void, 1)
    options: dict[str, Any] = {"tau_f": tau_f, "kappa": kappa, "ignore_index": void}
    expected, mask = scalar_dense(logits, labels, tau_f, kappa, void)
    keep = dense_tse_keep(logits, labels, **options)
    assert keep.flatten().tolist() == mask
    assert (~keep[0]).any()
    assert not torch.equal(
        keep[0], dense_tse_keep(logits, labels.clamp(0, 2), tau_f=tau_f, kappa=kappa)[0]
    )
    loss = dense_tse_loss(logits, labels, **options)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    (ours,), (oracle,) = (torch.autograd.grad(x, logits) for x in (loss, expected))
    torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-12)
    assert not ours[(labels == void)[:, None, None].expand_as(ours)].any()


def test_what_is_erased_is_a_share_of_the_places_with_a_class() -> None:
    logits, labels = make(B=3)
    labels[0, :, :2] = 255
    labels[2] = 255
    dense = DenseTSE(0.0, 0.0, ignore_index=255)
    metrics = dense(logits, labels).metrics
    gone, places, nothing_left, pairs = 0, 0, 0, 0
    keep = dense_tse_keep(logits, labels, tau_f=0.0, kappa=0.0, ignore_index=255)
    for b in range(3):
        for t in range(1, 4):
            kept = [
                k
                for k, y in zip(keep[b, t].flatten(), labels[b].flatten(), strict=True)
                if y != 255
            ]
            gone, places = gone + kept.count(False), places + len(kept)
            nothing_left, pairs = nothing_left + (bool(kept) and not any(kept)), pairs + bool(kept)
    assert metrics["erased"].item() == pytest.approx(gone / places)
    assert metrics["erased_everywhere"].item() == pytest.approx(nothing_left / pairs)
    validation = dense.eval()(logits, labels).total
    plain = sum(F.cross_entropy(logits[:, t], labels, ignore_index=255) for t in range(4))
    torch.testing.assert_close(validation, plain)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_void_places_alone_has_no_loss_and_no_gradient(training: bool) -> None:
    logits, labels = make()
    loss = DenseTSE(label_smoothing=0.1).train(training)(logits, torch.full_like(labels, -100))
    loss.total.backward()
    assert loss.total == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_gradient_is_that_of_finite_differences() -> None:
    logits, labels = make(T=3, H=2, W=3)

    def loss(z: Tensor) -> Tensor:
        return dense_tse_loss(z, labels, tau_f=0.2, kappa=0.5)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_with_one_label_everywhere_the_mask_is_that_of_tse() -> None:
    logits, _ = make()
    labels = torch.tensor([2, 0])
    everywhere = labels.view(2, 1, 1).expand(-1, 3, 4)
    keep = dense_tse_keep(logits, everywhere, tau_f=0.3, kappa=0.5)
    assert not keep.all()
    assert torch.equal(keep, tse_keep(logits, nn.Identity(), labels, tau_f=0.3, kappa=0.5))


@pytest.mark.parametrize("limits", [{"tau_f": 1.01, "kappa": 0.0}, {"tau_f": 0.0, "kappa": 50.0}])
def test_high_thresholds_leave_the_sum_of_cross_entropies(limits: dict[str, float]) -> None:
    logits, labels = make()
    plain = sum(F.cross_entropy(logits[:, t], labels) for t in range(4))
    torch.testing.assert_close(dense_tse_loss(logits, labels, **limits), plain)
    torch.testing.assert_close(
        dense_tse_loss(logits, labels, reduction="mean", label_smoothing=0.2, **limits),
        sum(F.cross_entropy(logits[:, t], labels, label_smoothing=0.2) for t in range(4)) / 4,
    )


@pytest.mark.parametrize("size", [{"T": 1}, {"H": 1, "W": 1}])
def test_one_step_or_one_place_is_kept(size: dict[str, int]) -> None:
    logits, labels = make(**size)
    assert dense_tse_keep(logits, labels, tau_f=0.0, kappa=0.0).all()
    assert DenseTSE(0.0, 0.0)(logits, labels).metrics["erased"] == 0


def test_a_step_sees_only_the_steps_before_it() -> None:
    logits, labels = make()
    keep = dense_tse_keep(logits, labels, tau_f=0.1, kappa=0.0)
    changed = logits.detach().clone()
    changed[:, 2:] = torch.randn_like(changed[:, 2:])
    now = dense_tse_keep(changed, labels, tau_f=0.1, kappa=0.0)
    assert torch.equal(now[:, :3], keep[:, :3])
    assert not torch.equal(now[:, 3], keep[:, 3])


def test_erased_places_give_no_gradient_and_the_others_the_plain_one() -> None:
    logits, labels = make()
    keep = dense_tse_keep(logits, labels, tau_f=0.3, kappa=0.0)
    (erasing,) = torch.autograd.grad(dense_tse_loss(logits, labels, tau_f=0.3, kappa=0.0), logits)
    (plain,) = torch.autograd.grad(dense_tse_loss(logits, labels, tau_f=2.0), logits)
    torch.testing.assert_close(erasing, plain * keep.unsqueeze(2))


def test_the_module_erases_in_training_only_and_reports_how_much() -> None:
    logits, labels = make()
    dense = DenseTSE(Schedule(0.3, warmup=0.5), 0.5)
    plain = dense_tse_loss(logits, labels, tau_f=2.0)
    torch.testing.assert_close(dense(logits, labels).total, plain)  # warm-up
    dense.at(0.5)
    loss = dense(logits, labels)
    torch.testing.assert_close(loss.total, dense_tse_loss(logits, labels, tau_f=0.3, kappa=0.5))
    assert (loss.total - plain).abs() > 1e-3
    assert loss.terms == {"dense_tse": loss.total}
    keep = dense_tse_keep(logits, labels, tau_f=0.3, kappa=0.5)
    assert loss.metrics["erased"].item() == pytest.approx((~keep[:, 1:]).double().mean().item())
    assert loss.metrics["tau_f"].item() == pytest.approx(0.3)
    validation = dense.eval()(logits, labels)
    torch.testing.assert_close(validation.total, plain)
    assert validation.metrics == {}


@pytest.mark.parametrize(
    ("option", "value"),
    [("tau_f", -0.1), ("kappa", math.nan), ("reduction", "none"), ("label_smoothing", 1.5)],
)
def test_an_option_outside_its_range_is_refused(
    option: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match=rf"^{option} must be .*, not {value!r}$"):
        DenseTSE(**{option: value})
    with pytest.raises(ValueError, match=rf"^{option} must be"):
        dense_tse_loss(*make(), **{option: value})
