"""The selective scan on a GPU: Triton kernels, nothing to build.

A program owns one batch entry and a block of channels, and walks along the sequence with their
states in registers: the sequences are short and the channels many, so that walking keeps the
device as busy as a parallel scan would, with less arithmetic. The forward keeps the states before
each chunk of `CHUNK` steps; the backward walks each chunk again from there, and leaves the states
between its steps in scratch memory that is as long as one chunk. Memory so grows as B·L·E.

Tensors keep their dtype, arithmetic is float32. Sums over programs are taken afterwards, in one
order, so that results are the same bits every time. No step is copied or flipped for `reverse`.

TRITON_INTERPRET=1, set before this module is imported, runs the kernels on a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsefield.scan import with_gradients

BLOCK = 16        # channels of a program
CHUNK = 32        # steps between two states that are kept
PER_WARP = 256    # states that a warp holds, 8 a thread: with more the backward spills


# --------------------------------------------------------------------------------------- the scan


def _scan(u, delta, A, B, C, D, z, delta_bias, reverse, keep) -> tuple[Tensor, Tensor]:
    """The output, and the states before each chunk (empty unless `keep`)."""
    grid, sizes, constants = _plan(u, A)
    out, chunks = _empty_like(u), sizes[-1]
    starts = u.new_empty(len(u) if keep else 0, chunks, *A.shape, dtype=torch.float32)
    with torch.cuda.device_of(u):
        _forward_kernel[grid](*_arguments(u, delta, A, B, C, D, z, delta_bias), out, starts, *sizes,
                              REVERSE=reverse, KEEP=keep, **constants)
    return out, starts


def _scan_backward(u, delta, A, B, C, D, z, delta_bias, reverse, starts, dout) -> list[Tensor]:
    """Gradients of the eight tensors: of u, delta and z in their dtypes, of the others in float32.
    """
    (batch, channels, length), states = u.shape, A.shape[1]
    (_, tiles), sizes, constants = _plan(u, A)
    du, ddelta, dz = (_empty_like(x) for x in (u, delta, z))
    dA, dB, dC, dD, dbias, scratch = (u.new_empty(shape, dtype=torch.float32) for shape in (
        (batch, channels, states), (tiles, batch, length, states), (tiles, batch, length, states),
        (batch, channels), (batch, channels), (batch, tiles, CHUNK, BLOCK, constants["STATES"]),
    ))
    dout = _by_channel(dout)
    with torch.cuda.device_of(u):
        _backward_kernel[batch, tiles](
            *_arguments(u, delta, A, B, C, D, z, delta_bias), starts, dout, dout.stride(0),
            dout.stride(2), scratch, du, ddelta, dA, dB, dC, dD, dz, dbias, *sizes,
            REVERSE=reverse, **constants,
        )
    dA, dB, dC, dD, dbias = (parts.sum(0) for parts in (dA, dB, dC, dD, dbias))
    return [du, ddelta, dA, dB.mT, dC.mT, dD, dz, dbias]


selective_scan = with_gradients(_scan, _scan_backward)


def _plan(u: Tensor, A: Tensor) -> tuple[tuple[int, int], tuple[int, ...], dict[str, int]]:
    """Grid, sizes and constants of both kernels."""
    (batch, channels, length), states = u.shape, A.shape[1]
    padded = triton.next_power_of_2(states)  # as Triton's blocks must be
    constants = {"STATES": padded, "BLOCK": BLOCK, "CHUNK": CHUNK,
                 "num_warps": max(1, min(8, BLOCK * padded // PER_WARP))}
    return ((batch, -(-channels // BLOCK)), (channels, length, states, -(-length // CHUNK)),
            constants)


def _by_channel(x: Tensor) -> Tensor:
    """x (B, E, L) with neighbouring channels next to each other in memory."""
    return x if x.stride(1) == 1 else x.mT.contiguous().mT


def _empty_like(x: Tensor) -> Tensor:
    """(B, E, L) on dense (B, L, E) memory."""
    return x.new_empty(x.mT.shape).mT


def _arguments(u, delta, A, B, C, D, z, delta_bias) -> list[Tensor | int]:
    """What both kernels read, as their first parameters say."""
    A, D, delta_bias = (x.float().contiguous() for x in (A, D, delta_bias))
    B, C = (x.mT.float().contiguous() for x in (B, C))                      # (B, L, S)
    values = [_by_channel(x) for x in (u, delta, z)]
    strides = [stride for x in values for stride in (x.stride(0), x.stride(2))]
    return [*values, *strides, A, B, C, D, delta_bias]


# ----------------------------------------------------------------------------------------- kernels
# Tensors of a program: (BLOCK,) one number a channel, (STATES,) one a state, (BLOCK, STATES).
# Channels and states past the end are 0 and stay 0.


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + w), w = exp(-|x|), with log(1 + w) = 2 artanh(w / (2 + w))."""
    w = tl.exp(-tl.abs(x))
    s = w / (w + 2.0)
    q = s * s
    series = q * (1.0 / 13.0) + 1.0 / 11.0
    series = series * q + 1.0 / 9.0
    series = series * q + 1.0 / 7.0
    series = series * q + 1.0 / 5.0
    series = series * q + 1.0 / 3.0
    return tl.maximum(x, 0.0) + 2.0 * s * (series * q + 1.0)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _time(i, length, REVERSE: tl.constexpr):
    """Where the step that is read as number i lies."""
    if REVERSE:
        return length - 1 - i
    return i


