"""The causal convolution before the scan: the fused kernels against `conv1d`."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsefield.scan.convolution import causal_conv_silu

SHAPES = [(2, 1, 5, 4), (2, 40, 37, 4), (1, 33, 64, 1), (2, 50, 128, 4), (1, 3, 64, 33),
          (2, 100, 64, 33), (1, 30, 16, 40)]  # batch, length, channels, taps


def definition(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """One line a step: the last `taps` steps in reading order, zeros before the first."""
    x = x.flip(1) if reverse else x
    taps = weight.shape[2]
    x = F.pad(x, (0, 0, taps - 1, 0))
    y = bias + sum(weight[:, 0, k] * x[:, k : x.shape[1] - taps + 1 + k] for k in range(taps))
    return F.silu(y.flip(1) if reverse else y)


def run(function, leaves: list[Tensor], reverse: bool, dout: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = function(*leaves, reverse)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend, dtype, bound", [
    ("torch", torch.float32, 1e-6), ("auto", torch.float32, 1e-6), ("auto", torch.bfloat16, 2**-7)])
def test_values_and_gradients(monkeypatch, shape, reverse, backend, dtype, bound):
    torch.manual_seed(0)
    batch, length, channels, taps = shape
    x, weight, bias, dout = (torch.randn(size).to(kind) for size, kind in (
        ((batch, length, channels), dtype), ((channels, 1, taps), torch.float32),
        ((channels,), torch.float32), ((batch, length, channels), dtype)))
    if dtype == torch.bfloat16 and taps > 33:
        pytest.skip("conv1d wants one dtype")
    want = run(definition, [y.double() for y in (x, weight, bias)], reverse, dout.double())
    monkeypatch.setenv("SCAN", backend)
    got = run(causal_conv_silu, [x, weight, bias], reverse, dout)
    assert got[0].dtype == got[1].dtype == dtype
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= bound * b.norm()
