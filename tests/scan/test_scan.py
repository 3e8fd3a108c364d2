"""Every backend of the selective scan that is present, against the recurrence it stands for."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inputs import make_inputs, run
from torch import Tensor

import sparsefield.scan as scan
from sparsefield.errors import UserError
from sparsefield.scan import reference, torch_backend

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
CPU_BACKENDS = [name for name in ("torch", "numba") if not isinstance(scan.load_backend(name), str)]


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], out: float, grad: float):
    for key, truth in want.items():
        error, size = (got[key] - truth).norm().item(), truth.norm().item()
        bound = out if key == "out" else grad
        assert error <= bound * size, f"{key}: error {error:.1e} of {size:.1e}"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 409])
@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_values_and_gradients(name, length, reverse):
    inputs = make_inputs(length)
    flags = {"delta_softplus": True, "reverse": reverse}
    want = run("reference", inputs, **flags)
    assert_close(run(name, inputs, torch.float32, **flags), want, out=1e-5, grad=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_torch_backend_in_float64(reverse):
    inputs = make_inputs(70)
    flags = {"delta_softplus": True, "reverse": reverse}
    want = run("reference", inputs, **flags)
    assert_close(run("torch", inputs, **flags), want, out=1e-13, grad=1e-12)


@pytest.mark.parametrize("states", [1, 5, 16, 64])
@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_number_of_states_and_channels(name, states):
    for channels in (1, 16, 37):
        inputs = make_inputs(19, states, channels)
        want = run("reference", inputs, delta_softplus=True)
        got = run(name, inputs, torch.float32, delta_softplus=True)
        assert_close(got, want, out=1e-5, grad=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["torch", "triton", "mamba_ssm"])
def test_values_and_gradients_on_a_gpu(name, reverse):
    if isinstance(scan.load_backend(name), str):
        pytest.skip(scan.load_backend(name))
    for length, states, channels in ((1, 1, 1), (409, 16, 70), (64, 5, 16), (70, 64, 33)):
        inputs = make_inputs(length, states, channels)
        flags = {"delta_softplus": True, "reverse": reverse}
        want = run("reference", inputs, **flags)
        on_gpu = {key: x.cuda() for key, x in inputs.items()}
        got = run(name, on_gpu, torch.float32, **flags)
        assert_close(got, want, out=1e-5, grad=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_are_what_they_tell_autograd_and_compile(dtype):
    from sparsefield.scan import numba_backend, numba_convolution

    assert numba_backend.selective_scan  # importing it registers the operator

    inputs = [x.float() for x in make_inputs(40, channels=64).values()]
    leaves = [x.to(dtype if x.ndim == 3 else x.dtype).requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.sparsefield.selective_scan.default, (*leaves, True, True, True))
    weight, bias = torch.randn(64, 4, requires_grad=True), torch.randn(64, requires_grad=True)
    torch.library.opcheck(numba_convolution._forward, (leaves[0], weight, bias, True))


def test_without_gradients_the_kernels_run_and_no_compiler_is_loaded():
    """The first call of an operator would load torch's compiler, which takes seconds."""
    code = """
import sys, torch
from sparsefield.model.mamba import Mamba
torch.manual_seed(0)
block, x = Mamba(16), torch.randn(2, 9, 16)
with torch.no_grad():
    found = block(x)
assert "torch._dynamo" not in sys.modules
assert torch.equal(block(x), found)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_optional_inputs(name):
    for given, softplus in itertools.product(itertools.product([False, True], repeat=3), (0, 1)):
        inputs = make_inputs(9)
        for key, keep in zip(("D", "z", "delta_bias"), given, strict=True):
            if not keep:
                del inputs[key]
        if not softplus:
            inputs |= {k: inputs[k].abs() for k in ("delta", "delta_bias") if k in inputs}
        flags = {"delta_softplus": bool(softplus), "reverse": True}
        want = run("reference", inputs, **flags)
        assert_close(run(name, inputs, torch.float32, **flags), want, out=1e-5, grad=1e-4)


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_memory_order_does_not_matter(name):
    inputs = {key: x.float() for key, x in make_inputs(33).items()}
    want = run(name, inputs, torch.float32, delta_softplus=True)
    wide = torch.stack([inputs["u"], inputs["z"]], dim=-1)
    tokens = {key: x.transpose(1, 2).contiguous().transpose(1, 2) if x.ndim == 3 else x
              for key, x in inputs.items()}
    for views in (tokens, inputs | {"u": wide[..., 0], "z": wide[..., 1]}):
        out = scan.load_backend(name).selective_scan(**views, delta_softplus=True)
        assert_close({"out": out.double()}, {"out": want["out"]}, out=1e-6, grad=0)
    out = scan.load_backend(name).selective_scan(**tokens, delta_softplus=True)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_bfloat16_computes_in_float32(name):
    inputs = {key: x.bfloat16() for key, x in make_inputs(64).items()}
    want = reference.selective_scan(**inputs, delta_softplus=True)
    got = scan.load_backend(name).selective_scan(**inputs, delta_softplus=True)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want.float(), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_bfloat16_in_memory_is_float32_inside(reverse):
    """Whole tiles of channels, as tokens: the kernels read and write bfloat16 themselves."""
    flags = {"delta_softplus": True, "reverse": reverse}
    inputs = {key: x.bfloat16() for key, x in make_inputs(40, channels=128).items()}
    inputs |= {key: inputs[key].transpose(1, 2).contiguous().transpose(1, 2)
               for key in ("u", "delta", "z")}
    want = run("reference", {key: x.double() for key, x in inputs.items()}, **flags)
    got = run("numba", inputs, torch.bfloat16, **flags)
    assert_close(got, want, out=2**-8, grad=2**-7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bfloat16_keeps_what_is_not_finite(value):
    inputs = {key: x.bfloat16() for key, x in make_inputs(20, channels=64).items()}
    inputs["z"][0, 0, 3] = value
    out = scan.load_backend("numba").selective_scan(**inputs, delta_softplus=True)
    assert out.isfinite().logical_not().nonzero().tolist() == [[0, 0, 3]]


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_autocast_does_not_change_the_result(name):
    inputs = {key: x.float() for key, x in make_inputs(40).items()}
    want = scan.load_backend(name).selective_scan(**inputs, delta_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = scan.load_backend(name).selective_scan(**inputs, delta_softplus=True)
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", CPU_BACKENDS)
@pytest.mark.parametrize("where", ["u", "delta", "B", "z"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_inputs_stay_visible(name, where, value):
    inputs = {key: x.float() for key, x in make_inputs(20).items()}
    inputs[where][0, 0, 3] = value
    kept = where == "delta" and value < 0    # softplus(-inf) = 0: a legal step of size 0
    out = scan.load_backend(name).selective_scan(**inputs, delta_softplus=True)
    assert bool(out.isfinite().all()) is kept


def test_constant_input_has_a_closed_form():
    """h = b (1 - a^t) / (1 - a) with a = exp(-dt), b = dt: a geometric series."""
    length, dt = 50, 0.3
    one = torch.ones(1, 1, length, dtype=torch.float64)
    out = scan.selective_scan(one, dt * one, -torch.ones(1, 1).double(), one, one)
    t = torch.arange(1, length + 1, dtype=torch.float64)
    a = math.exp(-dt)
    torch.testing.assert_close(out[0, 0], dt * (1 - a**t) / (1 - a))


def test_gradcheck_of_the_torch_backend():
    inputs = [x.requires_grad_() for x in make_inputs(4, states=2, channels=2, batch=1).values()]

    def both_ways(*args: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(
            torch_backend.selective_scan(*args, delta_softplus=True, reverse=reverse)
            for reverse in (False, True)
        )

    assert torch.autograd.gradcheck(both_ways, inputs)


def test_a_forced_backend_that_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setenv("SCAN", "numba")
    monkeypatch.setattr(scan, "load_backend", lambda name: "No module named 'numba'")
    with pytest.raises(UserError, match="pip install numba"):
        scan.selective_scan(**make_inputs(3) | {"u": torch.zeros(2, 5, 3)})


@pytest.mark.parametrize("name", ["nonsense", "triton"])
def test_a_forced_backend_that_cannot_be_used_is_refused(monkeypatch, name):
    monkeypatch.setenv("SCAN", name)
    with pytest.raises(UserError, match=f"SCAN={name}"):
        scan.selective_scan(**make_inputs(3))


def test_the_forced_backend_is_used_and_described(monkeypatch):
    monkeypatch.setenv("SCAN", "reference")
    out = scan.selective_scan(**make_inputs(3))
    assert torch.equal(out, reference.selective_scan(**make_inputs(3)))
    assert scan.describe_backend("cpu") == "selective scan: reference (forced by SCAN)"


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="delta must be"):
        scan.selective_scan(**make_inputs(3) | {"delta": torch.zeros(2, 5, 4)})
