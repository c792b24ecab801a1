"""One frame at a time gives what the whole recording gives, bit for bit."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from estl.evaluation.accuracy import running_mean
from estl.neurons import LIF
from estl.students import VGGSNN, ResNet, Spikformer
from estl.students.adapters import Adapter
from estl.students.layers import per_step, time_first
from estl.students.stream import State, fold, step
from estl.types import direct_code

SIZE, K = 9, 3  # odd numbers: rows of a batch then start anywhere in memory
STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "vggsnn": lambda: VGGSNN(K, 2, (SIZE, SIZE), layers=(7, "AP", 5)),
    "vggsnn_pooled": lambda: VGGSNN(K, 2, (SIZE, SIZE), layers=("AP", 7, "AP", 5), pooled=True),
    "vggsnn_soft": lambda: VGGSNN(
        K, 2, (SIZE, SIZE), layers=(7, "AP", 5), neuron={"reset": "soft", "decay": 0.9}
    ),
    "resnet": lambda: ResNet((1, 1), (7, 10), K, 2, stem_width=5),
    "resnet_hidden": lambda: ResNet((1, 1), (7, 10), K, 2, stem_width=5, hidden=11),
    "resnet_bottleneck": lambda: ResNet((1, 1), (4, 6), K, 2, bottleneck=True, stem="7x7"),
    "spikformer": lambda: Spikformer(K, 2, dim=24, depth=1, heads=3, scale=1.0, poolings=1),
    "spikformer_token": lambda: Spikformer(
        K, 2, dim=24, depth=1, heads=3, scale=1.0, poolings=1, readout="token"
    ),
}


def counts(B: int, T: int) -> Tensor:
    return torch.poisson(torch.rand(B, 1, 2, SIZE, SIZE).expand(B, T, 2, SIZE, SIZE))


def settled(name: str) -> nn.Module:
    """A student in eval mode, with running statistics at which its layers fire."""
    net = STUDENTS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(counts(8, 6))
    return net.eval()


def whole(net: nn.Module, events: Tensor) -> Tensor:
    """Mean logits after each step, as accuracy is counted by them."""
    with torch.inference_mode():
        return running_mean(net(events).logits)


def streamed(net: nn.Module, events: Tensor, starts: Tensor) -> tuple[Tensor, State]:
    """The same a frame at a time; stream b starts anew before frame t where `starts[t, b]`."""
    state, found = None, []
    for t, frame in enumerate(events.unbind(1)):
        state = None if state is None else state.restart(starts[t])
        logits, state = step(net, frame, state)
        found.append(logits)
    assert state is not None
    return torch.stack(found, 1), state


def compare(name: str, B: int, T: int, restarts: int) -> State:
    net, events = settled(name), counts(B, T)
    starts = torch.rand(T, B).argsort(0) < restarts
    starts[0] = True
    logits, state = streamed(net, events, starts)
    assert len(logits.unique()) > T // 4  # it answers to what it sees
    for b in range(B):
        first = starts[:, b].nonzero().flatten().tolist()
        for t, stop in zip(first, [*first[1:], T], strict=True):
            assert torch.equal(whole(net, events[:, t:stop])[b], logits[b, t:stop])
    return state


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("name", STUDENTS)
def test_streams_with_their_own_starts_equal_whole_recordings(name: str, B: int) -> None:
    compare(name, B, T=24, restarts=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vggsnn", "resnet_hidden", "spikformer_token"])
def test_many_steps_equal_the_whole_and_the_state_does_not_grow(name: str) -> None:
    # A thousand of the cheapest student; of others, more than a byte counts.
    state = compare(name, B=2, T=1001 if name == "vggsnn" else 261, restarts=2)
    early = compare(name, B=2, T=3, restarts=0)
    assert [x.shape for x in state.potentials] == [x.shape for x in early.potentials]


GROWTH = """
import torch
from pathlib import Path
from estl.students import VGGSNN, step

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4  # KiB

net = VGGSNN(frame_size=(16, 16), layers=(16, "AP", 16)).eval()
frames, state = torch.rand(50, 1, 2, 16, 16), None
for n in range(3050):
    logits, state = step(net, frames[n % 50], state)
    if n == 1049:
        before = resident()
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
def test_memory_of_a_stream_does_not_grow() -> None:
    # The states of these 2,000 frames would be 40 MB.
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, check=True)
    assert int(done.stdout) < 4096


