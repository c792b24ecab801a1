import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, numpy as np
from estl.commands.memory import keep_freed_memory
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
