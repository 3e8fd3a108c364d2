"""The Triton kernels under Triton's interpreter, on a CPU, against the reference in float64.

The interpreter must be asked for before Triton is imported, so the cases run in a process of
their own (`python tests/scan/test_scan_triton.py`), which prints the error of each.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

CASES = {f"length {length}, {states} states, {channels} channels, reverse {reverse}":
         (length, states, channels, reverse)
         for length, states, channels in ((1, 16, 5), (2, 16, 5), (7, 16, 5), (64, 16, 5),
                                          (9, 1, 19), (9, 5, 19))
         for reverse in (False, True)}


def found_in_the_interpreter() -> dict:
    """Errors of each case."""
    import reference
    from inputs import errors, make_inputs, run

    from sparsefield.scan import triton_backend

    found = {}
    for case, (length, states, channels, reverse) in CASES.items():
        inputs = make_inputs(length, states, channels)
        found[case] = errors(run("triton", inputs, torch.float32, reverse=reverse),
                             run("reference", inputs, reverse=reverse))
    inputs = {key: x.bfloat16() for key, x in make_inputs(6).items()}
    got, want = triton_backend.selective_scan(*inputs.values()), reference.selective_scan(**inputs)
    assert got.dtype == torch.bfloat16
    return found | {"bfloat16": ((got - want).float().norm() / want.float().norm()).item()}


@pytest.fixture(scope="module")
def found() -> dict:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(found, case):
    assert found[case].pop("out") <= 1e-5 and max(found[case].values()) <= 1e-4


def test_bfloat16_computes_in_float32(found):
    assert found["bfloat16"] <= 2**-8


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    print(json.dumps(found_in_the_interpreter()))
