"""Students from outside: the protocol, and networks of SpikingJelly and snnTorch as students."""

import builtins
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from estl.students import VGGSNN, Spikformer, resnet18, resnet19, resnet34, resnet50
from estl.students.adapters import Adapter, from_snntorch, from_spikingjelly, from_torch
from estl.supervision import TSE
from estl.types import Batch

K = 3


class Net(nn.Module):
    """Maps, global pooling, head: step by step, or time first."""

    def __init__(self, features: nn.Module, head: Any) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((-2, -1)))
        return logits


def _spikingjelly(mode: str) -> tuple[Adapter, Callable[[Tensor], Tensor]]:
    """A network as a student, and the same network run by SpikingJelly."""
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def lif() -> nn.Module:
        return neuron.LIFNode(surrogate_function=surrogate.ATan(), v_threshold=0.2)

    net = Net(
        nn.Sequential(layer.Conv2d(2, 6, 3, padding=1), layer.BatchNorm2d(6), lif()),
        nn.Sequential(layer.Linear(6, 8), lif(), layer.Linear(8, K)),
    )
    nn.init.normal_(net.head[0].weight)  # at PyTorch's start the head's neurons are silent
    functional.set_step_mode(net, mode)

    def run(events: Tensor) -> Tensor:
        functional.reset_net(net)
        steps = events.transpose(0, 1)
        return net(steps) if mode == "m" else torch.stack([net(x) for x in steps])

    return from_spikingjelly(net, features=net.features, head=net.head), run


def _snntorch(neuron: str) -> tuple[Adapter, Callable[[Tensor], Tensor]]:
    """A network whose neurons hide their state as a student, and the same run by snnTorch."""
    snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    utils = pytest.importorskip("snntorch.utils", reason="snnTorch is not installed")
    options: dict[str, Any] = {"beta": 0.8, "threshold": 0.3, "init_hidden": True}
    if neuron == "Synaptic":
        options["alpha"] = 0.5

    def lif() -> nn.Module:
        module: nn.Module = getattr(snn, neuron)(**options)
        return module

    net = Net(
        nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), lif()),
        nn.Sequential(nn.Linear(6, 8), lif(), nn.Linear(8, K)),
    )

    def run(events: Tensor) -> Tensor:
        utils.reset(net.features)
        return torch.stack([net(x) for x in events.transpose(0, 1)])

    return from_snntorch(net, features=net.features, head=net.head), run


