"""Shares of a split are its batches in one process; who loads ends with the one that started it."""

import multiprocessing
import os
import signal
import time
from itertools import chain, zip_longest

import pytest
from torch.utils.data import DistributedSampler

from estl.data.loader import Shares, end_alone

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def load(said: int, orphaned: bool) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while orphaned and os.getppid() == parent.pid:
        time.sleep(0.001)
    end_alone(0)
    os.write(said, b"loads")


def start(said: int, killed: bool) -> None:
    assert FORK is not None
    loading = FORK.Process(target=load, args=(said, killed))
    loading.start()
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    loading.join()


@pytest.mark.skipif(FORK is None, reason="it forks")
@pytest.mark.parametrize("killed", [False, True])
def test_a_process_whose_parent_was_killed_while_it_started_does_not_load(killed: bool) -> None:
    assert FORK is not None
    here, there = os.pipe()
    parent = FORK.Process(target=start, args=(there, killed))
    parent.start()
    os.close(there)
    with os.fdopen(here, "rb") as said:  # to its end: both processes have ended
        assert said.read() == (b"" if killed else b"loads")
    parent.join()


def batches(size: int, batch_size: int, R: int, shuffle: bool) -> list[list[int]]:
    """What R processes read at each step, together."""
    shares = [
        Shares(size, batch_size=batch_size, R=R, rank=r, shuffle=shuffle, seed=3) for r in range(R)
    ]
    own = batch_size // R
    read = []
    for share in shares:
        share.set_epoch(2)
        order = list(share)
        assert len(order) == len(share)
        read.append([order[i : i + own] for i in range(0, len(order), own)])
    assert len({len(each) for each in read}) == 1  # DDP waits for all in each step
    return [sorted(chain(*step)) for step in zip_longest(*read, fillvalue=[])]


@pytest.mark.parametrize("R", [1, 2, 4])
@pytest.mark.parametrize("size", [8, 16, 17, 18, 20, 21, 23, 24, 25])
def test_processes_read_together_what_one_reads(size: int, R: int) -> None:
    n, last = size // 8, size % 8
    whole, together = batches(size, 8, 1, True), batches(size, 8, R, True)
    least = {1: 2, 2: 4, 4: 4}[R]  # four processes have two samples of a batch each
    assert together == (whole[:n] if 0 < last < least else whole)
    everything = list(chain(*together))
    assert len(set(everything)) == len(everything) == (n * 8 if last < least else size)
    *first, final = batches(size, 8, R, False)
    again = list(range(R - last)) if 0 < last < R else []
    assert [*first, final] == [*batches(size, 8, 1, False)[:-1], sorted([*again, *last_of(size)])]


def last_of(size: int) -> range:
    """The last batch of eight of a split in order."""
    return range((size - 1) // 8 * 8, size)


def test_shares_have_the_order_of_pytorchs_sampler() -> None:
    for shuffle in (True, False):
        ours = Shares(24, batch_size=8, R=2, rank=1, shuffle=shuffle, seed=5)
        theirs: DistributedSampler[int] = DistributedSampler(
            range(24), num_replicas=2, rank=1, shuffle=shuffle, seed=5
        )
        for epoch in (0, 7):
            ours.set_epoch(epoch)
            theirs.set_epoch(epoch)
            assert list(ours) == list(theirs)


def test_each_of_many_processes_has_one_of_few_samples_but_not_to_train_on() -> None:
    assert [list(Shares(3, batch_size=8, R=4, rank=r)) for r in range(4)] == [[0], [1], [2], [0]]
    with pytest.raises(ValueError, match="3 training samples are too few for 4 processes"):
        Shares(3, batch_size=8, R=4, shuffle=True)
