"""A step of one LSTM layer for a tile of sequences and units, the same in every recurrent kernel: gate arithmetic.

`fields` is a group's record (record_kernels.py), `tile` (batch, hidden, sequences, units, which of each there are).
Sequences are windows of n steps; `position` is a step in order of processing, `time` its place in memory.
"""

import triton
import triton.language as tl

from .operand_kernels import rounded
from .record_kernels import (
    BIAS,
    C_START,
    CELLS,
    FIRST_TIME,
    GATES,
    GRAD_CELLS,
    GRAD_GATES,
    GRAD_OUTPUT,
    LENGTHS,
    OUTPUT,
    PEEPHOLE,
    PROJECTION,
    REVERSE,
    pointer_of,
)


@triton.jit
def time_of(fields, position, steps):
    """Where a step in order of processing lies in the window."""
    return tl.where(tl.load(fields + REVERSE) != 0, steps - 1 - position, position).to(tl.int64)


@triton.jit
def active_at(fields, time, offs_b, mask_b):
    """[BLOCK_B]: which sequences still run at this time."""
    lengths = tl.load(fields + LENGTHS).to(tl.pointer_type(tl.int64))
    return tl.load(fields + FIRST_TIME) + time < tl.load(lengths + offs_b, mask=mask_b, other=0)


@triton.jit
def tanh(x):
    """Exact to some units in the last place for any x: a polynomial near zero, where the quotient cancels."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    s = x * x
    near = x + x * s * (-0.33333327 + s * (0.13332602 + s * (-0.05382585 + s * (0.02088132 - s * 0.00593298))))
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))


@triton.jit
def peepholes_of(
    fields, hidden, offs_h, mask_h, DTYPE: tl.constexpr, HAS_PEEPHOLE: tl.constexpr, ALIGNED: tl.constexpr
):
    """(i, f, o), each of the shape of `offs_h`; zeros if there are none."""
    peepholes = (0.0, 0.0, 0.0)
    if HAS_PEEPHOLE:
        peephole = pointer_of(fields, PEEPHOLE, DTYPE, ALIGNED) + offs_h
        p_i = tl.load(peephole, mask=mask_h, other=0.0).to(tl.float32)
        p_f = tl.load(peephole + hidden, mask=mask_h, other=0.0).to(tl.float32)
        p_o = tl.load(peephole + 2 * hidden, mask=mask_h, other=0.0).to(tl.float32)
        peepholes = (p_i, p_f, p_o)
    return peepholes


@triton.jit
def load_four(pointer, distance, mask):
    """What lies at `pointer` and at one, two and three distances from it: of the gates i, f, g, o."""
    i = tl.load(pointer, mask=mask, other=0.0)
    f = tl.load(pointer + distance, mask=mask, other=0.0)
    g = tl.load(pointer + 2 * distance, mask=mask, other=0.0)
    o = tl.load(pointer + 3 * distance, mask=mask, other=0.0)
    return i, f, g, o


@triton.jit
def input_part(
    fields, time, tile, DTYPE: tl.constexpr, HAS_PROJECTION: tl.constexpr, HAS_BIAS: tl.constexpr, ALIGNED: tl.constexpr
):
    """The gates' pre-activations (i, f, g, o), each [BLOCK_B, BLOCK_H], without what the states add."""
    batch, hidden, offs_b, offs_h, mask_b, mask_h = tile
    mask = mask_b[:, None] & mask_h[None, :]
    if HAS_PROJECTION or HAS_BIAS:
        if HAS_PROJECTION:
            row = (time * batch + offs_b[:, None]) * (4 * hidden)
            pointer = pointer_of(fields, PROJECTION, DTYPE, ALIGNED) + row + offs_h[None, :]
        else:
            pointer = pointer_of(fields, BIAS, DTYPE, ALIGNED) + 0 * offs_b[:, None] + offs_h[None, :]
        z_i, z_f, z_g, z_o = load_four(pointer, hidden, mask)
        return z_i.to(tl.float32), z_f.to(tl.float32), z_g.to(tl.float32), z_o.to(tl.float32)
    zero = tl.where(mask, 0.0, 0.0)
    return zero, zero, zero, zero


@triton.jit
def gates_of(z, c, peepholes, HAS_PEEPHOLE: tl.constexpr):
    """((i, f, g, o), the new c), from pre-activations and the old c."""
    z_i, z_f, z_g, z_o = z
    p_i, p_f, p_o = peepholes
    if HAS_PEEPHOLE:
        z_i += p_i * c
        z_f += p_f * c
    g = tanh(z_g)  # before the others: in another order Triton 3.9 aborts, for float32 without peepholes
    i, f = tl.sigmoid(z_i), tl.sigmoid(z_f)
    c = f * c + i * g
    if HAS_PEEPHOLE:
        z_o += p_o * c
    return (i, f, g, tl.sigmoid(z_o)), c


