"""Attacks and noise: against a gradient by hand, bounds, limits, and what they may not touch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from estl.data import Digits
from estl.evaluation.attacks import (
    attack,
    drop_frames,
    event_noise,
    fgsm,
    gaussian_noise,
    noise,
    parse_eps,
    pgd,
    robustness,
)
from estl.students import VGGSNN, ResNet
from estl.training import run
from estl.training.reopen import Reopened
from estl.types import Batch, Output, direct_code, is_static

EPS = 8 / 255
K = 3


class Linear(nn.Module):
    """Logits of each step are a matrix times the flattened frame, times the step's weight."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(2 * size * size, K)
        self.step = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

    def forward(self, events: Tensor) -> Output:
        logits = self.head(events.flatten(2)) * self.step[:, None]
        return Output(logits, events, self.head, events.mean((-2, -1)), pooled_head=False)


def _events(B: int = 5, T: int = 3, size: int = 4) -> Tensor:
    return torch.poisson(torch.full((B, T, 2, size, size), 1.5))


def _spiking() -> nn.Module:
    return ResNet((1,), (8,), K, 2)


Craft = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
CRAFT: dict[str, Craft] = {
    "fgsm": fgsm,
    "pgd": partial(pgd, steps=4),
    "pgd_from_the_sample": partial(pgd, steps=4, random_start=False),
}


@pytest.fixture(params=list(CRAFT))
def craft(request: pytest.FixtureRequest) -> Craft:
    return CRAFT[request.param]


def test_fgsm_is_the_sign_of_a_gradient_by_hand() -> None:
    net, events, label = Linear().double(), _events().double(), torch.tensor([0, 1, 2, 0, 1])
    attacked = fgsm(net, events, label, 0.1)
    W, b, c = net.head.weight, net.head.bias, net.step
    for i in range(len(events)):
        z = sum(c[t] * (W @ events[i, t].flatten() + b) for t in range(3)) / 3
        p = z.softmax(0) - F.one_hot(label[i], K)  # dCE / dz
        top = events[i].max()
        for t in range(3):
            by_hand = (c[t] / 3 * (W.T @ p)).view(2, 4, 4).sign()
            expected = (events[i, t] + 0.1 * top * by_hand).clamp(torch.zeros(()), top)
            torch.testing.assert_close(attacked[i, t], expected)


def test_fgsm_of_an_image_moves_all_steps_by_the_summed_gradient() -> None:
    net, image = Linear().double(), torch.rand(4, 2, 4, 4).double()
    label = torch.tensor([0, 1, 2, 0])
    attacked = fgsm(net, direct_code(image, 3), label, 0.1)
    assert is_static(attacked)
    x = image.clone().requires_grad_()
    F.cross_entropy(net(direct_code(x, 3)).logits.mean(1), label).backward()
    top = image.amax((1, 2, 3), keepdim=True)
    expected = (image + 0.1 * top * x.grad.sign()).clamp(min=0.0).minimum(top)
    torch.testing.assert_close(attacked[:, 0], expected)


def test_pgd_of_one_full_step_from_the_sample_is_fgsm() -> None:
    net, events, label = _spiking(), _events(size=8), torch.arange(5) % K
    one = pgd(net, events, label, EPS, steps=1, alpha=EPS, random_start=False)
    assert torch.equal(one, fgsm(net, events, label, EPS))
    assert not torch.equal(one, events)


def test_pgd_of_two_small_steps_is_two_gradients_by_hand() -> None:
    net, events, label = Linear().double(), _events().double(), torch.tensor([0, 1, 2, 0, 1])
    top = events.amax((1, 2, 3, 4), keepdim=True)
    x = events
    for _ in range(2):
        x = x.detach().requires_grad_()
        F.cross_entropy(net(x).logits.mean(1), label).backward()
        x = x + 0.06 * top * x.grad.sign()
        x = x.clamp(events - 0.1 * top, events + 0.1 * top).clamp(torch.zeros_like(top), top)
    found = pgd(net, events, label, 0.1, steps=2, alpha=0.06, random_start=False)
    torch.testing.assert_close(found, x.detach())


