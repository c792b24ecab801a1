"""What the compiled neurons would run on a GPU, on a machine without one."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

SHORTCUTS = ("none", "as it is", "normalized", "no norm")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: make gpu-code"
)


def said(*words: str, **environment: str) -> list[dict[str, Any]]:
    """What `tests/gpu_code.py` prints, in a process that it may tell that there is a GPU."""
    command = [sys.executable, "-m", "tests.gpu_code", *words]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_each_pass_of_a_layer_is_one_kernel() -> None:
    found = said("count", "tet", "4", "float32", "none", "no norm")
    passes = [each["pass"] for each in found]
    assert passes == ["_moments", "_forward", "_backward", "_forward", "_backward"]
    assert {each["kernels"] for each in found} == {1}


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("neuron", "T"), [("tet", "1"), ("tet", "4"), ("spikformer", "10")])
def test_in_tritons_interpreter_it_computes_the_same(neuron: str, T: str, dtype: str) -> None:
    # The interpreter cuts off what bfloat16 does not hold.
    bound = 2**-7 if dtype == "bfloat16" else 0.0
    for each in said("interpret", neuron, T, dtype, *SHORTCUTS, TRITON_INTERPRET="1"):
        exact = each["pass"] in ("_forward", "_moments")
        assert each["error"] <= (0.0 if exact else bound), each


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("neuron", ["tet", "spikformer"])
def test_machine_code_of_an_h100_keeps_all_in_registers(neuron: str, dtype: str) -> None:
    for each in said("assemble", neuron, "10", dtype, *SHORTCUTS):
        assert each["kernels"] == 1, each
        assert each["spilled"] == [0], each