@triton.jit
def _forward_kernel(
    u, delta, z, u_batch, u_step, delta_batch, delta_step, z_batch, z_step, A, B, C, D, delta_bias,
    out, starts, channels, length, states, chunks,
    REVERSE: tl.constexpr, KEEP: tl.constexpr,
    STATES: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, STATES)
    e_in, s_in = e < channels, s < states
    both_in = e_in[:, None] & s_in[None, :]
    at = e[:, None] * states + s[None, :]
    a = tl.load(A + at, mask=both_in, other=0.0)
    d = tl.load(D + e, mask=e_in, other=0.0)
    bias = tl.load(delta_bias + e, mask=e_in, other=0.0)

    h = tl.zeros((BLOCK, STATES), dtype=tl.float32)
    for chunk in range(chunks):
        begin = chunk * CHUNK
        if KEEP:
            tl.store(starts + (b * chunks + chunk) * channels * states + at, h, mask=both_in)
        for i in range(begin, tl.minimum(begin + CHUNK, length)):
            t = _time(i, length, REVERSE)
            u_t = tl.load(u + b * u_batch + t * u_step + e, mask=e_in, other=0.0).to(tl.float32)
            raw = tl.load(delta + b * delta_batch + t * delta_step + e, mask=e_in, other=0.0)
            b_t = tl.load(B + (b * length + t) * states + s, mask=s_in, other=0.0)
            c_t = tl.load(C + (b * length + t) * states + s, mask=s_in, other=0.0)
            dt = _softplus(raw.to(tl.float32) + bias)
            h = tl.exp(dt[:, None] * a) * h + (dt * u_t)[:, None] * b_t[None, :]
            y = tl.sum(h * c_t[None, :], axis=1) + d * u_t
            z_t = tl.load(z + b * z_batch + t * z_step + e, mask=e_in, other=0.0).to(tl.float32)
            y = y * z_t * _sigmoid(z_t)
            tl.store(out + (b * length + t) * channels + e, y, mask=e_in)


