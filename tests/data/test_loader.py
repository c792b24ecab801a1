"""Processes that load end with the one that has started them, whenever that is killed."""

import multiprocessing
import os
import signal
import time

import pytest

from estl.data.loader import end_alone

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
