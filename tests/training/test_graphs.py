"""Students of one's own as graphs: a free batch, and operators of other packages."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from estl.students.adapters import from_spikingjelly
from estl.training.graphs import read_program, to_program, write_program
from estl.types import Output


class Batched(nn.Module):
    """A student that asks for the number of samples in a way of its own."""

    def __init__(self, ask: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.ask = ask

    def forward(self, events: Tensor) -> Output:
        pooled = events.reshape(self.ask(events), *events.shape[1:3], -1).mean(-1)
        return Output(pooled, events, lambda x: x, pooled)


@pytest.mark.parametrize(
    "ask",
    [
        len,
        lambda x: int(x.shape[0]),
        lambda x: len(list(x)),
        lambda x: x.shape[0] if x.shape[0] < 9 else 9,
    ],
    ids=["len", "int", "loop", "if"],
)
def test_a_student_that_fixes_the_batch_is_told_what_to_write(ask: Callable[[Tensor], int]) -> None:
    events = torch.rand(4, 3, 2, 8, 8)
    with pytest.raises(ValueError, match=r"x\.shape\[0\] in place of len\(x\)") as raised:
        to_program(Batched(ask).eval(), events, stepwise=False)
    assert "\n" not in str(raised.value)
    advised = Batched(lambda x: x.shape[0]).eval()
    program = to_program(advised, events, stepwise=False).module()
    for n in (1, 2, 4):
        torch.testing.assert_close(program(events[:n]), advised(events[:n]).logits)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["s", "m"])
def test_neurons_of_spikingjelly_are_read_where_it_is_not_imported(
    mode: str, tmp_path: Path
) -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron

    maps = nn.Sequential(layer.Conv2d(2, 4, 3), neuron.LIFNode(v_threshold=0.1))
    net = nn.ModuleDict({"maps": maps, "head": layer.Linear(4, 3)})
    functional.set_step_mode(net, mode)
    student = from_spikingjelly(net, features=net["maps"], head=net["head"]).eval()
    events, file = torch.rand(5, 3, 2, 8, 8), tmp_path / "student.pt2"
    write_program(student, events, file, stepwise=False)
    with torch.no_grad():
        expected = student(events).logits
    torch.testing.assert_close(read_program(file, stepwise=False)(events), expected)
    assert expected.std(1).max() > 0  # it fires


def test_an_operator_that_is_made_of_nothing_else_is_refused(tmp_path: Path) -> None:
    @torch.library.custom_op("estl_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)

    class Twice(nn.Module):
        def forward(self, events: Tensor) -> Output:
            pooled = twice(events.mean((-2, -1)))
            return Output(pooled, events, lambda x: x, pooled)

    file = tmp_path / "student.pt2"
    with pytest.raises(
        ValueError, match=r"Twice computes with estl_tests.twice.default.*: use safe"
    ):
        write_program(Twice().eval(), torch.rand(2, 3, 2, 8, 8), file, stepwise=False)
    assert not file.exists()
