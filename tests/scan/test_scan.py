"""Every backend of the selective scan that is present, against the recurrence it stands for."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inputs import errors, make_inputs, run, scan_of, tokens

from sparsefield import scan
from sparsefield.errors import UserError

CPU = ("numba", "torch")
SIZES = [*((length, 16, 5) for length in (1, 2, 7, 64)), (409, 16, 70), (19, 1, 1), (19, 5, 16),
         (19, 64, 37)]  # length, states, channels


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name, device", [("numba", "cpu"), ("torch", "cpu"), ("torch", "cuda"),
                                          ("triton", "cuda"), ("mamba_ssm", "cuda")])
def test_values_and_gradients(name, device, reverse):
    if isinstance(scan.load_backend(name), str) or (
            device == "cuda" and not torch.cuda.is_available()):
        pytest.skip(f"no {name} on {device}")
    for sizes in SIZES:
        inputs = make_inputs(*sizes)
        want = run("reference", inputs, reverse=reverse)
        there = {key: x.to(device) for key, x in inputs.items()}
        found = errors(run(name, there, torch.float32, reverse=reverse), want)
        assert found.pop("out") < 1e-5 and max(found.values()) < 1e-4, sizes


@pytest.mark.parametrize("reverse", [False, True])
def test_torch_backend_in_float64(reverse):
    inputs = make_inputs(70)
    found = run("torch", inputs, reverse=reverse), run("reference", inputs, reverse=reverse)
    assert max(errors(*found).values()) < 1e-12


def test_the_kernels_run_without_the_compiler_and_alike_in_a_compiled_model():
    code = """
import sys, torch
from sparsefield.model.mamba import Mamba
torch.manual_seed(0)
block, x = Mamba(16), torch.randn(2, 9, 16)
with torch.no_grad():
    found = block(x)
assert torch.equal(block(x), found)
gradients = torch.autograd.grad(block(x).square().sum(), block.parameters())
assert "torch._dynamo" not in sys.modules  # its import takes seconds
compiled = torch.compile(block, backend="aot_eager")(x)
assert torch.equal(compiled, found)
again = torch.autograd.grad(compiled.square().sum(), block.parameters())
assert all(map(torch.equal, gradients, again))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", CPU)
def test_neither_memory_order_nor_autocast_changes_the_result(name):
    inputs = {key: x.float() for key, x in make_inputs(33).items()}
    want = scan_of(name)(**inputs)
    wide = torch.stack([inputs["u"], inputs["z"]], dim=-1)
    by_token = {key: tokens(x) for key, x in inputs.items()}
    for views in (by_token, inputs | {"u": wide[..., 0], "z": wide[..., 1]}):
        torch.testing.assert_close(scan_of(name)(**views), want, rtol=1e-5, atol=1e-6)
    assert scan_of(name)(**by_token).mT.is_contiguous()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scan_of(name)(**inputs), want)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name, channels", [("torch", 5), ("numba", 5), ("numba", 128)])
def test_bfloat16_in_memory_is_float32_inside(name, channels, reverse):
    """Whole tiles of channels: numba's kernels read and write bfloat16 themselves."""
    inputs = {key: tokens(x.bfloat16()) for key, x in make_inputs(40, channels=channels).items()}
    want = run("reference", {key: x.double() for key, x in inputs.items()}, reverse=reverse)
    found = errors(run(name, inputs, torch.bfloat16, reverse=reverse), want)
    assert found.pop("out") < 2**-8 and max(found.values()) < 2**-7


@pytest.mark.parametrize("name", CPU)
def test_gradients_have_the_precision_of_their_tensors(name):
    found = []
    for scan_by in (scan_of(name), scan_of("reference")):
        inputs = {key: x.float() for key, x in make_inputs(20).items()}
        inputs["u"] = inputs["u"].bfloat16()
        out = scan_by(**inputs | {"delta": inputs["delta"].requires_grad_()})
        found.append(torch.autograd.grad(out.sum(), inputs["delta"])[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, dtype, channels", [
    ("torch", torch.float32, 5), ("numba", torch.float32, 5), ("numba", torch.bfloat16, 64)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_inputs_stay_visible(name, dtype, channels, value):
    for where in ("u", "delta", "B", "z"):
        inputs = {key: x.to(dtype) for key, x in make_inputs(20, channels=channels).items()}
        inputs[where][0, 0, 3] = value
        kept = where == "delta" and value < 0    # softplus(-inf) = 0: a legal step of size 0
        wrong = ~scan_of(name)(**inputs).isfinite()
        assert bool(wrong.any()) is not kept
        if where == "z":
            assert wrong.nonzero().tolist() == [[0, 0, 3]]


# --- the choice of a backend ---------------------------------------------------------------------


@pytest.mark.parametrize("name, words", [
    ("nonsense", "SCAN=nonsense is no scan backend; use auto, numba"),
    ("triton", "SCAN=triton cannot compute float64 on cpu"),
])
def test_a_forced_backend_that_cannot_be_used_is_refused(monkeypatch, name, words):
    monkeypatch.setenv("SCAN", name)
    with pytest.raises(UserError, match=words):
        scan.selective_scan(**make_inputs(3))


def test_a_forced_backend_is_used_and_described_and_if_missing_says_what_to_install(monkeypatch):
    monkeypatch.setenv("SCAN", "torch")
    assert scan.describe_backend("cpu") == "selective scan: torch (forced by SCAN)"
    assert torch.equal(scan.selective_scan(**make_inputs(3)), scan_of("torch")(**make_inputs(3)))
    monkeypatch.setenv("SCAN", "numba")
    monkeypatch.setattr(scan, "load_backend", lambda name: "No module named 'numba'")
    with pytest.raises(UserError, match="pip install numba"):
        scan.describe_backend("cpu")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="delta must be"):
        scan.selective_scan(**make_inputs(3) | {"delta": torch.zeros(2, 5, 4)})