@pytest.mark.parametrize("steps", [1, 5])
def test_a_step_starts_in_memory_as_a_frame_does(steps: int) -> None:
    # Some processors sum in another order where it does not: this holds on any.
    x, seen = time_first(torch.rand(3, 5, 2, SIZE, SIZE), 2)[:, -steps:], list[Tensor]()
    assert any(step.data_ptr() % 64 for step in x.unbind(1))
    per_step(lambda step: seen.append(step) or step, x, folded=False)
    assert [step.data_ptr() % 64 for step in seen] == [0] * steps
    assert all(map(torch.equal, seen, x.unbind(1)))


@pytest.mark.parametrize("name", ["vggsnn", "resnet", "spikformer"])
def test_a_direct_coded_image_streams_too(name: str) -> None:
    net, image = settled(name), torch.rand(3, 2, SIZE, SIZE)
    logits, _ = streamed(net, direct_code(image, 12), torch.zeros(12, 3, dtype=torch.bool))
    assert torch.equal(logits, whole(net, direct_code(image, 12)))


def test_a_state_is_a_value_that_can_be_gone_on_from_twice() -> None:
    net, events = settled("spikformer_token"), counts(2, 3)
    _, state = step(net, events[:, 0])
    kept = copy.deepcopy(state)
    first, _ = step(net, events[:, 1], state)
    step(net, events[:, 2], state)
    again, _ = step(net, events[:, 1], state)
    assert torch.equal(first, again)
    assert all(map(torch.equal, kept.potentials, state.potentials))
    assert torch.equal(step(net, events[:, 1], kept)[0], first)


def test_a_student_between_steps_has_no_state() -> None:
    net, events = settled("resnet_hidden"), counts(2, 4)
    before = whole(net, events)
    _, state = step(net, events[:, 0])
    assert torch.equal(whole(net, events), before)
    assert torch.equal(step(net, events[:, 0])[0], before[:, 0])
    assert torch.equal(step(net, events[:, 1], state)[0], before[:, 1])


def test_what_cannot_be_stepped_is_refused() -> None:
    net, frame = settled("vggsnn"), counts(2, 1)[:, 0]
    with pytest.raises(ValueError, match=r"eval\(\)"):
        step(copy.deepcopy(net).train(), frame)
    _, state = step(net, frame)
    with pytest.raises(ValueError, match="holds 1 streams, but the state 2"):
        step(net, frame[:1], state)
    parts = nn.ModuleDict({"maps": nn.Conv2d(2, 8, 3), "head": nn.Linear(8, 5)})
    adapter = Adapter(
        parts, features=parts["maps"], head=parts["head"], reset=lambda net: None, step_mode="s"
    )
    with pytest.raises(ValueError, match=r"unwrap\(\)"):
        step(adapter.eval(), frame)


@pytest.mark.parametrize("name", STUDENTS)
def test_folded_norms_give_the_same_function(name: str) -> None:
    # In double precision: there no potential comes so close to its threshold that a spike changes.
    net, events = settled(name).double(), counts(2, 6).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
    one = fold(net)
    assert not [m for m in one.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    torch.testing.assert_close(whole(one, events), whole(net, events), rtol=1e-9, atol=1e-12)
    assert [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def test_folded_students_stream_bit_for_bit_as_well() -> None:
    net, events = fold(settled("vggsnn")), counts(2, 20)
    logits, _ = streamed(net, events, torch.zeros(20, 2, dtype=torch.bool))
    assert torch.equal(logits, whole(net, events))


def test_a_neuron_goes_on_from_what_it_was_left_at() -> None:
    # Five steps at once and three and two: `lif` is a scan of the same expression.
    from estl.neurons.lif import lif_from

    x = 2 * torch.rand(5, 4, 3)
    for options in (LIF.tet().options, LIF.spikformer(reset="soft").options):
        spikes, r = lif_from(None, x, **options)
        first, between = lif_from(None, x[:3], **options)
        second, last = lif_from(between, x[3:], **options)
        assert torch.equal(torch.cat((first, second)), spikes)
        assert torch.equal(last, r)
