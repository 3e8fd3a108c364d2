"""The Triton kernels under Triton's interpreter, on a CPU, against the reference in float64.

The interpreter must be asked for before Triton is imported, so the cases run in a process of
their own (`python tests/scan/test_scan_triton.py`), which prints the error of each.
"""

from __future__ import annotations

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

BOTH_WAYS = (False, True)
# name: (length, states, channels, batch, inputs left out, delta_softplus, reverse)
CASES = {
    **{f"length {length}, reverse {reverse}": (length, 16, 5, 1, (), True, reverse)
       for length in (1, 2, 7, 64) for reverse in BOTH_WAYS},
    **{f"{states} states, reverse {reverse}": (9, states, 19, 2, (), True, reverse)
       for states in (1, 5) for reverse in BOTH_WAYS},
    **{f"without {', '.join(missing)}": (5, 3, 4, 2, missing, True, True)
       for missing in (("z",), ("D",), ("delta_bias",), ("D", "z", "delta_bias"))},
    "no softplus": (5, 3, 4, 2, (), False, False),
}


def errors_of(length, states, channels, batch, missing, softplus, reverse) -> dict[str, float]:
    """Relative errors of the output and of each gradient."""
    from inputs import make_inputs, run

    inputs = make_inputs(length, states, channels, batch)
    inputs = {key: x for key, x in inputs.items() if key not in missing}
    if not softplus:
        inputs |= {key: inputs[key].abs() for key in ("delta", "delta_bias") if key in inputs}
    flags = {"delta_softplus": softplus, "reverse": reverse}
    want = run("reference", inputs, **flags)
    got = run("triton", inputs, torch.float32, **flags)
    return {key: float((got[key] - x).norm() / (x.norm() or 1)) for key, x in want.items()}


def bfloat16_error() -> float:
    from inputs import make_inputs

    from sparsefield.scan import reference, triton_backend

    inputs = {key: x.bfloat16() for key, x in make_inputs(6).items()}
    got = triton_backend.selective_scan(**inputs, delta_softplus=True)
    assert got.dtype == torch.bfloat16
    want = reference.selective_scan(**inputs, delta_softplus=True)
    return ((got - want).float().norm() / want.float().norm()).item()


def check_operator() -> None:
    """Raises if what the operator tells autograd and torch.compile is not what it does."""
    from inputs import make_inputs

    from sparsefield.scan import triton_backend

    inputs = [x.float().requires_grad_() for x in make_inputs(3).values()]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert triton_backend.selective_scan  # importing it registers the operator
    operator = torch.ops.sparsefield.selective_scan_triton.default
    torch.library.opcheck(operator, (*inputs, True, True, True), test_utils=checks)


@pytest.fixture(scope="module")
def errors() -> dict:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(errors, case):
    bounds = {key: 1e-5 if key == "out" else 1e-4 for key in errors[case]}
    wrong = {key: error for key, error in errors[case].items() if not error <= bounds[key]}
    assert not wrong


def test_bfloat16_computes_in_float32(errors):
    assert errors["bfloat16"] <= 2**-8


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    check_operator()
    found = {name: errors_of(*case) for name, case in CASES.items()}
    print(json.dumps(found | {"bfloat16": bfloat16_error()}))