@triton.jit
def _backward_kernel(
    u, delta, z, u_batch, u_step, delta_batch, delta_step, z_batch, z_step, A, B, C, D, delta_bias,
    starts, dout, dout_batch, dout_step, scratch,
    du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, channels, length, states, chunks,
    REVERSE: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):
    """dA, dD, ddelta_bias are parts per batch entry; dB, dC (tiles, B, L, S) parts per block."""
    b = tl.program_id(0).to(tl.int64)
    tile, tiles, batch = tl.program_id(1), tl.num_programs(1), tl.num_programs(0)
    e = tile * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, STATES)
    e_in, s_in = e < channels, s < states
    both_in = e_in[:, None] & s_in[None, :]
    at = e[:, None] * states + s[None, :]
    a = tl.load(A + at, mask=both_in, other=0.0)
    d = tl.load(D + e, mask=e_in, other=0.0)
    bias = tl.load(delta_bias + e, mask=e_in, other=0.0)
    states_before = (
        scratch + (b * tiles + tile) * CHUNK * BLOCK * STATES
        + tl.arange(0, BLOCK)[:, None] * STATES + s[None, :]
    )
    parts = (tile.to(tl.int64) * batch + b) * length

    g_end = tl.zeros((BLOCK, STATES), dtype=tl.float32)    # decay times g of the step after
    sum_a = tl.zeros((BLOCK, STATES), dtype=tl.float32)
    sum_d, sum_bias = tl.zeros((BLOCK,), dtype=tl.float32), tl.zeros((BLOCK,), dtype=tl.float32)
    for k in range(chunks):
        chunk = chunks - 1 - k
        begin = chunk * CHUNK
        n = tl.minimum(CHUNK, length - begin)
        h = tl.load(starts + (b * chunks + chunk) * channels * states + at, mask=both_in, other=0.0)
        for i in range(n):
            tl.store(states_before + i * BLOCK * STATES, h)
            t = _time(begin + i, length, REVERSE)
            u_t = tl.load(u + b * u_batch + t * u_step + e, mask=e_in, other=0.0).to(tl.float32)
            raw = tl.load(delta + b * delta_batch + t * delta_step + e, mask=e_in, other=0.0)
            b_t = tl.load(B + (b * length + t) * states + s, mask=s_in, other=0.0)
            dt = _softplus(raw.to(tl.float32) + bias)
            h = tl.exp(dt[:, None] * a) * h + (dt * u_t)[:, None] * b_t[None, :]
        tl.debug_barrier()    # the scratch memory is written
        for j in range(n):
            i = n - 1 - j
            t = _time(begin + i, length, REVERSE)
            u_t = tl.load(u + b * u_batch + t * u_step + e, mask=e_in, other=0.0).to(tl.float32)
            raw = tl.load(delta + b * delta_batch + t * delta_step + e, mask=e_in, other=0.0)
            dy = tl.load(dout + b * dout_batch + t * dout_step + e, mask=e_in, other=0.0)
            b_t = tl.load(B + (b * length + t) * states + s, mask=s_in, other=0.0)
            c_t = tl.load(C + (b * length + t) * states + s, mask=s_in, other=0.0)
            before = tl.load(states_before + i * BLOCK * STATES)
            raw, dy = raw.to(tl.float32) + bias, dy.to(tl.float32)
            dt = _softplus(raw)
            decay = tl.exp(dt[:, None] * a)
            after = decay * before + (dt * u_t)[:, None] * b_t[None, :]
            here = (b * length + t) * channels + e
            z_t = tl.load(z + b * z_batch + t * z_step + e, mask=e_in, other=0.0).to(tl.float32)
            gate = _sigmoid(z_t)
            y = tl.sum(after * c_t[None, :], axis=1) + d * u_t
            tl.store(dz + here, dy * y * gate * (1.0 + z_t * (1.0 - gate)), mask=e_in)
            dy = dy * z_t * gate

            g = dy[:, None] * c_t[None, :] + g_end
            db = tl.sum(g * (dt * u_t)[:, None], axis=0)
            dc = tl.sum(after * dy[:, None], axis=0)
            tl.store(dB + (parts + t) * states + s, db, mask=s_in)
            tl.store(dC + (parts + t) * states + s, dc, mask=s_in)
            g_input = tl.sum(g * b_t[None, :], axis=1)
            g_end = g * decay
            g_decay = g_end * before
            sum_a += g_decay * dt[:, None]
            sum_d += dy * u_t
            tl.store(du + here, g_input * dt + d * dy, mask=e_in)
            grad = (tl.sum(g_decay * a, axis=1) + g_input * u_t) * _sigmoid(raw)
            sum_bias += grad
            tl.store(ddelta + here, grad, mask=e_in)
        tl.debug_barrier()    # the scratch memory is read
    tl.store(dA + b * channels * states + at, sum_a, mask=both_in)
    tl.store(dD + b * channels + e, sum_d, mask=e_in)
    tl.store(ddelta_bias + b * channels + e, sum_bias, mask=e_in)
