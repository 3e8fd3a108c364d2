"""The CPU kernels of the selective scan and of the convolution before it, compiled by numba on
first use and cached on disk.

A task is one batch entry and one tile of `TILE` channels; it walks along the sequence in chunks
of `CHUNK` steps. A vector holds 16 channels (one AVX-512 register; LLVM splits it where registers
are narrower), so the loop over the S states is a plain loop: nothing is summed across lanes
except the gradients of B and C. States, decays and the rows of a chunk live in scratch memory of
the task, small enough for the caches; the tensors themselves are touched once, in any strides.

Tensors are float32 or bfloat16, arithmetic is float32. numpy has no bfloat16, so such a tensor
comes as int16, and channels must then be contiguous and a multiple of `TILE`.

The file is one because numba's disk cache looks only at the file that holds the kernel.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
TILE = 64
CHUNK = 32

# ---------------------------------------------------------------------------- vectors of 16 floats
# numba has no vector type and cannot tell LLVM that two arrays do not overlap, which keeps the
# loops of the kernels from being vectorised well (measured: 3 times slower). So the vectors are
# spelled out. 'contract' allows a * b + c in one instruction; nothing assumes finite numbers.

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_FAST = ("contract",)


def _each(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * LANES)



class VectorType(types.Type):
    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _FLOATS)


vector = VectorType()


def _binary(emit):
    """An intrinsic (vector, vector) -> vector from a function of builder and operands."""

    @intrinsic
    def operation(typing_context, a, b):
        return vector(vector, vector), lambda context, builder, sig, args: emit(builder, *args)

    return operation


_add = _binary(lambda builder, a, b: builder.fadd(a, b, flags=_FAST))
_sub = _binary(lambda builder, a, b: builder.fsub(a, b, flags=_FAST))
_mul = _binary(lambda builder, a, b: builder.fmul(a, b, flags=_FAST))
_div = _binary(lambda builder, a, b: builder.fdiv(a, b))
# NaN in `a` stays NaN: a comparison with it is false.
maximum = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), b, a))
minimum = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), b, a))


@intrinsic
def full(typing_context, x):
    """All lanes equal to the float32 x."""

    def emit(context, builder, sig, args):
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        one = builder.insert_element(undefined, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, undefined, _each(0))

    return vector(types.float32), emit


def _overload_operator(symbol, operation):
    @overload(symbol)
    def choose(a, b):
        if a == vector and b == vector:
            return lambda a, b: operation(a, b)
        if a == vector and isinstance(b, types.Float):
            return lambda a, b: operation(a, full(np.float32(b)))
        if isinstance(a, types.Float) and b == vector:
            return lambda a, b: operation(full(np.float32(a)), b)
        return None  # not for these types


for _symbol, _operation in (
    (operator.add, _add), (operator.sub, _sub), (operator.mul, _mul), (operator.truediv, _div)
):
    _overload_operator(_symbol, _operation)


@intrinsic
def load(typing_context, address):
    """The 16 floats at a memory address."""

    def emit(context, builder, sig, args):
        found = builder.load(builder.inttoptr(args[0], _FLOATS.as_pointer()))
        found.align = 4
        return found

    return vector(types.intp), emit


@intrinsic
def store(typing_context, address, value):
    def emit(context, builder, sig, args):
        stored = builder.store(args[1], builder.inttoptr(args[0], _FLOATS.as_pointer()))
        stored.align = 4
        return context.get_dummy_value()

    return types.none(types.intp, vector), emit


@intrinsic
def _load_bfloat16(typing_context, address):
    """16 bfloat16 as floats: they are the upper halves."""

    def emit(context, builder, sig, args):
        halves = builder.load(builder.inttoptr(args[0], _SHORTS.as_pointer()))
        halves.align = 2
        wide = builder.shl(builder.zext(halves, _INTS), _each(16))
        return builder.bitcast(wide, _FLOATS)

    return vector(types.intp), emit


@intrinsic
def _store_bfloat16(typing_context, address, value):
    """16 floats as bfloat16, rounded to nearest, ties to even; NaN stays NaN."""

    def emit(context, builder, sig, args):
        bits = builder.bitcast(args[1], _INTS)
        odd = builder.and_(builder.lshr(bits, _each(16)), _each(1))
        rounded = builder.add(bits, builder.add(odd, _each(0x7FFF)))
        is_nan = builder.fcmp_unordered("uno", args[1], args[1])
        rounded = builder.select(is_nan, _each(0x7FC00000), rounded)
        halves = builder.trunc(builder.lshr(rounded, _each(16)), _SHORTS)
        stored = builder.store(halves, builder.inttoptr(args[0], _SHORTS.as_pointer()))
        stored.align = 2
        return context.get_dummy_value()

    return types.none(types.intp, vector), emit


def _load_as(x, address):
    """16 neighbours of the array x, which tells how they are stored."""


def _store_as(x, address, value):
    """The reverse of `_load_as`."""


@overload(_load_as, inline="always")
def _(x, address):
    if x.dtype == types.int16:
        return lambda x, address: _load_bfloat16(address)
    return lambda x, address: load(address)


@overload(_store_as, inline="always")
def _(x, address, value):
    if x.dtype == types.int16:
        return lambda x, address, value: _store_bfloat16(address, value)
    return lambda x, address, value: store(address, value)


@intrinsic
def _power_of_two(typing_context, r):
    """2**n where n is in the low bits of r = n + 1.5 * 2**23; n from -127 (0) to 128 (inf)."""

    def emit(context, builder, sig, args):
        n = builder.add(builder.bitcast(args[0], _INTS), _each(127))
        return builder.bitcast(builder.shl(n, _each(23)), _FLOATS)

    return vector(vector), emit


@intrinsic
def lane_sum(typing_context, x):
    """Sum of the 16 lanes by halving, always in the same order."""

    def emit(context, builder, sig, args):
        x, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = [
                ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(start, start + width)))
                for start in (0, width)
            ]
            low, high = (builder.shuffle_vector(x, x, half) for half in halves)
            x = builder.fadd(low, high)
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return types.float32(vector), emit


# --------------------------------------------------------------------------------------- functions

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)
_ROUND = 1.5 * 2.0**23
_EXP2 = tuple(LN_2**k / math.factorial(k) for k in range(1, 7))
_E1, _E2, _E3, _E4, _E5, _E6 = _EXP2


@njit
def exp2(x):
    """2**x to 2e-7, relative: n = round(x), then the Taylor series of 2**(x - n)."""
    x = minimum(maximum(x, full(np.float32(-127.0))), full(np.float32(128.0)))
    rounded = x + _ROUND
    f = x - (rounded - _ROUND)
    series = ((((_E6 * f + _E5) * f + _E4) * f + _E3) * f + _E2) * f + _E1
    return (series * f + 1.0) * _power_of_two(rounded)


@njit
def sigmoid(x):
    return 1.0 / (exp2(x * -LOG2_E) + 1.0)


@njit
def softplus(x):
    """max(x, 0) + log(1 + w), w = exp(-|x|), with log(1 + w) = 2 artanh(w / (2 + w))."""
    w = exp2(maximum(x, x * -1.0) * -LOG2_E)
    s = w / (w + 2.0)
    q = s * s
    series = (((((1 / 13) * q + 1 / 11) * q + 1 / 9) * q + 1 / 7) * q + 1 / 5) * q + 1 / 3
    return maximum(x, full(np.float32(0.0))) + 2.0 * s * (series * q + 1.0)


# ----------------------------------------------------------------------------------- scratch memory
# Rows of a chunk are (CHUNK, TILE), states (S, TILE), flat and addressed in bytes.

VECTOR = 4 * LANES
ROW = 4 * TILE


@njit
def _scratch(floats):
    """Zeros, aligned to a cache line: a vector that straddles two costs double."""
    memory = np.zeros(floats + LANES, np.float32)
    skip = (-(memory.ctypes.data // 4)) % LANES
    return memory[skip : skip + floats]


@njit
def _read_rows(x, b, e0, first, step, n, rows):
    """rows[i] = x[b, e0 : e0 + TILE, first + step * i]; channels that do not exist read as 0."""
    width = min(TILE, x.shape[1] - e0)
    if x.strides[1] == x.itemsize and width == TILE:
        source = x.ctypes.data + b * x.strides[0] + e0 * x.itemsize + first * x.strides[2]
        for i in range(n):
            for e in range(0, TILE, LANES):
                from_ = source + i * step * x.strides[2] + e * x.itemsize
                store(rows.ctypes.data + i * ROW + 4 * e, _load_as(x, from_))
    else:
        for e in range(TILE):
            for i in range(n):
                rows[i * TILE + e] = x[b, e0 + e, first + step * i] if e < width else 0


@njit
def _write_rows(x, b, e0, first, step, n, rows):
    """x[b, e0 : e0 + TILE, first + step * i] = rows[i]"""
    width = min(TILE, x.shape[1] - e0)
    if x.strides[1] == x.itemsize and width == TILE:
        target = x.ctypes.data + b * x.strides[0] + e0 * x.itemsize + first * x.strides[2]
        for i in range(n):
            for e in range(0, TILE, LANES):
                to = target + i * step * x.strides[2] + e * x.itemsize
                _store_as(x, to, load(rows.ctypes.data + i * ROW + 4 * e))
    else:
        for e in range(width):
            for i in range(n):
                x[b, e0 + e, first + step * i] = rows[i * TILE + e]


@njit
def _read_tile(A, D, delta_bias, e0, a, d, bias):
    """The tile's columns of A (times log2(e), for exp2), D and delta_bias; 0 past the end."""
    for e in range(TILE):
        inside = e0 + e < A.shape[0]
        d[e] = D[e0 + e] if inside else 0
        bias[e] = delta_bias[e0 + e] if inside else 0
        for s in range(A.shape[1]):
            a[s * TILE + e] = A[e0 + e, s] * np.float32(LOG2_E) if inside else 0


