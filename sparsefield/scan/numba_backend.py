"""The selective scan on a CPU: fused forward and backward kernels, no compiler needed.

The kernels (numba_kernels.py) release the GIL and run on threads of our own, as many as
`torch.get_num_threads()` says. numba's own thread pools are not used: the one that is always
there aborts the process when two Python threads meet in it, and the OpenMP one brings a second
OpenMP beside torch's. The threads sleep between calls, start on first use, and are started anew
in a forked child, so DataLoader workers are safe.

Results are the same bits for any number of threads: each task owns its outputs, and sums over
tasks are taken afterwards in one fixed order.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from sparsefield.scan import numba_kernels as kernels

# Any strides, so that one compiled version serves every memory order.
_F1, _F2, _F3, _F4 = (types.Array(types.float32, ndim, "A") for ndim in (1, 2, 3, 4))
_INPUTS = (_F3, _F3, _F2, _F3, _F3, _F1, _F3, _F1, types.boolean, types.boolean, types.boolean)
_RANGE = (types.intp, types.intp)
_STARTS = types.Array(types.float32, 4, "C")
FORWARD = types.void(*_INPUTS, _F3, _STARTS, *_RANGE)
BACKWARD = types.void(
    *_INPUTS, _STARTS, _F3, _F3, _F3, _F3, _F4, _F4, _F2, _F3, _F2, *_RANGE
)


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
    return _forward(*inputs, delta_softplus, reverse, keep)[0]


@torch.library.custom_op("sparsefield::selective_scan", mutates_args=(), device_types="cpu")
def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, keep: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the states before each chunk (empty unless `keep`)."""
    out = _empty_like(u)
    starts = u.new_empty(_starts_shape(u, A, keep), dtype=torch.float32)
    arrays = _arrays(u, delta, A, B, C, D, z, delta_bias)
    flags = (z is not None, delta_softplus, reverse)
    _run(_compiled("forward"), _tasks(u), *arrays, *flags, out.numpy(), starts.numpy())
    return out.to(u.dtype), starts


@_forward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, keep):
    return _empty_like(u).to(u.dtype), u.new_empty(_starts_shape(u, A, keep), dtype=torch.float32)


@torch.library.custom_op("sparsefield::selective_scan_backward", mutates_args=(), device_types="cpu")
def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, starts: Tensor, dout: Tensor,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, in float32 (empty for a missing z)."""
    (batch, channels, length), states = u.shape, A.shape[1]
    du, ddelta = _empty_like(u), _empty_like(delta)
    dz = torch.empty(0, 0, 0) if z is None else _empty_like(z)
    dA = np.empty((batch, channels, states), np.float32)
    dB, dC = (np.empty((_tiles(u), batch, length, states), np.float32) for _ in "BC")
    dD, ddelta_bias = (np.empty((batch, channels), np.float32) for _ in range(2))
    _run(
        _compiled("backward"), _tasks(u),
        *_arrays(u, delta, A, B, C, D, z, delta_bias), z is not None, delta_softplus, reverse,
        starts.numpy(), dout.float().numpy(),
        du.numpy(), ddelta.numpy(), dA, dB, dC, dD, dz.numpy(), ddelta_bias,
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
    dz = empty(0, 0, 0) if z is None else _empty_like(z)
    return [_empty_like(u), _empty_like(delta), empty(channels, states), dB, dC, empty(channels),
            dz, empty(channels)]


def _save(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, dout, _):
    *tensors, starts = ctx.saved_tensors
    grads = _backward(*tensors, ctx.delta_softplus, ctx.reverse, starts, dout)
    present = (grad if x is not None else None for grad, x in zip(grads, tensors))
    return *present, None, None, None


torch.library.register_autograd("sparsefield::selective_scan", _gradients, setup_context=_save)


def _tiles(u: Tensor) -> int:
    return -(-u.shape[1] // kernels.TILE)


def _tasks(u: Tensor) -> int:
    return u.shape[0] * _tiles(u)


def _starts_shape(u: Tensor, A: Tensor, keep: bool) -> tuple[int, int, int, int]:
    chunks = -(-u.shape[2] // kernels.CHUNK)
    return (u.shape[0] if keep else 0, chunks, _tiles(u), A.shape[1] * kernels.TILE)


def _empty_like(x: Tensor) -> Tensor:
    """Dense float32 memory in the order of x: (B, L, E) behind a (B, E, L) view, or plain."""
    batch, channels, length = x.shape
    if x.stride(1) < x.stride(2):
        return x.new_empty(batch, length, channels, dtype=torch.float32).transpose(1, 2)
    return x.new_empty(batch, channels, length, dtype=torch.float32)


def _arrays(u, delta, A, B, C, D, z, delta_bias) -> list[np.ndarray]:
    zeros = torch.zeros(A.shape[0])
    D = zeros if D is None else D
    delta_bias = zeros if delta_bias is None else delta_bias
    tensors = (u, delta, A, B, C, D, u if z is None else z, delta_bias)
    return [x.detach().float().numpy() for x in tensors]


@functools.cache
def _compiled(name: str):
    """The kernel for the only signature it is used with; from the disk cache after the first run."""
    function, signature = {
        "forward": (kernels.forward, FORWARD), "backward": (kernels.backward, BACKWARD)
    }[name]
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError as error:    # no folder that can be written to
        if "cannot cache function" not in str(error):
            raise
        return numba.njit(signature, nogil=True)(function)


def _run(kernel, tasks: int, *args) -> None:
    """Share the tasks among the threads, in four helpings each so that a slow core gets fewer."""
    threads = min(torch.get_num_threads(), tasks)
    edges = np.linspace(0, tasks, 4 * threads + 1).astype(int)
    ranges = iter([(begin, end) for begin, end in zip(edges, edges[1:]) if begin < end])

    def work() -> None:
        for begin, end in ranges:
            kernel(*args, begin, end)

    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="selective_scan")


if hasattr(os, "register_at_fork"):    # not on Windows; threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)
