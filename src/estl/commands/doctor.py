"""`estl doctor`: what ESTL finds on this machine."""

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

CORE = ("estl", "torch", "lightning", "numpy", "transformers")
PEERS = ("spikingjelly", "snntorch")


def doctor() -> None:
    """Versions, devices, precisions and compiler; optional packages, present or missing."""
    import torch

    from estl.neurons.fused import LARGE
    from estl.training.results import processor

    print(f"python {platform.python_version()} ({sys.executable})")
    print(", ".join(f"{name} {found(name) or 'missing'}" for name in CORE))
    print(f"processor: {processor()}, {torch.get_num_threads()} threads, ", end="")
    print(f"vectors {torch.backends.cpu.get_cpu_capability()}")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        print(f"GPU {i}: {properties.name}, {properties.total_memory >> 20} MiB")
    if not torch.cuda.is_available():
        print("GPU: none that torch sees")
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    print(f"precision: 32, bf16 ({'fast' if bf16 else 'no GPU that has it'}), ", end="")
    print(f"16 ({'fast' if torch.cuda.is_available() else 'needs a GPU'})")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    what = f"training of layers above {LARGE:,} values"
    print(f"compiler: {compiler or f'none: {what} takes the plain scan on the CPU'}")
    for group, names in groups().items():
        missing = [name for name in names if found(name) is None]
        state = f"missing {', '.join(missing)}: pip install 'estl[{group}]'" if missing else "there"
        print(f"group {group}: {state}")
    absent = [name for name in PEERS if find_spec(name) is None]
    print(f"other frameworks: {'missing (optional): ' if absent else 'there'}{', '.join(absent)}")


def found(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def groups() -> dict[str, list[str]]:
    """The packages of each optional group of the installed ESTL.

    >>> "dev" in groups()
    True
    """
    from packaging.requirements import Requirement

    listed: dict[str, list[str]] = {}
    for line in requires("estl") or ():
        requirement = Requirement(line)
        text = str(requirement.marker or "")
        if "extra ==" in text:
            group = text.partition("extra ==")[2].strip(" '\"")
            listed.setdefault(group, []).append(requirement.name)
    return listed