# ----------------------------------------------------------------------------------------- kernels


@njit
def _step_sizes(dt, bias, use_softplus, n):
    """From delta to step size, in place. Rows first: no state waits for a softplus."""
    for i in range(n):
        for offset in range(0, ROW, VECTOR):
            at = dt.ctypes.data + i * ROW + offset
            dt_i = load(at) + load(bias.ctypes.data + offset)
            store(at, softplus(dt_i) if use_softplus else dt_i)


@njit
def _advance(B, C, b, first, step, n, a, d, u, dt, y, h, decays, keep):
    """Walk n steps: `y` = C h + D u, `h` from state to state.

    With `keep`, h[i] -> h[i + 1] and every decay is written; without it h[0] is updated in place.
    """
    states = B.shape[1]
    block = states * ROW
    a_at, h_at, decay_at = a.ctypes.data, h.ctypes.data, decays.ctypes.data
    for i in range(n):
        t = first + step * i
        for offset in range(0, ROW, VECTOR):
            row = i * ROW + offset
            dt_i, u_i = load(dt.ctypes.data + row), load(u.ctypes.data + row)
            dtu = dt_i * u_i
            y_i = load(d.ctypes.data + offset) * u_i
            before = h_at + offset + (i * block if keep else 0)
            after = before + (block if keep else 0)
            for s in range(states):
                decay = exp2(dt_i * load(a_at + s * ROW + offset))
                h_s = decay * load(before + s * ROW) + dtu * B[b, s, t]
                y_i = y_i + h_s * C[b, s, t]
                store(after + s * ROW, h_s)
                if keep:
                    store(decay_at + i * block + s * ROW + offset, decay)
            store(y.ctypes.data + row, y_i)


