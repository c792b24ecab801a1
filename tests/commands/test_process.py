"""A process of `estl` keeps memory and does not spin, unless the user says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, numpy as np
from estl.commands.process import keep_freed_memory
keep_freed_memory()
for _ in range(20):
    np.ones(8 << 20)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")
def test_freed_memory_is_used_again_unless_the_user_says_otherwise() -> None:
    def faults(**more: str) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
        command = [sys.executable, "-c", FAULTS]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    theirs = faults(MALLOC_ARENA_MAX="8")
    assert theirs - faults() > theirs / 2


WAITS = """
from estl.commands.process import wait_without_spinning_long
wait_without_spinning_long()
import torch
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU OpenMP is PyTorch's on Linux")
@pytest.mark.parametrize(
    ("theirs", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_threads_wait_without_spinning_long_unless_the_user_says_otherwise(
    theirs: dict[str, str], expected: str
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = kept | theirs | {"OMP_DISPLAY_ENV": "VERBOSE"}
    command = [sys.executable, "-c", WAITS]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
