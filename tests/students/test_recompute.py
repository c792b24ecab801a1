"""Recomputed layers give the gradients of kept ones, bit for bit, at a fraction of the memory."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from estl.neurons import LIF, fused, fused_norm, kernels
from estl.students import VGGSNN, ResNet, Spikformer
from estl.students.layers import PerStep, fire, time_first
from estl.students.recompute import again, pack, recomputing, unpack
from estl.supervision import TET
from estl.training.learner import Learner
from estl.types import direct_code
from tests.held import most_held

STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "vggsnn": lambda: VGGSNN(layers=(8, "AP", 16, "AP", 8), frame_size=(12, 12)),
    "resnet": lambda: ResNet((1, 1), (8, 16), in_channels=2, hidden=8, stem="7x7"),
    "spikformer": lambda: Spikformer(dim=16, depth=3, heads=2),
    "spikformer, token": lambda: Spikformer(dim=16, depth=1, heads=2, readout="token"),
}


def train(student: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output, gradients, and the norms' statistics after two steps."""
    for _ in range(2):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = student(x)
        (output.logits.float().square().sum() + output.features.float().sum()).backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert len(gradients) == len(list(student.parameters()))
    return [output.logits, output.features, *gradients, *student.state_dict().values()]


@pytest.mark.parametrize(
    ("static", "dtype"),
    [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)],
)
@pytest.mark.parametrize("name", STUDENTS)
def test_recomputed_equals_kept(name: str, static: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kept = STUDENTS[name]()
    recomputed = deepcopy(kept)
    recomputing(recomputed)
    x = torch.poisson(torch.rand(3, 4, 2, 12, 12))
    x = direct_code(x[:, 0], 4) if static else x
    for a, b in zip(train(kept, x, dtype), train(recomputed, x, dtype), strict=True):
        assert torch.equal(a, b)
    assert list(recomputed.state_dict()) == list(kept.state_dict())


@pytest.mark.parametrize("first", [3 * 4 * 2 * 144, 3 * 4 * 8 * 144])
@pytest.mark.parametrize("name", ["vggsnn", "spikformer"])
def test_what_was_one_pass_is_one_again(
    name: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a layer on, those after it are: the last one is too small by itself."""
    monkeypatch.delenv("ESTL_COMPILE", raising=False)
    monkeypatch.setattr(fused, "LARGE", first)
    monkeypatch.setattr(kernels, "_no_compiler", {"cpu"})
    torch.manual_seed(0)
    kept = STUDENTS[name]()
    recomputed = deepcopy(kept)
    recomputing(recomputed)
    x = torch.poisson(torch.rand(3, 4, 2, 12, 12))
    for a, b in zip(
        train(kept, x, torch.float32), train(recomputed, x, torch.float32), strict=True
    ):
        assert torch.equal(a, b)


def test_hooks_see_what_they_see_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a convolution, over whose output the backward pass else writes, and of a block."""
    monkeypatch.setenv("ESTL_COMPILE", "1")
    monkeypatch.setattr(kernels, "_no_compiler", {"cpu"})
    monkeypatch.setattr(fused_norm, "PIECE", 1)
    for name, of in (("resnet", "stages.1.0.residual.2.0"), ("spikformer", "blocks.1")):
        torch.manual_seed(0)
        kept = STUDENTS[name]()
        seen: list[list[Tensor]] = []
        for student in (kept, deepcopy(kept)):
            if seen:
                recomputing(student)
            of_this: list[Tensor] = []
            student.get_submodule(of).register_forward_hook(
                lambda *args, s=of_this: s.append(args[2])
            )
            torch.manual_seed(0)
            train(student, torch.poisson(torch.rand(3, 4, 2, 12, 12)), torch.float32)
            seen.append(of_this)
        passes = len(seen[1]) // len(seen[0])  # a block's second pass ends before its hook
        assert (len(seen[0]), passes) == (2, 2 if name == "resnet" else 1)
        assert all(torch.equal(seen[0][i // passes], x) for i, x in enumerate(seen[1]))


def test_what_no_layer_made_is_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the norm reads the input of the block, and so does its shortcut."""
    monkeypatch.setenv("ESTL_COMPILE", "1")
    monkeypatch.setattr(kernels, "_no_compiler", {"cpu"})
    monkeypatch.setattr(fused_norm, "PIECE", 1)
    torch.manual_seed(0)
    norm = PerStep(nn.Identity(), nn.BatchNorm2d(8))
    x = time_first(torch.rand(3, 4, 8, 6, 6).round(), 8).requires_grad_()
    found = []
    for way in (lambda block: block(x), lambda block: again(norm, block, x)):
        y = way(lambda x: fire(norm, LIF.tet(), x, x))
        found.append([y, *torch.autograd.grad((y * torch.arange(6)).sum(), x)])
    assert torch.equal(x, x.round())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


DEEP: dict[str, Callable[[], nn.Module]] = {
    "vggsnn": lambda: VGGSNN(layers=(8,) * 8, frame_size=(12, 12), pooled=True),
    "resnet": lambda: ResNet((6,), (8,), in_channels=2, stem_width=8),
    "spikformer": lambda: Spikformer(dim=16, depth=4, heads=2, mlp_ratio=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_memory_grows_less_with_time(name: str) -> None:
    def peak(T: int, recompute: bool) -> int:
        student = DEEP[name]()
        if recompute:
            recomputing(student)
        x = torch.rand(2, T, 2, 12, 12).round()
        return most_held(lambda: student(x).logits.sum().backward())

    kept, recomputed = (peak(8, lean) - peak(2, lean) for lean in (False, True))
    assert recomputed < kept / 3, recomputed / kept


@given(st.lists(st.integers(0, 255), min_size=1, max_size=40), st.sampled_from([1, 255]))
def test_packed_integers_come_back(values: list[int], levels: int) -> None:
    x = torch.tensor([min(value, levels) for value in values], dtype=torch.bfloat16)
    packed = pack(x, levels)
    assert torch.equal(unpack(packed), x)
    assert packed.data.nbytes == (-(-len(x) // 8) if levels == 1 else len(x))


def test_packed_integers_keep_their_place_in_memory() -> None:
    x = torch.rand(4, 3, 2, 5, 6).round().transpose(0, 1)
    x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    back = unpack(pack(x, 1))
    assert torch.equal(back, x)
    assert back.stride() == x.stride()


def test_what_cannot_be_recomputed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learner\.recompute: Linear has no attribute recompute"):
        Learner(nn.Linear(2, 2), TET(), recompute=True)
    with pytest.raises(ValueError, match=r"learner\.compile and learner\.recompute: choose one"):
        Learner(VGGSNN(), TET(), compile=True, recompute=True)
