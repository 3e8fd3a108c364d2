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
import torch.nn.functional as F
from numba import types
from numba.np.numpy_support import from_dtype
from torch import Tensor

from sparsefield.scan import numba_kernels as kernels
from sparsefield.scan import with_gradients

MAX_TAPS = kernels.CHUNK + 1  # of the convolution


# --- the scan ------------------------------------------------------------------------------------


def _scan(u, delta, A, B, C, D, z, delta_bias, reverse, keep) -> tuple[Tensor, Tensor]:
    """The output, and the states before each chunk (empty unless `keep`)."""
    dtype, arrays = _arrays(u, delta, A, B, C, D, z, delta_bias)
    out = np.empty_like(arrays[0])
    starts = np.empty((len(u) if keep else 0, -(-u.shape[2] // kernels.CHUNK),
                       out.shape[1] // kernels.TILE, A.shape[1] * kernels.TILE), np.float32)
    _run(kernels.forward, out, *arrays, reverse, out, starts)
    return _as_tensor(out, dtype, u), torch.from_numpy(starts)


def _scan_backward(u, delta, A, B, C, D, z, delta_bias, reverse, starts, dout) -> list[Tensor]:
    """Gradients of the eight tensors."""
    dtype, arrays = _arrays(u, delta, A, B, C, D, z, delta_bias)
    dout = _rows(dout, dtype)
    du, ddelta, dz = (np.empty_like(dout) for _ in range(3))
    batch, padded, length = dout.shape
    states, tiles = A.shape[1], padded // kernels.TILE
    dA, dD, dbias = (np.empty((batch, rows, padded), np.float32) for rows in (states, 1, 1))
    dB, dC = (np.empty((tiles, batch, length, states), np.float32) for _ in range(2))
    _run(kernels.backward, dout, *arrays, reverse, starts.numpy(), dout, du, ddelta, dz,
         dA, dB, dC, dD, dbias)
    dA, dB, dC, dD, dbias = map(_summed, (dA, dB, dC, dD, dbias))
    du, ddelta, dz = (_as_tensor(x, dtype, own)
                      for x, own in ((du, u), (ddelta, delta), (dz, z)))
    own = slice(u.shape[1])
    return [du, ddelta, dA[:, own].T, dB.mT, dC.mT, dD[0, own], dz, dbias[0, own]]


selective_scan = with_gradients(_scan, _scan_backward)


def _arrays(u, delta, A, B, C, D, z, delta_bias) -> tuple[torch.dtype, list[np.ndarray]]:
    """The precision in which the kernel reads u, delta and z, and its first arguments."""
    dtype = _memory_dtype(u, delta, z)
    return dtype, [_rows(u, dtype), _rows(delta, dtype), _columns(A), _plain(B), _plain(C),
                   _columns(D), _rows(z, dtype), _columns(delta_bias)]


# --- the convolution -----------------------------------------------------------------------------


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, keep: bool
) -> tuple[Tensor]:
    """x (B, E, L), weight (E, taps), bias (E,) to (B, E, L) in the dtype of x."""
    dtype = _memory_dtype(x)
    rows = _rows(x, dtype)
    out = np.empty_like(rows)
    _run(kernels.conv_forward, out, rows, _columns(weight), _columns(bias), reverse, out)
    return (_as_tensor(out, dtype, x),)


def _convolve_backward(
    x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, dout: Tensor
) -> list[Tensor]:
    """Gradients of x, weight and bias."""
    dtype = _memory_dtype(x)
    rows, dout = _rows(x, dtype), _rows(dout, dtype)
    dx = np.empty_like(rows)
    dweight, dbias = (np.empty((len(x), taps, rows.shape[1]), np.float32)
                      for taps in (weight.shape[1], 1))
    _run(kernels.conv_backward, dx, rows, _columns(weight), _columns(bias), reverse, dout, dx,
         dweight, dbias)
    own = slice(x.shape[1])
    return [_as_tensor(dx, dtype, x), _summed(dweight)[:, own].T, _summed(dbias)[0, own]]


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


def _run(kernel, x: np.ndarray, *args: np.ndarray | bool) -> None:
    """Share the tasks of x (B, E, L) among the threads, in four portions for each, of which a slow
    core takes fewer."""
    function = _compiled(kernel, *(bool if isinstance(given, bool) else (given.dtype, given.ndim)
                                   for given in args))
    tasks = len(x) * x.shape[1] // kernels.TILE
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


# --- tensors as the kernels read them ------------------------------------------------------------


def _memory_dtype(*tensors: Tensor) -> torch.dtype:
    """In which the kernels read these tensors: bfloat16 if all are in it, else float32."""
    narrow = all(x.dtype == torch.bfloat16 for x in tensors)
    return torch.bfloat16 if narrow else torch.float32


def _rows(x: Tensor, dtype: torch.dtype) -> np.ndarray:
    """x (B, E, L) on (B, L, E) memory with zeros for channels up to a whole tile: float32, or the
    bits of bfloat16."""
    x = x.detach().to(dtype).mT
    x = (F.pad(x, (0, -x.shape[2] % kernels.TILE)) if x.shape[2] % kernels.TILE else x).contiguous()
    return (x.view(torch.int16) if dtype == torch.bfloat16 else x).numpy().swapaxes(1, 2)


def _as_tensor(rows: np.ndarray, dtype: torch.dtype, like: Tensor) -> Tensor:
    """What `_rows` undoes, in the dtype of another tensor."""
    x = torch.from_numpy(rows.swapaxes(1, 2)).view(dtype)[..., : like.shape[1]]
    return x.to(like.dtype).contiguous().mT


def _columns(x: Tensor) -> np.ndarray:
    """x (E, k) or (E,) as (k, E) or (1, E) float32, with zeros up to a whole tile."""
    x = x.detach().float().reshape(len(x), -1).T
    return F.pad(x, (0, -len(x.T) % kernels.TILE)).numpy()


def _plain(x: Tensor) -> np.ndarray:
    return x.detach().float().numpy()


def _summed(parts: np.ndarray) -> Tensor:
    """numpy adds along the first axis row by row: the same order always."""
    return torch.from_numpy(parts.sum(0))
