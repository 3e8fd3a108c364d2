"""The selective scan and the convolution before it on a CPU: fused kernels, no compiler needed.

The kernels (numba_kernels.py) are compiled on first use and cached on disk. bfloat16 tensors are
read and written as they are; everything inside is float32.

The kernels release the GIL and run on as many threads as `torch.get_num_threads()` says. numba's
own thread pools are not used: the one that is always there aborts the process when two Python
threads meet in it, and the OpenMP one brings a second OpenMP beside torch's. The threads sleep
between calls, start on first use, and again in a forked child: DataLoader workers are safe.

Results are the same bits for any number of threads: each task owns its outputs, and sums over
tasks are taken afterwards in one fixed order.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
import torch
from numba import types
from numba.np.numpy_support import from_dtype
from torch import Tensor

from sparsefield.scan import numba_kernels as kernels
from sparsefield.scan import with_gradients

MAX_TAPS = kernels.CHUNK + 1  # of the convolution


# --- the scan ------------------------------------------------------------------------------------


def _scan(u, delta, A, B, C, D, z, delta_bias, reverse, keep) -> tuple[Tensor, Tensor]:
    """The output, and the states before each chunk (empty unless `keep`)."""
    (batch, _, length), states = u.shape, A.shape[1]
    dtype = _memory_dtype(u, delta, z)
    out = _empty_like(u, dtype)
    starts = u.new_empty(batch if keep else 0, -(-length // kernels.CHUNK), _tiles(u),
                         states * kernels.TILE, dtype=torch.float32)
    arrays = _arrays(dtype, u, delta, A, B, C, D, z, delta_bias)
    _run(kernels.forward, u, *arrays, reverse, _as_array(out, dtype), starts.numpy())
    return out.to(u.dtype), starts


def _scan_backward(u, delta, A, B, C, D, z, delta_bias, reverse, starts, dout) -> list[Tensor]:
    """Gradients of the eight tensors: of u, delta and z in the precision that the kernel reads them
    in, of the others in float32."""
    (batch, channels, length), states = u.shape, A.shape[1]
    dtype = _memory_dtype(u, delta, z)
    du, ddelta, dz = (_empty_like(x, dtype) for x in (u, delta, z))
    dA = np.empty((batch, channels, states), np.float32)
    dB, dC = (np.empty((_tiles(u), batch, length, states), np.float32) for _ in "BC")
    dD, dbias = (np.empty((batch, channels, 1), np.float32) for _ in range(2))
    arrays = _arrays(dtype, u, delta, A, B, C, D, z, delta_bias)
    dout, *sequences = (_as_array(x, dtype) for x in (dout, du, ddelta, dz))
    _run(kernels.backward, u, *arrays, reverse, starts.numpy(), dout, *sequences,
         dA, dB, dC, dD, dbias)
    dA, dB, dC, dD, dbias = map(_summed, (dA, dB, dC, dD, dbias))
    return [du, ddelta, dA, dB.mT, dC.mT, dD[:, 0], dz, dbias[:, 0]]


selective_scan = with_gradients(_scan, _scan_backward)


def _arrays(dtype, u, delta, A, B, C, D, z, delta_bias) -> list[np.ndarray]:
    u, delta, z = (_as_array(x, dtype) for x in (u, delta, z))
    A, B, C, D, delta_bias = map(_as_array, (A, B, C, D[:, None], delta_bias[:, None]))
    return [u, delta, A, B, C, D, z, delta_bias]


# --- the convolution -----------------------------------------------------------------------------


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, keep: bool
) -> tuple[Tensor]:
    """x (B, E, L), weight (E, taps), bias (E,) to (B, E, L) in the dtype of x."""
    dtype = _memory_dtype(x)
    out = _empty_like(x, dtype)
    _run(kernels.conv_forward, x, _as_array(x, dtype), _as_array(weight), _as_array(bias[:, None]),
         reverse, _as_array(out, dtype))
    return (out.to(x.dtype),)


def _convolve_backward(
    x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, dout: Tensor
) -> list[Tensor]:
    """Gradients of x, weight and bias."""
    dtype = _memory_dtype(x)
    dx = _empty_like(x, dtype)
    dweight, dbias = (np.empty((len(x), len(weight), taps), np.float32)
                      for taps in (weight.shape[1], 1))
    _run(kernels.conv_backward, x, _as_array(x, dtype), _as_array(weight),
         _as_array(bias[:, None]), reverse, _as_array(dout, dtype), _as_array(dx, dtype), dweight,
         dbias)
    return [dx, _summed(dweight), _summed(dbias)[:, 0]]


causal_conv_silu = with_gradients(_convolve, _convolve_backward)


# --- how kernels run -----------------------------------------------------------------------------


@functools.cache
def _compiled(kernel, *kinds):
    """The kernel for arrays of (dtype, ndim), in any strides so that one version serves every
    memory order, and flags; from the disk cache after the first run."""
    arguments = [types.boolean if kind is bool else types.Array(from_dtype(kind[0]), kind[1], "A")
                 for kind in kinds]
    signature = types.void(*arguments, types.intp, types.intp)
    try:
        return numba.njit(signature, nogil=True, cache=True)(kernel)
    except RuntimeError as error:    # no folder that can be written to
        if "cannot cache function" not in str(error):
            raise
        return numba.njit(signature, nogil=True)(kernel)


def _run(kernel, x: Tensor, *args: np.ndarray | bool) -> None:
    """Share the tasks of x (B, E, L) among the threads, in four portions for each, of which a slow
    core takes fewer."""
    function = _compiled(kernel, *(bool if isinstance(given, bool) else (given.dtype, given.ndim)
                                   for given in args))
    tasks = x.shape[0] * _tiles(x)
    threads = min(torch.get_num_threads(), tasks)
    edges = np.linspace(0, tasks, 4 * threads + 1).astype(int)
    ranges = iter([(begin, end) for begin, end in pairwise(edges) if begin < end])

    def work() -> None:
        for begin, end in ranges:
            function(*args, begin, end)

    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="selective_scan")


if hasattr(os, "register_at_fork"):    # not on Windows; threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _tiles(x: Tensor) -> int:
    """Tiles of channels of x (B, E, L)."""
    return -(-x.shape[1] // kernels.TILE)


def _memory_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision of which the kernels read these tensors (B, E, L): bfloat16 if all are in it
    and their channels come in whole tiles, else float32."""
    narrow = all(x.dtype == torch.bfloat16 and x.shape[1] % kernels.TILE == 0 for x in tensors)
    return torch.bfloat16 if narrow else torch.float32


def _as_array(x: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """x as the kernels read it: float32 in any strides, or the bits of bfloat16 by channels."""
    x = x.detach().to(dtype)
    if dtype != torch.bfloat16:
        return x.numpy()
    x = x if x.stride(1) == 1 else x.mT.contiguous().mT
    return x.view(torch.int16).numpy()


def _empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Dense memory in the order of x: (B, L, E) behind a (B, E, L) view, or plain."""
    if x.stride(1) < x.stride(2) or dtype == torch.bfloat16:
        return x.new_empty(x.mT.shape, dtype=dtype).mT
    return x.new_empty(x.shape, dtype=dtype)


def _summed(parts: np.ndarray) -> Tensor:
    """numpy adds along the first axis row by row: the same order always."""
    return torch.from_numpy(parts.sum(0))