def test_eps_zero_changes_nothing(craft: Craft) -> None:
    events = _events(size=8)
    assert torch.equal(craft(_spiking(), events, torch.arange(5) % K, 0.0), events)


@pytest.mark.parametrize("lowest", [0.0, -1.0])
def test_the_change_is_within_eps_and_the_range(craft: Craft, lowest: float) -> None:
    events = _events(size=8) * torch.arange(5).view(5, 1, 1, 1, 1) + lowest  # a silent sample too
    attacked = craft(_spiking(), events, torch.arange(5) % K, 0.1)
    for x, y in zip(events, attacked, strict=True):
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        if lowest < 0 and x.max() < 0:
            high = float(x.max())
        assert (y - x).abs().max() <= 0.1 * (high - low) + 1e-6
        assert y.min() >= low
        assert y.max() <= high
    assert not torch.equal(attacked, events)


def test_an_attack_raises_the_loss_and_more_steps_raise_it_further() -> None:
    net, events, label = Linear(), _events(40), torch.arange(40) % K

    def loss(x: Tensor) -> float:
        return F.cross_entropy(net(x).logits.mean(1), label).item()

    strong = partial(pgd, net, events, label, 0.1, random_start=False, alpha=0.03)
    assert loss(events) < loss(strong(steps=1)) < loss(strong(steps=4))


def test_an_attack_leaves_gradients_modes_and_statistics_alone(craft: Craft) -> None:
    net = _spiking().train()
    net.stages[0].eval()
    modes = [m.training for m in net.modules()]
    state = {name: p.clone() for name, p in net.state_dict().items()}
    events = _events(size=8)
    kept = events.clone()
    attacked = craft(net, events, torch.arange(5) % K, EPS)
    assert not attacked.requires_grad
    assert torch.equal(events, kept)
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(p, state[name]) for name, p in net.state_dict().items())


def test_the_modes_are_restored_when_the_student_fails() -> None:
    net = _spiking().train()
    with pytest.raises(ValueError, match="channels"):
        fgsm(net, torch.rand(2, 3, 5, 8, 8), torch.tensor([0, 1]), EPS)
    assert all(m.training for m in net.modules())


def test_a_sample_is_attacked_the_same_in_any_batch() -> None:
    net, events, label = _spiking().double(), _events(size=8).double(), torch.arange(5) % K
    whole = fgsm(net, events, label, EPS)
    for i in range(5):
        torch.testing.assert_close(fgsm(net, events[i : i + 1], label[i : i + 1], EPS)[0], whole[i])


def test_the_attack_works_while_gradients_are_off() -> None:
    net, events, label = _spiking(), _events(size=8), torch.arange(5) % K
    expected = fgsm(net, events, label, EPS)
    with torch.no_grad():
        assert torch.equal(fgsm(net, events, label, EPS), expected)


def test_gaussian_noise_has_its_deviation_and_is_one_image_for_all_steps() -> None:
    events = torch.full((2, 50, 2, 16, 16), 5.0)
    events[:, 0] = 10.0
    difference = gaussian_noise(events, 0.05)[:, 1:] - 5.0
    assert abs(difference.std().item() - 0.5) < 0.02
    assert abs(difference.mean().item()) < 0.02
    static = gaussian_noise(direct_code(torch.rand(2, 3, 8, 8), 4), 0.1)
    assert is_static(static)
    assert torch.equal(gaussian_noise(events, 0.0), events)
    assert gaussian_noise(events, 5.0).max() <= 10.0
    assert gaussian_noise(events, 5.0).min() >= 0.0


def test_event_noise_adds_whole_events_at_its_rate() -> None:
    added = event_noise(torch.full((4, 5, 2, 32, 32), 2.0), 0.3) - 2.0
    assert torch.equal(added, added.round())
    assert added.min() == 0
    assert abs(added.mean().item() - 0.3) < 0.01
    assert abs(added.var().item() - 0.3) < 0.02  # a Poisson's variance is its mean


def test_frames_dropped_are_k_of_each_sample_and_not_the_same_ones() -> None:
    events = torch.ones(64, 6, 2, 3, 3)
    kept = drop_frames(events, 2).flatten(2).mean(-1)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert (kept.sum(1) == 4).all()
    assert (kept.mean(0) - 4 / 6).abs().max() < 0.25
    assert torch.equal(drop_frames(events, 0), events)
    assert drop_frames(events, 6).sum() == 0


