"""The CPU kernels of the selective scan and of the convolution before it, compiled by numba.

A task is one batch entry and one tile of `TILE` channels; it walks along the sequence in chunks
of `CHUNK` steps. A vector holds 16 channels (one AVX-512 register; LLVM splits it where registers
are narrower), so the loop over the S states is a plain loop: nothing is summed across lanes
except the gradients of B and C. States, decays and the rows of a chunk live in scratch memory of
the task, small enough for the caches; the tensors themselves are touched once.

Channels are contiguous and a multiple of `TILE`. Tensors are float32 or bfloat16, arithmetic is
float32. numpy has no bfloat16, so such a tensor comes as int16.

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

_INT = ir.IntType(32)
_FLOATS, _INTS, _SHORTS = (ir.VectorType(kind, LANES)
                           for kind in (ir.FloatType(), _INT, ir.IntType(16)))
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


def _instruction(result, *arguments):
    """Decorates a function of the LLVM builder and the values of one or two arguments."""

    def made(emit):
        def lower(context, builder, signature, values):
            value = emit(builder, *values)
            return context.get_dummy_value() if result == types.none else value

        typed = result(*arguments), lower
        if len(arguments) == 1:
            return intrinsic(lambda typing_context, a: typed)
        return intrinsic(lambda typing_context, a, b: typed)

    return made


@_instruction(vector, types.float32)
def full(builder, x):
    """All lanes equal to x."""
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    one = builder.insert_element(undefined, x, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, undefined, _each(0))


def _operator(symbol, emit):
    """Let a symbol stand for an instruction of two vectors, or of a vector and a number."""
    operation = _instruction(vector, vector, vector)(emit)

    @overload(symbol)
    def choose(a, b):
        if a == vector and b == vector:
            return lambda a, b: operation(a, b)
        if a == vector and isinstance(b, types.Float):
            return lambda a, b: operation(a, full(np.float32(b)))
        if isinstance(a, types.Float) and b == vector:
            return lambda a, b: operation(full(np.float32(a)), b)
        return None  # not for these types


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=_FAST))
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=_FAST))
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=_FAST))
_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))


# NaN in `a` stays NaN: a comparison with it is false.
maximum, minimum = (_instruction(vector, vector, vector)(emit) for emit in (
    lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), b, a),
    lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), b, a),
))


@_instruction(vector, types.intp)
def load(builder, address):
    """The 16 floats at a memory address."""
    return builder.load(builder.inttoptr(address, _FLOATS.as_pointer()), align=4)


@_instruction(types.none, types.intp, vector)
def store(builder, address, value):
    builder.store(value, builder.inttoptr(address, _FLOATS.as_pointer()), align=4)


@_instruction(vector, types.intp)
def _load_bfloat16(builder, address):
    """16 bfloat16 as floats: they are the upper halves."""
    halves = builder.load(builder.inttoptr(address, _SHORTS.as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, _INTS), _each(16)), _FLOATS)


@_instruction(types.none, types.intp, vector)
def _store_bfloat16(builder, address, value):
    """16 floats as bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    bits = builder.bitcast(value, _INTS)
    odd = builder.and_(builder.lshr(bits, _each(16)), _each(1))
    rounded = builder.add(bits, builder.add(odd, _each(0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(is_nan, _each(0x7FC00000), rounded)
    halves = builder.trunc(builder.lshr(rounded, _each(16)), _SHORTS)
    builder.store(halves, builder.inttoptr(address, _SHORTS.as_pointer()), align=2)


@_instruction(vector, vector)
def _power_of_two(builder, r):
    """2**n where n is in the low bits of r = n + 1.5 * 2**23; n from -127 (0) to 128 (inf)."""
    n = builder.add(builder.bitcast(r, _INTS), _each(127))
    return builder.bitcast(builder.shl(n, _each(23)), _FLOATS)


@_instruction(types.float32, vector)
def lane_sum(builder, x):
    """Sum of the 16 lanes by halving, always in the same order."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(_INT, width),
                                                     list(range(start, start + width))))
            for start in (0, width)
        )
        x = builder.fadd(low, high)
    return builder.extract_element(x, ir.Constant(_INT, 0))


# --------------------------------------------------------------------------------------- functions

LOG2_E, LN_2 = math.log2(math.e), math.log(2)
_ROUND = 1.5 * 2.0**23
_E1, _E2, _E3, _E4, _E5, _E6 = (LN_2**k / math.factorial(k) for k in range(1, 7))


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
# Rows of a chunk are (CHUNK, TILE), columns (states or taps, TILE), flat and addressed in bytes.

VECTOR = 4 * LANES
ROW = 4 * TILE


@njit
def _scratch(floats):
    """Zeros, aligned to a cache line: a vector that straddles two costs double."""
    memory = np.zeros(floats + LANES, np.float32)
    skip = (-(memory.ctypes.data // 4)) % LANES
    return memory[skip : skip + floats]


@njit
def _rows():
    return _scratch(CHUNK * TILE)


@njit
def _direction(length, start, reverse):
    """Where step `start` of the reading order lies, and how far it is to the next."""
    return (length - 1 - start, -1) if reverse else (start, 1)


@njit
def _address(x, b, e0, start, reverse):
    """Of x[b, e0] at step `start` in reading order, and how far it is to the next step."""
    first, step = _direction(x.shape[2], start, reverse)
    return (x.ctypes.data + b * x.strides[0] + e0 * x.itemsize + first * x.strides[2],
            step * x.strides[2])


@njit
def _read_rows(x, b, e0, start, n, reverse, rows):
    """rows[i] = x[b, e0 : e0 + TILE] at step start + i in reading order; 0 before the first step.
    """
    missing = max(0, -start)
    rows[: missing * TILE] = 0
    source, step = _address(x, b, e0, start, reverse)
    for i in range(missing, n):
        for e in range(0, TILE, LANES):
            from_ = source + i * step + e * x.itemsize
            value = load(from_) if x.itemsize == 4 else _load_bfloat16(from_)
            store(rows.ctypes.data + i * ROW + 4 * e, value)


@njit
def _write_rows(x, b, e0, start, n, reverse, rows):
    """The reverse."""
    target, step = _address(x, b, e0, start, reverse)
    for i in range(n):
        for e in range(0, TILE, LANES):
            to = target + i * step + e * x.itemsize
            value = load(rows.ctypes.data + i * ROW + 4 * e)
            if x.itemsize == 4:
                store(to, value)
            else:
                _store_bfloat16(to, value)


@njit
def _read_columns(x, e0, columns):
    """columns[k] = x[k, e0 : e0 + TILE]."""
    for k in range(len(x)):
        columns[k * TILE : (k + 1) * TILE] = x[k, e0 : e0 + TILE]


@njit
def _write_columns(x, e0, columns):
    """The reverse."""
    for k in range(len(x)):
        x[k, e0 : e0 + TILE] = columns[k * TILE : (k + 1) * TILE]


# ----------------------------------------------------------------------------------------- the scan


@njit
def _read_parameters(A, D, delta_bias, e0, a, d, bias):
    """`a` is A times log2(e), for exp2."""
    _read_columns(A, e0, a)
    a *= np.float32(LOG2_E)
    _read_columns(D, e0, d)
    _read_columns(delta_bias, e0, bias)


@njit
def _step_sizes(dt, bias, n):
    """From delta to step size, in place. Rows first: no state waits for a softplus."""
    for i in range(n):
        for offset in range(0, ROW, VECTOR):
            at = dt.ctypes.data + i * ROW + offset
            store(at, softplus(load(at) + load(bias.ctypes.data + offset)))


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
def _gate(y, z, n):
    for at in range(0, n * ROW, VECTOR):
        z_i = load(z.ctypes.data + at)
        store(y.ctypes.data + at, load(y.ctypes.data + at) * z_i * sigmoid(z_i))


def forward(u, delta, A, B, C, D, z, delta_bias, reverse, out, starts, begin, end):
    """Tasks begin to end of the scan; `starts` (B, chunks, tiles, S * TILE), if not empty, keeps
    the state before each chunk for the backward. A is (S, E), D and delta_bias are (1, E)."""
    length, states, tiles = u.shape[2], len(A), u.shape[1] // TILE
    a, h, d, bias = _scratch(states * TILE), _scratch(states * TILE), _scratch(TILE), _scratch(TILE)
    u_rows, dt_rows, z_rows, y_rows = _rows(), _rows(), _rows(), _rows()
    for task in range(begin, end):
        b, tile = task // tiles, task % tiles
        e0 = tile * TILE
        _read_parameters(A, D, delta_bias, e0, a, d, bias)
        h[:] = 0
        for start in range(0, length, CHUNK):
            n = min(CHUNK, length - start)
            first, step = _direction(length, start, reverse)
            if len(starts):
                starts[b, start // CHUNK, tile] = h
            _read_rows(u, b, e0, start, n, reverse, u_rows)
            _read_rows(delta, b, e0, start, n, reverse, dt_rows)
            _read_rows(z, b, e0, start, n, reverse, z_rows)
            _step_sizes(dt_rows, bias, n)
            _advance(B, C, b, first, step, n, a, d, u_rows, dt_rows, y_rows, h, h, False)
            _gate(y_rows, z_rows, n)
            _write_rows(out, b, e0, start, n, reverse, y_rows)


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
def _step_sizes_backward(ddelta, delta, bias, dbias, n):
    """ddelta from the gradient of the step size, in place; dbias accumulates."""
    for i in range(n):
        for offset in range(0, ROW, VECTOR):
            at, dbias_at = ddelta.ctypes.data + i * ROW + offset, dbias.ctypes.data + offset
            raw = load(delta.ctypes.data + i * ROW + offset) + load(bias.ctypes.data + offset)
            grad = load(at) * sigmoid(raw)
            store(at, grad)
            store(dbias_at, load(dbias_at) + grad)


def backward(
    u, delta, A, B, C, D, z, delta_bias, reverse, starts, dout,
    du, ddelta, dz, dA, dB, dC, dD, ddelta_bias, begin, end,
):
    """Tasks begin to end of the backward. Sums are left in parts, so that their order is fixed:
    dA (B, S, E), dD, ddelta_bias (B, 1, E) per batch entry, dB, dC (tiles, B, L, S) per tile."""
    length, states, tiles = u.shape[2], len(A), u.shape[1] // TILE
    block = states * TILE
    a, g_end, da = _scratch(block), _scratch(block), _scratch(block)
    h, decays = _scratch((CHUNK + 1) * block), _scratch(CHUNK * block)
    sum_b, sum_c = _scratch(states * LANES), _scratch(states * LANES)
    d, bias, dd, dbias = _scratch(TILE), _scratch(TILE), _scratch(TILE), _scratch(TILE)
    u_rows, delta_rows, dt_rows, z_rows, y_rows = _rows(), _rows(), _rows(), _rows(), _rows()
    dy_rows, du_rows, ddt_rows, dz_rows = _rows(), _rows(), _rows(), _rows()
    for task in range(begin, end):
        b, tile = task // tiles, task % tiles
        e0 = tile * TILE
        _read_parameters(A, D, delta_bias, e0, a, d, bias)
        for sums in (g_end, da, dd, dbias):
            sums[:] = 0
        for start in range((length - 1) // CHUNK * CHUNK, -1, -CHUNK):
            n = min(CHUNK, length - start)
            first, step = _direction(length, start, reverse)
            h[:block] = starts[b, start // CHUNK, tile]
            _read_rows(u, b, e0, start, n, reverse, u_rows)
            _read_rows(delta, b, e0, start, n, reverse, delta_rows)
            _read_rows(z, b, e0, start, n, reverse, z_rows)
            _read_rows(dout, b, e0, start, n, reverse, dy_rows)
            dt_rows[:] = delta_rows
            _step_sizes(dt_rows, bias, n)
            _advance(B, C, b, first, step, n, a, d, u_rows, dt_rows, y_rows, h, decays, True)
            _gate_backward(dy_rows, dz_rows, y_rows, z_rows, n)
            _retreat(B, C, b, first, step, n, a, d, u_rows, dt_rows, dy_rows, h, decays, g_end,
                     da, dd, sum_b, sum_c, du_rows, ddt_rows, dB[tile, b], dC[tile, b])
            _step_sizes_backward(ddt_rows, delta_rows, bias, dbias, n)
            _write_rows(du, b, e0, start, n, reverse, du_rows)
            _write_rows(ddelta, b, e0, start, n, reverse, ddt_rows)
            _write_rows(dz, b, e0, start, n, reverse, dz_rows)
        _write_columns(dA[b], e0, da)
        _write_columns(dD[b], e0, dd)
        _write_columns(ddelta_bias[b], e0, dbias)


# ------------------------------------------------------- the convolution before the scan, and SiLU
# Tensors are (B, E, L) like those of the scan, weight is (taps, E), bias (1, E). A chunk's rows
# come after the `taps - 1` rows before them.


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
    length, taps, tiles = x.shape[2], len(weight), x.shape[1] // TILE
    w, d = _scratch(taps * TILE), _scratch(TILE)
    x_rows, y_rows = _scratch((taps - 1 + CHUNK) * TILE), _rows()
    for task in range(begin, end):
        b, e0 = task // tiles, task % tiles * TILE
        _read_columns(weight, e0, w)
        _read_columns(bias, e0, d)
        for start in range(0, length, CHUNK):
            n = min(CHUNK, length - start)
            _read_rows(x, b, e0, start - taps + 1, n + taps - 1, reverse, x_rows)
            _convolve(x_rows, w, d, taps, n, y_rows)
            for at in range(y_rows.ctypes.data, y_rows.ctypes.data + n * ROW, VECTOR):
                y = load(at)
                store(at, y * sigmoid(y))
            _write_rows(out, b, e0, start, n, reverse, y_rows)


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
    """Tasks begin to end of the backward; dweight (B, taps, E) and dbias (B, 1, E) are parts."""
    length, taps, tiles = x.shape[2], len(weight), x.shape[1] // TILE
    w, d, dw, db = _scratch(taps * TILE), _scratch(TILE), _scratch(taps * TILE), _scratch(TILE)
    flipped, zero = _scratch(taps * TILE), _scratch(TILE)
    x_rows, dy_rows = _scratch((taps - 1 + CHUNK) * TILE), _scratch((taps - 1 + CHUNK) * TILE)
    y_rows, dx_rows = _rows(), _rows()
    for task in range(begin, end):
        b, e0 = task // tiles, task % tiles * TILE
        _read_columns(weight, e0, w)
        _read_columns(bias, e0, d)
        _read_columns(weight[::-1], e0, flipped)
        for sums in (dw, db, dy_rows):
            sums[:] = 0
        for start in range((length - 1) // CHUNK * CHUNK, -1, -CHUNK):
            n = min(CHUNK, length - start)
            # Gradients of the steps after this chunk, which its last steps reach. After the last
            # step there are none.
            for i in range((taps - 1) * TILE):
                dy_rows[n * TILE + i] = dy_rows[i] if start + n < length else 0
            _read_rows(x, b, e0, start - taps + 1, n + taps - 1, reverse, x_rows)
            _read_rows(dout, b, e0, start, n, reverse, dy_rows)
            _convolve(x_rows, w, d, taps, n, y_rows)
            _silu_backward(y_rows, dy_rows, n)
            _add_weight_gradients(x_rows, dy_rows, taps, n, dw, db)
            _convolve(dy_rows, flipped, zero, taps, n, dx_rows)
            _write_rows(dx, b, e0, start, n, reverse, dx_rows)
        _write_columns(dweight[b], e0, dw)
        _write_columns(dbias[b], e0, db)
