"""Students that PyTorch shards over processes (FSDP2) train what one process trains."""

import socket
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from estl.students import VGGSNN, ResNet, Spikformer
from estl.supervision import TET, TSE
from estl.types import Batch, Supervision
from tests.forked import start_processes
from tests.training.test_processes import Student

Made = tuple[Callable[[], nn.Module], Callable[[], Supervision], bool]
CASES: dict[str, Made] = {  # the last one: each process has its own half of a batch
    "vggsnn": (lambda: VGGSNN(layers=(8, "AP", 16), frame_size=(16, 16)), TET, False),
    "resnet": (lambda: ResNet((1, 1), (8, 16), in_channels=2, hidden=8), TSE, False),
    "spikformer": (lambda: Spikformer(dim=16, depth=2, heads=2), TET, False),
    "without batch norm": (Student, TET, True),
}
"""With batch norm, whose statistics are a process's own, all processes see the whole batch."""


def train(student: nn.Module, supervision: Supervision, share: slice) -> None:
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        events = torch.poisson(torch.rand(8, 3, 2, 16, 16, generator=draw), generator=draw)
        batch = Batch(events[share], torch.arange(8)[share])
        optimizer.zero_grad()
        supervision(student(batch.events), batch).total.backward()
        optimizer.step()


def sharded(rank: int, port: int, folder: str) -> None:
    """One of two processes: a shard of each layer with weights is here, the rest is there."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name, (build, supervise, halves) in CASES.items():
        torch.manual_seed(1)
        student = build()
        alone = deepcopy(student)
        for p in student.parameters():  # FSDP2 takes no weights of convolutions that are NHWC
            p.data = p.data.contiguous()
        for layer in student.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                fully_shard(layer, mesh=mesh)
        fully_shard(student, mesh=mesh)
        assert all(p.to_local().numel() < p.numel() for p in student.parameters() if len(p) > 1)  # type: ignore[attr-defined]
        train(student, supervise(), slice(rank, None, 2) if halves else slice(None))
        whole = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            start = {key: value.clone() for key, value in alone.state_dict().items()}
            train(alone, supervise(), slice(None))
            found[name] = whole, alone.state_dict(), start
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_students_train_what_one_process_trains(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(sharded, (port, str(tmp_path)), 2)
    found: dict[str, tuple[dict[str, Tensor], ...]] = torch.load(tmp_path / "found.pt")
    assert list(found) == list(CASES)
    for name, (sharded_weights, weights, start) in found.items():
        for key, value in weights.items():
            torch.testing.assert_close(
                sharded_weights[key], value, atol=1e-6, rtol=0, msg=f"{name} {key}"
            )
        assert any(not torch.equal(weights[key], start[key]) for key in weights), name
