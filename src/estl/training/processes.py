"""Which of several processes this is, and how it relates to the launcher that started them."""

import os
import re
from typing import NamedTuple

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

_LAUNCHERS = re.compile(
    r"(TORCHELASTIC|SLURM|GROUP|ROLE)_|(LOCAL_|NODE_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$"
)
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "ESTL_RESTART_COUNT")


class Launched(NamedTuple):
    """This process among those that torchrun or srun has started.

    Args:
        rank: its number.
        size: how many there are.
        here: how many of them are on this machine.
    """

    rank: int
    size: int
    here: int


def launched() -> Launched | None:
    """What a launcher has started, None if there is none."""
    if TorchElasticEnvironment.detect():
        elastic = TorchElasticEnvironment()
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return Launched(elastic.global_rank(), elastic.world_size(), here)
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():  # else it advises to use srun
        slurm = SLURMEnvironment()
        size = slurm.world_size()
        return Launched(slurm.global_rank(), size, size // int(os.environ.get("SLURM_NNODES", 1)))
    return None


def rank() -> int:
    """Number of this process among those that train together, 0 if it is alone."""
    return int(getattr(rank_zero_only, "rank", 0))


def restarted() -> bool:
    """Whether a launcher has restarted this process after a process or a machine was lost."""
    return any(int(os.environ.get(name, 0)) > 0 for name in _RESTARTS)


def stale_store() -> str:
    """What to do if restarted processes look for those that they replace; "" otherwise.

    torchrun's store of addresses outlives a restart, and a process may read an old address there
    before the new one has been written. With the variable it makes a store for each start.
    """
    if restarted() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return ": start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
    return ""


def take_over() -> int:
    """Leave a launcher's group, for a command whose runs are processes of their own.

    The first process forgets the launcher, so that neither it nor its runs wait for the others.

    Returns:
        How many processes the launcher has started here, 1 if there is none. 0 in all but the
        first process: these have nothing to do.
    """
    found = launched()
    if found is None:
        return 1
    if found.rank > 0:
        return 0
    for name in os.environ.keys() - alone().keys():
        del os.environ[name]
    return found.here


def alone() -> dict[str, str]:
    """This process's environment without what a launcher has set, for a process of its own."""
    return {name: value for name, value in os.environ.items() if not _LAUNCHERS.match(name)}
