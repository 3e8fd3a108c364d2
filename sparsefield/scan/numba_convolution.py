"""The causal convolution before the scan, and SiLU, on a CPU: one pass forward, one backward."""

from __future__ import annotations

import numpy as np
import torch
from numba import types
from torch import Tensor

from sparsefield.scan import numba_kernels as kernels
from sparsefield.scan.numba_runtime import (
    RANGE,
    VALUES,
    as_array,
    compiled,
    empty_like,
    floats,
    memory_dtype,
    needs_operator,
    run,
    tasks,
)

MAX_TAPS = kernels.CHUNK + 1


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """x (B, E, L), weight (E, taps), bias (E,) to (B, E, L) in the dtype of x."""
    return (_forward if needs_operator() else _convolve)(x, weight, bias, reverse)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    dtype = memory_dtype(x)
    out = empty_like(x, dtype)
    kernel = compiled(kernels.conv_forward, *_input_types(dtype), VALUES[dtype], *RANGE)
    run(kernel, tasks(x), *_arrays(dtype, x, weight, bias), reverse, as_array(out, dtype))
    return out.to(x.dtype)


_forward = torch.library.custom_op(
    "sparsefield::causal_conv_silu", _convolve, mutates_args=(), device_types="cpu"
)


@_forward.register_fake
def _(x, weight, bias, reverse):
    return empty_like(x, memory_dtype(x)).to(x.dtype)


@torch.library.custom_op(
    "sparsefield::causal_conv_silu_backward", mutates_args=(), device_types="cpu"
)
def _backward(
    x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, dout: Tensor
) -> list[Tensor]:
    """Gradients of x, weight and bias."""
    (batch, channels, _), taps = x.shape, weight.shape[1]
    dtype = memory_dtype(x)
    dx = empty_like(x, dtype)
    dweight = np.empty((batch, channels, taps), np.float32)
    dbias = np.empty((batch, channels), np.float32)
    kernel = compiled(
        kernels.conv_backward, *_input_types(dtype), VALUES[dtype], VALUES[dtype],
        floats(3), floats(2), *RANGE,
    )
    run(
        kernel, tasks(x), *_arrays(dtype, x, weight, bias), reverse,
        as_array(dout, dtype), as_array(dx, dtype), dweight, dbias,
    )
    return [dx, torch.from_numpy(dweight.sum(0)), torch.from_numpy(dbias.sum(0))]


@_backward.register_fake
def _(x, weight, bias, reverse, dout):
    return [
        empty_like(x, memory_dtype(x)),
        x.new_empty(weight.shape, dtype=torch.float32),
        x.new_empty(bias.shape, dtype=torch.float32),
    ]


def _save(ctx, inputs, output):
    x, weight, bias, ctx.reverse = inputs
    ctx.save_for_backward(x, weight, bias)


def _gradients(ctx, dout):
    return *_backward(*ctx.saved_tensors, ctx.reverse, dout), None


torch.library.register_autograd("sparsefield::causal_conv_silu", _gradients, setup_context=_save)


def _input_types(dtype: torch.dtype) -> tuple[types.Type, ...]:
    """x, weight, bias, reverse."""
    return VALUES[dtype], floats(2), floats(1), types.boolean


def _arrays(dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> list[np.ndarray]:
    return [as_array(x, dtype), as_array(weight), as_array(bias)]
