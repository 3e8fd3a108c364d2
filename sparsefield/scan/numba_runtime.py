"""How the CPU kernels run: compiled on first use, cached on disk, on threads of our own.

The kernels (numba_kernels.py) release the GIL and run on as many threads as
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
from itertools import pairwise

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from sparsefield.scan import numba_kernels as kernels


def needs_operator() -> bool:
    """Whether a kernel must be called as an operator of torch, which gradients and compilers see.

    Otherwise it is called directly: the first call of an operator loads torch's compiler (seconds).
    """
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def floats(ndim: int) -> types.Array:
    """float32 in any strides, so that one compiled version serves every memory order."""
    return types.Array(types.float32, ndim, "A")


# Tensors (B, E, L) of which there is a version in each precision: see `as_array`.
VALUES = {torch.float32: floats(3), torch.bfloat16: types.Array(types.int16, 3, "A")}
RANGE = (types.intp, types.intp)


@functools.cache
def compiled(kernel, *arguments: types.Type):
    """The kernel for arguments of these types; from the disk cache after the first run."""
    signature = types.void(*arguments)
    try:
        return numba.njit(signature, nogil=True, cache=True)(kernel)
    except RuntimeError as error:    # no folder that can be written to
        if "cannot cache function" not in str(error):
            raise
        return numba.njit(signature, nogil=True)(kernel)


def run(kernel, tasks: int, *args) -> None:
    """Share the tasks among the threads, in four helpings each so that a slow core gets fewer."""
    threads = min(torch.get_num_threads(), tasks)
    edges = np.linspace(0, tasks, 4 * threads + 1).astype(int)
    ranges = iter([(begin, end) for begin, end in pairwise(edges) if begin < end])

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


def tiles(x: Tensor) -> int:
    """Tiles of channels of x (B, E, L)."""
    return -(-x.shape[1] // kernels.TILE)


def tasks(x: Tensor) -> int:
    return x.shape[0] * tiles(x)


def memory_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The precision of which the kernels read these tensors (B, E, L): bfloat16 if all are in it
    and their channels come in whole tiles, else float32.
    """
    present = [x for x in tensors if x is not None]
    narrow = all(x.dtype == torch.bfloat16 and x.shape[1] % kernels.TILE == 0 for x in present)
    return torch.bfloat16 if narrow else torch.float32


def as_array(x: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """x as the kernels read it: float32 in any strides, or the bits of bfloat16 by channels."""
    x = x.detach().to(dtype)
    if dtype != torch.bfloat16:
        return x.numpy()
    if x.stride(1) != 1:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.view(torch.int16).numpy()


def empty_like(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dense memory in the order of x: (B, L, E) behind a (B, E, L) view, or plain."""
    batch, channels, length = x.shape
    if x.stride(1) < x.stride(2) or dtype == torch.bfloat16:
        return x.new_empty(batch, length, channels, dtype=dtype).transpose(1, 2)
    return x.new_empty(batch, channels, length, dtype=dtype)
