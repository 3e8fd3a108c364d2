"""The selective scan on a CPU: fused forward and backward kernels, no compiler needed.

The kernels are in numba_kernels.py, how they run in numba_runtime.py. bfloat16 tensors are read
and written as they are; everything inside is float32.
"""

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
    tiles,
)

_STARTS = types.Array(types.float32, 4, "C")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> Tensor:
    """See `sparsefield.scan.selective_scan`."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    forward = _forward if needs_operator() else _scan
    return forward(*inputs, delta_softplus, reverse, keep)[0]


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, keep: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the states before each chunk (empty unless `keep`)."""
    dtype = memory_dtype(u, delta, z)
    out = empty_like(u, dtype)
    starts = u.new_empty(_starts_shape(u, A, keep), dtype=torch.float32)
    kernel = compiled(kernels.forward, *_input_types(dtype), VALUES[dtype], _STARTS, *RANGE)
    arrays = _arrays(dtype, u, delta, A, B, C, D, z, delta_bias)
    flags = (z is not None, delta_softplus, reverse)
    run(kernel, tasks(u), *arrays, *flags, as_array(out, dtype), starts.numpy())
    return out.to(u.dtype), starts


_forward = torch.library.custom_op(
    "sparsefield::selective_scan", _scan, mutates_args=(), device_types="cpu"
)


@_forward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, keep):
    out = empty_like(u, memory_dtype(u, delta, z)).to(u.dtype)
    return out, u.new_empty(_starts_shape(u, A, keep), dtype=torch.float32)


@torch.library.custom_op(
    "sparsefield::selective_scan_backward", mutates_args=(), device_types="cpu"
)
def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, starts: Tensor, dout: Tensor,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias (empty for a missing z): of u, delta and z
    in the precision that the kernel reads them in, of the others in float32.
    """
    (batch, channels, length), states = u.shape, A.shape[1]
    dtype = memory_dtype(u, delta, z)
    du, ddelta = empty_like(u, dtype), empty_like(delta, dtype)
    dz = _no_gate(u, dtype) if z is None else empty_like(z, dtype)
    dA = np.empty((batch, channels, states), np.float32)
    dB, dC = (np.empty((tiles(u), batch, length, states), np.float32) for _ in "BC")
    dD, ddelta_bias = (np.empty((batch, channels), np.float32) for _ in range(2))
    x = VALUES[dtype]
    kernel = compiled(
        kernels.backward, *_input_types(dtype), _STARTS, x,
        x, x, floats(3), floats(4), floats(4), floats(2), x, floats(2), *RANGE,
    )
    run(
        kernel, tasks(u),
        *_arrays(dtype, u, delta, A, B, C, D, z, delta_bias), z is not None, delta_softplus,
        reverse, starts.numpy(), as_array(dout, dtype),
        as_array(du, dtype), as_array(ddelta, dtype), dA, dB, dC, dD, as_array(dz, dtype),
        ddelta_bias,
    )
    # numpy adds along the first axis row by row: the same order always.
    dA, dB, dC, dD, ddelta_bias = (
        torch.from_numpy(parts.sum(0)) for parts in (dA, dB, dC, dD, ddelta_bias)
    )
    return [du, ddelta, dA, dB.transpose(1, 2), dC.transpose(1, 2), dD, dz, ddelta_bias]


@_backward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, starts, dout):
    def empty(*shape: int) -> Tensor:
        return u.new_empty(shape, dtype=torch.float32)

    (batch, channels, length), states = u.shape, A.shape[1]
    dB, dC = (empty(batch, length, states).transpose(1, 2) for _ in "BC")
    dtype = memory_dtype(u, delta, z)
    dz = _no_gate(u, dtype) if z is None else empty_like(z, dtype)
    return [empty_like(u, dtype), empty_like(delta, dtype), empty(channels, states), dB, dC,
            empty(channels), dz, empty(channels)]


def _save(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, dout, _):
    *tensors, starts = ctx.saved_tensors
    grads = _backward(*tensors, ctx.delta_softplus, ctx.reverse, starts, dout)
    present = (grad if x is not None else None for grad, x in zip(grads, tensors, strict=True))
    return *present, None, None, None


torch.library.register_autograd("sparsefield::selective_scan", _gradients, setup_context=_save)


def _starts_shape(u: Tensor, A: Tensor, keep: bool) -> tuple[int, int, int, int]:
    chunks = -(-u.shape[2] // kernels.CHUNK)
    return (u.shape[0] if keep else 0, chunks, tiles(u), A.shape[1] * kernels.TILE)


def _no_gate(u: Tensor, dtype: torch.dtype) -> Tensor:
    return u.new_empty(0, 0, 0, dtype=dtype)


def _input_types(dtype: torch.dtype) -> tuple[types.Type, ...]:
    """u, delta, A, B, C, D, z, delta_bias and the three flags."""
    x = VALUES[dtype]
    flags = (types.boolean,) * 3
    return x, x, floats(2), floats(3), floats(3), floats(1), x, floats(1), *flags


def _arrays(dtype, u, delta, A, B, C, D, z, delta_bias) -> list[np.ndarray]:
    zeros = torch.zeros(A.shape[0])
    D = zeros if D is None else D
    delta_bias = zeros if delta_bias is None else delta_bias
    u, delta, z = (as_array(x, dtype) for x in (u, delta, u if z is None else z))
    A, B, C, D, delta_bias = map(as_array, (A, B, C, D, delta_bias))
    return [u, delta, A, B, C, D, z, delta_bias]
