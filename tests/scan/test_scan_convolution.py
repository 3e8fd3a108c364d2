"""The causal convolution before the scan: the fused kernels against `conv1d`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsefield.scan.convolution import causal_conv_silu

SHAPES = [(2, 1, 5, 4), (2, 40, 37, 4), (1, 33, 64, 1), (2, 50, 128, 4), (1, 3, 64, 33),
          (2, 100, 64, 33), (1, 30, 16, 40)]


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


def make_inputs(batch: int, length: int, channels: int, taps: int) -> list[Tensor]:
    """x, weight, bias and a gradient of the output."""
    torch.manual_seed(0)
    sizes = (batch, length, channels), (channels, 1, taps), (channels,), (batch, length, channels)
    return [torch.randn(size, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(monkeypatch, shape, reverse):
    *leaves, dout = make_inputs(*shape)
    want = run(definition, leaves, reverse, dout)
    for backend in ("torch", "auto"):
        monkeypatch.setenv("SCAN", backend)
        got = run(causal_conv_silu, [x.float() for x in leaves], reverse, dout)
        for a, b in zip(got, want, strict=True):
            assert (a - b).norm() <= 1e-6 * b.norm()


def test_bfloat16_in_memory_is_float32_inside():
    *leaves, dout = make_inputs(2, 50, 128, 4)
    leaves[0], dout = leaves[0].bfloat16(), dout.bfloat16()
    want = run(definition, [x.double() for x in leaves], True, dout)
    got = run(causal_conv_silu, [leaves[0], *(x.float() for x in leaves[1:])], True, dout)
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 2**-7 * b.norm()