@triton.jit
def store_gates(pointer, hidden, gates, mask, DTYPE: tl.constexpr):
    """Store (i, f, g, o), and return them as they are stored."""
    i, f, g, o = gates
    i, f = rounded(i, DTYPE), rounded(f, DTYPE)
    g, o = rounded(g, DTYPE), rounded(o, DTYPE)
    tl.store(pointer, i, mask=mask)
    tl.store(pointer + hidden, f, mask=mask)
    tl.store(pointer + 2 * hidden, g, mask=mask)
    tl.store(pointer + 3 * hidden, o, mask=mask)
    return i, f, g, o


@triton.jit
def advance(
    fields,
    time,
    tile,
    z,
    h,
    c,
    peepholes,
    DTYPE: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    SAVE_OUTPUT: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The new (h, c) of a step, from full pre-activations and the old ones; stores what the step leaves."""
    batch, hidden, offs_b, offs_h, mask_b, mask_h = tile
    mask = mask_b[:, None] & mask_h[None, :]
    activated, c_new = gates_of(z, c, peepholes, HAS_PEEPHOLE)
    h_new = rounded(activated[3] * tanh(c_new), DTYPE)
    row = time * batch + offs_b[:, None]
    output = h_new
    if IS_RAGGED:
        active = active_at(fields, time, offs_b, mask_b)[:, None]
        output = tl.where(active, h_new, 0.0)
        h_new = tl.where(active, h_new, h)
        c_new = tl.where(active, c_new, c)
    if SAVE_OUTPUT:
        tl.store(pointer_of(fields, OUTPUT, DTYPE, ALIGNED) + row * hidden + offs_h[None, :], output, mask=mask)
    if SAVE_CELLS:
        cells = pointer_of(fields, CELLS, tl.float32, ALIGNED) + row * hidden + offs_h[None, :]
        tl.store(cells, c_new, mask=mask)
    if SAVE_GATES:
        gates = pointer_of(fields, GATES, DTYPE, ALIGNED) + row * (4 * hidden) + offs_h[None, :]
        store_gates(gates, hidden, activated, mask, DTYPE)
    return h_new, c_new


@triton.jit
def retreat(
    fields,
    position,
    steps,
    tile,
    dh,
    dc,
    peepholes,
    DTYPE: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    HAS_GRAD_OUTPUT: tl.constexpr,
    HAS_GRAD_CELLS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A step backwards, from dh and dc after it: stores (dz_i, dz_f, dz_g, dz_o); returns them and dc before it."""
    batch, hidden, offs_b, offs_h, mask_b, mask_h = tile
    mask = mask_b[:, None] & mask_h[None, :]
    time = time_of(fields, position, steps)
    row = time * batch + offs_b[:, None]
    unit = row * hidden + offs_h[None, :]
    if HAS_GRAD_CELLS:
        dc += tl.load(pointer_of(fields, GRAD_CELLS, tl.float32, ALIGNED) + unit, mask=mask, other=0.0)
    dh_all = dh
    if HAS_GRAD_OUTPUT:
        dh_all += tl.load(pointer_of(fields, GRAD_OUTPUT, DTYPE, ALIGNED) + unit, mask=mask, other=0.0)
    gates = pointer_of(fields, GATES, DTYPE, ALIGNED) + row * (4 * hidden) + offs_h[None, :]
    i, f, g, o = load_four(gates, hidden, mask)
    i, f, g, o = i.to(tl.float32), f.to(tl.float32), g.to(tl.float32), o.to(tl.float32)
    cells = pointer_of(fields, CELLS, tl.float32, ALIGNED)
    before = cells + time_of(fields, position - 1, steps) * batch * hidden
    if position == 0:
        before = pointer_of(fields, C_START, tl.float32, ALIGNED)
    tanh_c = tanh(tl.load(cells + unit, mask=mask, other=0.0))
    c_before = tl.load(before + offs_b[:, None] * hidden + offs_h[None, :], mask=mask, other=0.0)

    dz_o = dh_all * tanh_c * o * (1.0 - o)
    dc_all = dc + dh_all * o * (1.0 - tanh_c * tanh_c)
    if HAS_PEEPHOLE:
        dc_all += dz_o * peepholes[2]
    dz_i = dc_all * g * i * (1.0 - i)
    dz_f = dc_all * c_before * f * (1.0 - f)
    dz_g = dc_all * i * (1.0 - g * g)
    dc_before = dc_all * f
    if HAS_PEEPHOLE:
        dc_before += dz_i * peepholes[0] + dz_f * peepholes[1]
    if IS_RAGGED:
        active = active_at(fields, time, offs_b, mask_b)[:, None]
        dz_i, dz_f = tl.where(active, dz_i, 0.0), tl.where(active, dz_f, 0.0)
        dz_g, dz_o = tl.where(active, dz_g, 0.0), tl.where(active, dz_o, 0.0)
        dc_before = tl.where(active, dc_before, dc)
    grad_gates = pointer_of(fields, GRAD_GATES, DTYPE, ALIGNED) + row * (4 * hidden) + offs_h[None, :]
    return store_gates(grad_gates, hidden, (dz_i, dz_f, dz_g, dz_o), mask, DTYPE), dc_before
