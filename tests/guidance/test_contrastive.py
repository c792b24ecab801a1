import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from estl.guidance import ContrastiveLoss
from estl.guidance.ranks import share
from tests.forked import start_processes


def loop(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, positives: str
) -> float:
    B = len(student)
    d, r = student.double().tolist(), teacher.double().tolist()

    def cosine(x: list[float], y: list[float]) -> float:
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))

    total = 0.0
    for i in range(B):
        s = [cosine(d[i], r[j]) / temperature for j in range(B)]
        top = max(s)
        log_sum = top + math.log(sum(math.exp(x - top) for x in s))
        same = [j for j in range(B) if (j == i if positives == "pair" else labels[j] == labels[i])]
        total -= sum(s[j] - log_sum for j in same) / len(same) / B
    return total


@pytest.mark.parametrize("positives", ["pair", "class"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_loss_equals_a_scalar_loop(positives: str, temperature: float) -> None:
    student, teacher, labels = (
        torch.randn(7, 5),
        torch.randn(7, 5),
        torch.tensor([0, 1, 0, 2, 1, 0, 3]),
    )
    loss = ContrastiveLoss(temperature, positives)(student, teacher, labels)
    assert loss.item() == pytest.approx(
        loop(student, teacher, labels, temperature, positives), rel=1e-5
    )


def test_pairs_golden(golden: dict[str, Any]) -> None:
    torch.manual_seed(11)
    student, teacher = torch.randn(6, 32), torch.randn(6, 32)
    loss = ContrastiveLoss()(student, teacher, torch.zeros(6, dtype=torch.long))
    assert loss.item() == pytest.approx(golden["info_nce_pair"]["loss"], abs=1e-5)


def test_with_all_labels_different_class_is_pair() -> None:
    student, teacher, labels = torch.randn(5, 8), torch.randn(5, 8), torch.arange(5)
    pair, of_class = (
        ContrastiveLoss(positives=p)(student, teacher, labels) for p in ("pair", "class")
    )
    torch.testing.assert_close(pair, of_class)


@pytest.mark.parametrize("positives", ["pair", "class"])
def test_a_batch_of_one_gives_zero_with_gradient_zero(positives: str) -> None:
    student = torch.randn(1, 8, requires_grad=True)
    loss = ContrastiveLoss(positives=positives)(student, torch.randn(1, 8), torch.tensor([3]))
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(student.grad, torch.zeros(1, 8))


def test_bfloat16_features_under_autocast_are_compared_in_float32() -> None:
    student, teacher, labels = (
        torch.randn(6, 32).bfloat16(),
        torch.randn(6, 32).bfloat16(),
        torch.arange(6),
    )
    expected = ContrastiveLoss()(student.float(), teacher.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ContrastiveLoss()(student, teacher, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_options_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for temperature in (0.0, math.nan):
        with pytest.raises(ValueError, match=f"temperature must be above 0, got {temperature}"):
            ContrastiveLoss(temperature)
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    unknown: Any = "classes"
    with pytest.raises(ValueError, match=r"^positives must be .*, got 'classes'"):
        ContrastiveLoss(positives=unknown)


class Towers(nn.Module):
    """Two small towers and the loss, with gradient on both sides."""

    def __init__(self, positives: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = nn.Linear(6, 4), nn.Linear(5, 4)
        self.loss = ContrastiveLoss(positives=positives)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.student(student), self.teacher(teacher), labels)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(8, 6), torch.randn(8, 5), torch.tensor([0, 1, 2, 0, 1, 0, 2, 2])


def rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=300),
    )
    for positives in ("pair", "class"):
        for cut in (4, 3):  # rank 0 has so many of the eight
            own = slice(0, cut) if rank == 0 else slice(cut, 8)
            torch.save(trained(positives, own), f"{folder}/{positives}-{cut}-{rank}.pt")
    dist.barrier()  # neither rank may close the store while the other still talks
    dist.destroy_process_group()


def trained(positives: str, own: slice) -> dict[str, Tensor | None]:
    """Gradients and loss of a share of the batch.

    DDP ends here: one that outlives its group of gloo destroys it with Python's lock in hand,
    for which the group's threads may wait (torch 2.13).
    """
    towers = DistributedDataParallel(Towers(positives))
    loss = towers(*(x[own] for x in batch()))
    weighted = loss * share(own.stop - own.start, loss.device) * 2  # DDP takes half of it
    weighted.backward()
    mean = weighted.detach() / 2
    dist.all_reduce(mean)
    found = {n.removeprefix("module."): p.grad for n, p in towers.named_parameters()}
    return found | {"loss": mean}


@pytest.mark.slow
def test_two_ranks_that_share_a_batch_are_one_rank_with_the_whole(tmp_path: Path) -> None:
    start_processes(rank_of_two, (str(tmp_path),), 2)
    for positives in ("pair", "class"):
        towers = Towers(positives)
        loss = towers(*batch())
        loss.backward()
        expected = {n: p.grad for n, p in towers.named_parameters()} | {"loss": loss.detach()}
        for path in [
            tmp_path / f"{positives}-{cut}-{rank}.pt" for cut in (4, 3) for rank in (0, 1)
        ]:
            got = torch.load(path)
            assert got.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=1e-5)