class Explicit(nn.Module):
    """Convolution and snnTorch's Leaky, whose potential the caller carries."""

    def __init__(self) -> None:
        super().__init__()
        snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.lif = snn.Leaky(beta=0.8, threshold=0.3)
        self.fc = nn.Linear(6, K)
        self.out = snn.Leaky(beta=0.9, threshold=0.3)

    def maps(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        spikes, mem = self.lif(self.conv(x), mem)
        return spikes, mem

    def logits(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The potential is the logit."""
        _, mem = self.out(self.fc(x), mem)
        return mem, mem


def _explicit() -> tuple[Adapter, Callable[[Tensor], Tensor]]:
    net = Explicit()

    def run(events: Tensor) -> Tensor:
        mem, out = net.lif.reset_mem(), net.out.reset_mem()
        steps = []
        for x in events.transpose(0, 1):
            spikes, mem = net.lif(net.conv(x), mem)
            _, out = net.out(net.fc(spikes.mean((-2, -1))), out)
            steps.append(out)
        return torch.stack(steps)

    return from_snntorch(net, features=net.maps, head=net.logits), run


WRAPPED: dict[str, Callable[[], tuple[Adapter, Callable[[Tensor], Tensor]]]] = {
    "spikingjelly_multi_step": lambda: _spikingjelly("m"),
    "spikingjelly_single_step": lambda: _spikingjelly("s"),
    "snntorch_leaky": lambda: _snntorch("Leaky"),
    "snntorch_synaptic": lambda: _snntorch("Synaptic"),
    "snntorch_explicit": _explicit,
}


@pytest.fixture(params=list(WRAPPED))
def wrapped(request: pytest.FixtureRequest) -> tuple[Adapter, Callable[[Tensor], Tensor]]:
    return WRAPPED[request.param]()


Wrapped = tuple[Adapter, Callable[[Tensor], Tensor]]


def _batch(B: int = 6) -> Batch:
    """Classes that differ in where their events lie."""
    label = torch.arange(B) % K
    rate = torch.zeros(B, 1, 2, 6, 6)
    for b, k in enumerate(label.tolist()):
        rate[b, :, :, 2 * k : 2 * k + 2] = 1.0 + k
    return Batch(torch.poisson(rate.expand(B, 4, 2, 6, 6)), label)


def test_logits_are_those_of_the_network_run_by_its_own_framework(wrapped: Wrapped) -> None:
    student, run = wrapped
    student.eval()
    events = _batch().events
    with torch.no_grad():
        expected = run(events).transpose(0, 1)
        output = student(events)
    # Means over places may be summed in another order: a few roundings of values around 1.
    torch.testing.assert_close(output.logits, expected)
    assert expected.std() > 0
    assert expected.std(1).max() > 0  # state counts: the steps differ


@pytest.mark.slow
def test_training_with_tse_lowers_the_loss_and_reaches_every_parameter(wrapped: Wrapped) -> None:
    student, _ = wrapped
    batch, supervision = _batch(12), TSE()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = supervision(student(batch.events), batch).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_unwrap_gives_the_network_itself_trained_and_with_its_own_keys(wrapped: Wrapped) -> None:
    student, run = wrapped
    keys = {name.removeprefix("net.") for name in student.state_dict()}
    net = student.unwrap()
    assert set(net.state_dict()) == keys
    assert {id(p) for p in net.parameters()} == {id(p) for p in student.parameters()}
    events = _batch().events
    student.eval()
    with torch.no_grad():
        before = student(events).logits
        torch.testing.assert_close(run(events).transpose(0, 1), before)


def test_no_state_is_left_between_batches_of_other_sizes(wrapped: Wrapped) -> None:
    student, _ = wrapped
    student.eval()
    events = _batch(6).events
    expected = student(events).logits
    for B in (1, 4, 6):
        torch.testing.assert_close(student(events[:B]).logits, expected[:B])
    assert torch.equal(student(events).logits, expected)


def test_asking_the_head_about_places_changes_nothing(wrapped: Wrapped) -> None:
    student, _ = wrapped
    student.eval()
    events = _batch().events
    output = student(events)
    pooled = output.features.mean((-2, -1))
    output.classify(torch.rand(5, 2, 6))
    assert torch.equal(output.classify(pooled), output.logits)
    assert torch.equal(student(events).logits, output.logits)


def test_training_goes_on_after_a_test_in_inference_mode(wrapped: Wrapped) -> None:
    student, _ = wrapped
    batch = _batch()
    with torch.inference_mode():
        student(batch.events)
    TSE()(student(batch.events), batch).total.backward()
    assert all(p.grad is not None for p in student.parameters())


def test_a_copy_stands_alone(wrapped: Wrapped) -> None:
    student, _ = wrapped
    student.eval()
    events = _batch().events
    expected = student(events).logits
    other = copy.deepcopy(student)
    assert torch.equal(other(events).logits, expected)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(student(events).logits, expected)


def test_a_network_that_pickles_still_does() -> None:
    student, _ = _spikingjelly("m")
    student.eval()
    events = _batch().events
    expected = student(events).logits
    assert torch.equal(pickle.loads(pickle.dumps(student))(events).logits, expected)


def test_state_is_cleared_when_the_network_fails() -> None:
    student, _ = _snntorch("Leaky")
    student.eval()
    events = _batch().events
    expected = student(events).logits
    with pytest.raises(RuntimeError):
        student(torch.rand(2, 3, 5, 6, 6))
    assert torch.equal(student(events).logits, expected)


def test_a_plain_network_sees_each_step_by_itself() -> None:
    maps = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    net = nn.ModuleDict({"maps": maps, "head": nn.Linear(6, 4)}).eval()
    student, events = from_torch(net, features=maps, head=net["head"]), torch.rand(3, 5, 2, 8, 8)
    whole = net["head"](maps(events.flatten(0, 1)).mean((-2, -1))).unflatten(0, (3, 5))
    torch.testing.assert_close(student(events).logits, whole)


def test_layers_of_different_step_modes_are_refused() -> None:
    student, _ = _spikingjelly("m")
    net = student.unwrap()
    net.features[0].step_mode = "s"
    with pytest.raises(ValueError, match="step_mode") as error:
        from_spikingjelly(net, features=net.features, head=net.head)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "name"), [(from_spikingjelly, "SpikingJelly"), (from_snntorch, "snnTorch")]
)
def test_a_framework_that_is_not_installed_is_named(
    make: Callable[..., Adapter], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = builtins.__import__

    def absent(module: str, *args: Any, **options: Any) -> Any:
        if module.startswith(("spikingjelly", "snntorch")):
            raise ImportError(module)
        return ordinary(module, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    net = Net(nn.Conv2d(2, 4, 3), nn.Linear(4, K))
    with pytest.raises(ValueError, match=f"{name} is not installed: pip install"):
        make(net, features=net.features, head=net.head)


def test_parts_that_are_not_the_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    net = Net(nn.Conv2d(2, 4, 3), nn.Linear(4, K))
    options: dict[str, Any] = {"reset": lambda net: None, "step_mode": "s"}
    with pytest.raises(ValueError, match="head is <function"):
        Adapter(net, features=net.features, head=lambda x: net.head(x), **options)
    with pytest.raises(ValueError, match="features has parameters that are not the network's"):
        Adapter(net, features=nn.Conv2d(2, 4, 3), head=net.head, **options)
    with pytest.raises(ValueError, match="step_mode must be"):
        Adapter(net, features=net.features, head=net.head, **(options | {"step_mode": "t"}))
    net = Net(nn.Flatten(), nn.Linear(4, K))
    with pytest.raises(ValueError, match="before its global pooling"):
        Adapter(net, features=net.features, head=net.head, **options)(torch.rand(1, 2, 2, 3, 4))


@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet18(K, 2),
        lambda: resnet19(K, 2),
        lambda: resnet34(K, 2),
        lambda: resnet50(K, 2),
        lambda: VGGSNN(K, 2, (16, 16), layers=(8, 16, "AP", 32, "AP"), pooled=True),
        lambda: Spikformer(K, 2, dim=16, depth=2, heads=2),
    ],
    ids=["resnet18", "resnet19", "resnet34", "resnet50", "vggsnn", "spikformer"],
)
def test_tse_trains_each_of_the_packages_own_students(build: Callable[[], nn.Module]) -> None:
    student = build()
    batch = Batch(torch.poisson(torch.ones(2, 2, 2, 16, 16)), torch.tensor([0, 2]))
    loss = TSE(tau_f=0.0, kappa=0.0)(student(batch.events), batch)
    loss.total.backward()
    assert loss.metrics["erased"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