@njit
def _apply_gate(y, z, n):
    for at in range(0, n * ROW, VECTOR):
        z_i = load(z.ctypes.data + at)
        store(y.ctypes.data + at, load(y.ctypes.data + at) * z_i * sigmoid(z_i))


def forward(
    u, delta, A, B, C, D, z, delta_bias, gated, use_softplus, reverse, out, starts, begin, end
):
    """Tasks begin to end of the scan; `starts` (B, chunks, tiles, S * TILE), if not empty, keeps
    the state before each chunk for the backward.
    """
    channels, length, states = u.shape[1], u.shape[2], A.shape[1]
    tiles = (channels + TILE - 1) // TILE
    a, h = _scratch(states * TILE), _scratch(states * TILE)
    d, bias = _scratch(TILE), _scratch(TILE)
    u_rows, dt_rows, z_rows, y_rows = (
        _scratch(CHUNK * TILE), _scratch(CHUNK * TILE), _scratch(CHUNK * TILE),
        _scratch(CHUNK * TILE),
    )
    for task in range(begin, end):
        b, tile = task // tiles, task % tiles
        e0 = tile * TILE
        _read_tile(A, D, delta_bias, e0, a, d, bias)
        h[:] = 0
        for start in range(0, length, CHUNK):
            n = min(CHUNK, length - start)
            first, step = (length - 1 - start, -1) if reverse else (start, 1)
            if len(starts):
                starts[b, start // CHUNK, tile] = h
            _read_rows(u, b, e0, first, step, n, u_rows)
            _read_rows(delta, b, e0, first, step, n, dt_rows)
            _step_sizes(dt_rows, bias, use_softplus, n)
            _advance(B, C, b, first, step, n, a, d, u_rows, dt_rows, y_rows, h, h, False)
            if gated:
                _read_rows(z, b, e0, first, step, n, z_rows)
                _apply_gate(y_rows, z_rows, n)
            _write_rows(out, b, e0, first, step, n, y_rows)


@njit
def _gate_backward(dy, dz, y, z, n):
    """out = y z sigmoid(z): dz, and dy from the gradient of out, in place."""
    for at in range(0, n * ROW, VECTOR):
        z_i, grad = load(z.ctypes.data + at), load(dy.ctypes.data + at)
        gate = sigmoid(z_i)
        d_gate = gate * (1.0 + z_i * (1.0 - gate))
        store(dz.ctypes.data + at, grad * load(y.ctypes.data + at) * d_gate)
        store(dy.ctypes.data + at, grad * z_i * gate)


@njit
def _retreat(B, C, b, first, step, n, a, d, u, dt, dy, h, decays, g_end, da, dd, sum_b, sum_c,
             du, ddt, dB, dC):
    """Walk the n steps backwards with the adjoint g_i = C dy_i + decay_{i+1} g_{i+1}.

    `g_end` (S, TILE) is decay times g of the step after, in and out. `da`, `dd` accumulate,
    `du`, `ddt` and dB, dC (L, S) of this tile are written.
    """
    states = B.shape[1]
    block = states * ROW
    for i in range(n - 1, -1, -1):
        t = first + step * i
        sum_b[:] = 0
        sum_c[:] = 0
        for offset in range(0, ROW, VECTOR):
            row = i * ROW + offset
            dt_i, u_i = load(dt.ctypes.data + row), load(u.ctypes.data + row)
            dy_i = load(dy.ctypes.data + row)
            dtu = dt_i * u_i
            g_input, g_decay = full(np.float32(0)), full(np.float32(0))
            for s in range(states):
                at = s * ROW + offset
                before = h.ctypes.data + i * block + at
                b_at, c_at = sum_b.ctypes.data + s * VECTOR, sum_c.ctypes.data + s * VECTOR
                g = dy_i * C[b, s, t] + load(g_end.ctypes.data + at)
                store(b_at, load(b_at) + g * dtu)
                store(c_at, load(c_at) + dy_i * load(before + block))
                g_input = g_input + g * B[b, s, t]
                g = g * load(decays.ctypes.data + i * block + at)
                store(g_end.ctypes.data + at, g)
                g = g * load(before)
                g_decay = g_decay + g * load(a.ctypes.data + at)
                store(da.ctypes.data + at, load(da.ctypes.data + at) + g * dt_i)
            store(ddt.ctypes.data + row, g_decay * LN_2 + g_input * u_i)
            store(du.ctypes.data + row, g_input * dt_i + dy_i * load(d.ctypes.data + offset))
            dd_at = dd.ctypes.data + offset
            store(dd_at, load(dd_at) + dy_i * u_i)
        for s in range(states):
            dB[t, s] = lane_sum(load(sum_b.ctypes.data + s * VECTOR))
            dC[t, s] = lane_sum(load(sum_c.ctypes.data + s * VECTOR))


@njit
def _step_size_backward(ddelta, delta, bias, dbias, use_softplus, n):
    """ddelta from the gradient of the step size, in place; dbias accumulates."""
    for i in range(n):
        for offset in range(0, ROW, VECTOR):
            at = ddelta.ctypes.data + i * ROW + offset
            grad = load(at)
            if use_softplus:
                raw = load(delta.ctypes.data + i * ROW + offset) + load(bias.ctypes.data + offset)
                grad = grad * sigmoid(raw)
            store(at, grad)
            dbias_at = dbias.ctypes.data + offset
            store(dbias_at, load(dbias_at) + grad)


def backward(
    u, delta, A, B, C, D, z, delta_bias, gated, use_softplus, reverse, starts, dout,
    du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, begin, end,
):
    """Tasks begin to end of the backward. Sums are left in parts, so that their order is fixed:
    dA (B, E, S), dD and ddelta_bias (B, E) per batch entry, dB and dC (tiles, B, L, S) per tile.
    """
    channels, length, states = u.shape[1], u.shape[2], A.shape[1]
    tiles = (channels + TILE - 1) // TILE
    rows, block = CHUNK * TILE, states * TILE
    a, g_end, da = _scratch(block), _scratch(block), _scratch(block)
    h, decays = _scratch((CHUNK + 1) * block), _scratch(CHUNK * block)
    sum_b, sum_c = _scratch(states * LANES), _scratch(states * LANES)
    d, bias, dd, dbias = _scratch(TILE), _scratch(TILE), _scratch(TILE), _scratch(TILE)
    u_rows, delta_rows, dt_rows, z_rows = (
        _scratch(rows), _scratch(rows), _scratch(rows), _scratch(rows))
    y_rows, dy_rows, du_rows, ddt_rows, dz_rows = (
        _scratch(rows), _scratch(rows), _scratch(rows), _scratch(rows), _scratch(rows))
    for task in range(begin, end):
        b, tile = task // tiles, task % tiles
        e0 = tile * TILE
        _read_tile(A, D, delta_bias, e0, a, d, bias)
        g_end[:] = 0
        da[:] = 0
        dd[:] = 0
        dbias[:] = 0
        for chunk in range((length - 1) // CHUNK, -1, -1):
            start = chunk * CHUNK
            n = min(CHUNK, length - start)
            first, step = (length - 1 - start, -1) if reverse else (start, 1)
            h[:block] = starts[b, chunk, tile]
            _read_rows(u, b, e0, first, step, n, u_rows)
            _read_rows(delta, b, e0, first, step, n, delta_rows)
            _read_rows(dout, b, e0, first, step, n, dy_rows)
            dt_rows[:] = delta_rows
            _step_sizes(dt_rows, bias, use_softplus, n)
            _advance(B, C, b, first, step, n, a, d, u_rows, dt_rows, y_rows, h, decays, True)
            if gated:
                _read_rows(z, b, e0, first, step, n, z_rows)
                _gate_backward(dy_rows, dz_rows, y_rows, z_rows, n)
                _write_rows(dz, b, e0, first, step, n, dz_rows)
            _retreat(B, C, b, first, step, n, a, d, u_rows, dt_rows, dy_rows, h, decays, g_end,
                     da, dd, sum_b, sum_c, du_rows, ddt_rows, dB[tile, b], dC[tile, b])
            _step_size_backward(ddt_rows, delta_rows, bias, dbias, use_softplus, n)
            _write_rows(du, b, e0, first, step, n, du_rows)
            _write_rows(ddelta, b, e0, first, step, n, ddt_rows)
        for e in range(min(TILE, channels - e0)):
            dD[b, e0 + e] = dd[e]
            ddelta_bias[b, e0 + e] = dbias[e]
            for s in range(states):
                dA[b, e0 + e, s] = da[s * TILE + e]


# ------------------------------------------------------- the convolution before the scan, and SiLU
# Tensors are (B, E, L) like those of the scan, weight is (E, taps). Steps are counted in reading
# order; a chunk's rows come after the `taps - 1` rows before them.


@njit
def _read_taps(weight, bias, e0, w, d):
    """The tile's columns of weight (as (taps, TILE)) and bias; 0 past the end."""
    for e in range(TILE):
        inside = e0 + e < weight.shape[0]
        d[e] = bias[e0 + e] if inside else 0
        for k in range(weight.shape[1]):
            w[k * TILE + e] = weight[e0 + e, k] if inside else 0


@njit
def _read_steps(x, b, e0, start, n, reverse, rows):
    """rows[i] = the tile's channels at step start + i, 0 before the first step."""
    missing = max(0, -start)
    rows[: missing * TILE] = 0
    start, n = start + missing, n - missing
    first, step = (x.shape[2] - 1 - start, -1) if reverse else (start, 1)
    _read_rows(x, b, e0, first, step, n, rows[missing * TILE :])


@njit
def _write_steps(x, b, e0, start, n, reverse, rows):
    first, step = (x.shape[2] - 1 - start, -1) if reverse else (start, 1)
    _write_rows(x, b, e0, first, step, n, rows)


@njit
def _convolve(x, w, d, taps, n, y):
    """y[i] = d + sum_k w[k] x[i + k]"""
    for i in range(n):
        for offset in range(0, ROW, VECTOR):
            sum_ = load(d.ctypes.data + offset)
            for k in range(taps):
                at = k * ROW + offset
                sum_ = sum_ + load(w.ctypes.data + at) * load(x.ctypes.data + i * ROW + at)
            store(y.ctypes.data + i * ROW + offset, sum_)


def conv_forward(x, weight, bias, reverse, out, begin, end):
    """Tasks begin to end of out = silu(causal convolution of x)."""
    channels, length, taps = x.shape[1], x.shape[2], weight.shape[1]
    tiles = (channels + TILE - 1) // TILE
    w, d = _scratch(taps * TILE), _scratch(TILE)
    x_rows, y_rows = _scratch((taps - 1 + CHUNK) * TILE), _scratch(CHUNK * TILE)
    for task in range(begin, end):
        b, e0 = task // tiles, task % tiles * TILE
        _read_taps(weight, bias, e0, w, d)
        for start in range(0, length, CHUNK):
            n = min(CHUNK, length - start)
            _read_steps(x, b, e0, start - taps + 1, n + taps - 1, reverse, x_rows)
            _convolve(x_rows, w, d, taps, n, y_rows)
            for at in range(y_rows.ctypes.data, y_rows.ctypes.data + n * ROW, VECTOR):
                y = load(at)
                store(at, y * sigmoid(y))
            _write_steps(out, b, e0, start, n, reverse, y_rows)


@njit
def _silu_backward(y, dy, n):
    """dy from the gradient of silu(y), in place."""
    for at in range(0, n * ROW, VECTOR):
        y_i = load(y.ctypes.data + at)
        gate = sigmoid(y_i)
        grad = load(dy.ctypes.data + at) * gate * (1.0 + y_i * (1.0 - gate))
        store(dy.ctypes.data + at, grad)


@njit
def _add_weight_gradients(x, dy, taps, n, dw, db):
    """dw[k] += sum_i dy[i] x[i + k] and db += sum_i dy[i]."""
    for offset in range(0, ROW, VECTOR):
        dy_at = dy.ctypes.data + offset
        sum_ = load(db.ctypes.data + offset)
        for i in range(n):
            sum_ = sum_ + load(dy_at + i * ROW)
        store(db.ctypes.data + offset, sum_)
        for k in range(taps):
            x_at, dw_at = x.ctypes.data + k * ROW + offset, dw.ctypes.data + k * ROW + offset
            sum_ = load(dw_at)
            for i in range(n):
                sum_ = sum_ + load(dy_at + i * ROW) * load(x_at + i * ROW)
            store(dw_at, sum_)


def conv_backward(x, weight, bias, reverse, dout, dx, dweight, dbias, begin, end):
    """Tasks begin to end of the backward; dweight (B, E, taps) and dbias (B, E) are parts."""
    channels, length, taps = x.shape[1], x.shape[2], weight.shape[1]
    tiles = (channels + TILE - 1) // TILE
    w, d, dw, db = _scratch(taps * TILE), _scratch(TILE), _scratch(taps * TILE), _scratch(TILE)
    flipped, zero = _scratch(taps * TILE), _scratch(TILE)
    x_rows, dy_rows = (_scratch((taps - 1 + CHUNK) * TILE), _scratch((taps - 1 + CHUNK) * TILE))
    y_rows, dx_rows = _scratch(CHUNK * TILE), _scratch(CHUNK * TILE)
    for task in range(begin, end):
        b, e0 = task // tiles, task % tiles * TILE
        _read_taps(weight, bias, e0, w, d)
        for k in range(taps):
            flipped[k * TILE : (k + 1) * TILE] = w[(taps - 1 - k) * TILE : (taps - k) * TILE]
        dw[:] = 0
        db[:] = 0
        dy_rows[:] = 0
        for start in range((length - 1) // CHUNK * CHUNK, -1, -CHUNK):
            n = min(CHUNK, length - start)
            # Gradients of the steps after this chunk, which its last steps reach. After the last
            # step there are none.
            for i in range((taps - 1) * TILE):
                dy_rows[n * TILE + i] = dy_rows[i] if start + n < length else 0
            _read_steps(x, b, e0, start - taps + 1, n + taps - 1, reverse, x_rows)
            _read_steps(dout, b, e0, start, n, reverse, dy_rows)
            _convolve(x_rows, w, d, taps, n, y_rows)
            _silu_backward(y_rows, dy_rows, n)
            _add_weight_gradients(x_rows, dy_rows, taps, n, dw, db)
            _convolve(dy_rows, flipped, zero, taps, n, dx_rows)
            _write_steps(dx, b, e0, start, n, reverse, dx_rows)
        for e in range(min(TILE, channels - e0)):
            dbias[b, e0 + e] = db[e]
            for k in range(taps):
                dweight[b, e0 + e, k] = dw[k * TILE + e]