def _trained() -> tuple[nn.Module, list[Batch]]:
    """A small spiking net that tells apart where events lie, and batches it is right about."""
    label = torch.arange(48) % K
    rate = torch.full((48, 1, 2, 6, 6), 0.3)
    for b, k in enumerate(label.tolist()):
        rate[b, :, :, :, 2 * k : 2 * k + 2] = 1.5
    events = torch.poisson(rate.expand(-1, 4, -1, -1, -1))
    net = _spiking()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(events).logits.mean(1), label).backward()
        optimizer.step()
    return net, [Batch(events[:20], label[:20]), Batch(events[20:], label[20:])]


@pytest.mark.slow
def test_accuracy_falls_under_attack_and_the_table_is_the_same_again() -> None:
    net, batches = _trained()
    rows = (
        attack("fgsm", 0.2)
        | attack("pgd", 0.2, steps=3)
        | noise(sigma=0.3, rate=1.0, dropped=2)
        | {"fgsm 0": lambda net, batch, _: fgsm(net, batch.events, batch.label, 0.0)}
    )
    cpu = torch.device("cpu")
    table = robustness(net, batches, cpu, rows, seed=1)
    assert list(table) == [
        "clean",
        "fgsm 51/255",
        "pgd-3 51/255",
        "gaussian 0.3",
        "event noise 1",
        "2 frames dropped",
        "fgsm 0",
    ]
    assert table["clean"] > 0.8
    assert table["fgsm 0"] == table["clean"]
    assert table["fgsm 51/255"] < table["clean"] - 0.2
    assert table["pgd-3 51/255"] < table["clean"] - 0.2
    assert robustness(net, batches, cpu, rows, seed=1) == table
    alone = robustness(net, batches, cpu, noise(sigma=0.3), seed=1)
    assert alone["gaussian 0.3"] == table["gaussian 0.3"]  # whatever other rows there are


@pytest.mark.parametrize("normalize", ["none", "max"])
def test_further_events_are_for_counts_alone(
    normalize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a sample's largest count is 1, an event that adds 1 is none."""
    data = Digits(T=2, size=16, per_class=1, test_fraction=0.02, normalize=normalize)
    opened = Reopened(VGGSNN(10, layers=[4], pooled=True), data, {"seed": 0}, "estl.TSE")
    monkeypatch.setattr(run, "reopen", lambda *_, **__: opened)
    found = run.test(Path("last.ckpt"), noisy=True).robustness
    assert ("event noise 0.05" in found) == (normalize == "none")
    assert {"clean", "gaussian 0.1", "1 frame dropped"} <= found.keys()


@pytest.mark.parametrize(
    ("text", "eps"), [("8/255", 8 / 255), (" 2 / 255 ", 2 / 255), ("0.03", 0.03), ("0", 0.0)]
)
def test_eps_is_read_as_a_fraction_or_a_number(text: str, eps: float) -> None:
    assert parse_eps(text) == eps


@pytest.mark.parametrize("text", ["", "8/0", "a/255", "8", "-1/255", "nan"])
def test_an_eps_that_is_no_share_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="eps=") as error:
        parse_eps(text)
    assert "\n" not in str(error.value)


def test_values_out_of_range_are_refused() -> None:
    net, events, label = Linear(), _events(), torch.arange(5) % K
    with pytest.raises(ValueError, match=r"eps=1\.5"):
        fgsm(net, events, label, 1.5)
    with pytest.raises(ValueError, match="steps=0"):
        pgd(net, events, label, 0.1, steps=0)
    with pytest.raises(ValueError, match="alpha=-1"):
        pgd(net, events, label, 0.1, alpha=-1.0)
    with pytest.raises(ValueError, match="sigma=-1"):
        gaussian_noise(events, -1.0)
    with pytest.raises(ValueError, match="rate=-1"):
        event_noise(events, -1.0)
    with pytest.raises(ValueError, match="k=4"):
        drop_frames(events, 4)
    with pytest.raises(ValueError, match="'cw'"):
        attack("cw", 0.1)
