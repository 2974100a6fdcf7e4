"""The recurrence of one LSTM layer, forward and backward, in every group: a launch a step, or all steps in one.

A step multiplies and does the gate arithmetic in the same program, which owns BLOCK_H units of BLOCK_B sequences:

    forward    z [B, 4H] = projection_t + h_{t-1} W_hh^T, then gates, c_t, h_t   (all four gates of a unit together)
    backward   dh [B, H] = grad_output_t + dz_{t+1} W_hh, then dz_t and dc       (dz [B, 4H] is all that crosses steps)

Floor of a step: 8 B H^2 FLOP; W_hh, 4 H^2 elements, once from L2 for each tile of sequences. The kernels that loop over
steps hold W_hh, h and c (backward dh and dc) of BLOCK_B sequences, all units, for as long as the sequence lasts.

What a group has of its own are addresses: a record in device memory (record_kernels.py). So groups needn't lie in one
tensor, and a CUDA graph of these launches serves any tensors of the same shapes. Sequences are windows of n steps;
`position` is a step in order of processing, `time` its place in memory. Offsets between rows are 64 bits wide.
"""

import triton
import triton.language as tl

# Places in a record: the arguments of record_kernels.py, in their order.
_WEIGHT_HH, _PROJECTION, _BIAS, _PEEPHOLE, _LENGTHS, _REVERSE, _FIRST_TIME = map(tl.constexpr, range(7))
_H_FROM, _H_TO, _C, _OUTPUT, _CELLS, _GATES, _C_START = map(tl.constexpr, range(7, 14))
_GRAD_OUTPUT, _GRAD_CELLS, _GRAD_GATES, _GRAD_H, _GRAD_C, _RECORD = map(tl.constexpr, range(14, 20))

# Triton's interpreter can't multiply bfloat16, and cuts off where a GPU rounds to nearest.
_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _pointer(fields, FIELD: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(fields + FIELD).to(tl.pointer_type(DTYPE))
    if ALIGNED:  # else the compiler, which sees no argument to tell it, would load element by element
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _operand(x):
    return x.to(tl.float32) if _IS_INTERPRETED else x


@triton.jit
def _rounded(x, DTYPE: tl.constexpr):
    """Float32 `x` as DTYPE, to nearest even."""
    if _IS_INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def _time(fields, position, steps):
    """Where a step in order of processing lies in the window."""
    return tl.where(tl.load(fields + _REVERSE) != 0, steps - 1 - position, position).to(tl.int64)


@triton.jit
def _active(fields, time, offs_b, mask_b):
    """[BLOCK_B]: which sequences still run at this time."""
    lengths = tl.load(fields + _LENGTHS).to(tl.pointer_type(tl.int64))
    return tl.load(fields + _FIRST_TIME) + time < tl.load(lengths + offs_b, mask=mask_b, other=0)


@triton.jit
def _tanh(x):
    """Exact to some units in the last place for any x: a polynomial near zero, where the quotient cancels."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    s = x * x
    near = x + x * s * (-0.33333327 + s * (0.13332602 + s * (-0.05382585 + s * (0.02088132 - s * 0.00593298))))
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))


@triton.jit
def _peepholes(fields, hidden, offs_h, mask_h, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """(i, f, o), each of the shape of `offs_h`."""
    peephole = _pointer(fields, _PEEPHOLE, DTYPE, ALIGNED) + offs_h
    p_i = tl.load(peephole, mask=mask_h, other=0.0).to(tl.float32)
    p_f = tl.load(peephole + hidden, mask=mask_h, other=0.0).to(tl.float32)
    p_o = tl.load(peephole + 2 * hidden, mask=mask_h, other=0.0).to(tl.float32)
    return p_i, p_f, p_o


@triton.jit
def _input_part(
    fields, time, tile, DTYPE: tl.constexpr, HAS_PROJECTION: tl.constexpr, HAS_BIAS: tl.constexpr, ALIGNED: tl.constexpr
):
    """The gates' pre-activations (i, f, g, o), each [BLOCK_B, BLOCK_H], without what the states add."""
    batch, hidden, offs_b, offs_h, mask_b, mask_h = tile
    mask = mask_b[:, None] & mask_h[None, :]
    if HAS_PROJECTION or HAS_BIAS:
        if HAS_PROJECTION:
            row = (time * batch + offs_b[:, None]) * (4 * hidden)
            pointer = _pointer(fields, _PROJECTION, DTYPE, ALIGNED) + row + offs_h[None, :]
        else:
            pointer = _pointer(fields, _BIAS, DTYPE, ALIGNED) + 0 * offs_b[:, None] + offs_h[None, :]
        z_i = tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
        z_f = tl.load(pointer + hidden, mask=mask, other=0.0).to(tl.float32)
        z_g = tl.load(pointer + 2 * hidden, mask=mask, other=0.0).to(tl.float32)
        z_o = tl.load(pointer + 3 * hidden, mask=mask, other=0.0).to(tl.float32)
        return z_i, z_f, z_g, z_o
    zero = tl.where(mask, 0.0, 0.0)
    return zero, zero, zero, zero


@triton.jit
def _gates(z, c, peepholes, HAS_PEEPHOLE: tl.constexpr):
    """((i, f, g, o), the new c), from pre-activations and the old c."""
    z_i, z_f, z_g, z_o = z
    p_i, p_f, p_o = peepholes
    if HAS_PEEPHOLE:
        z_i += p_i * c
        z_f += p_f * c
    i, f, g = tl.sigmoid(z_i), tl.sigmoid(z_f), _tanh(z_g)
    c = f * c + i * g
    if HAS_PEEPHOLE:
        z_o += p_o * c
    return (i, f, g, tl.sigmoid(z_o)), c


@triton.jit
def _store_gates(pointer, hidden, gates, mask, DTYPE: tl.constexpr):
    """Store (i, f, g, o), and return them as they are stored."""
    i, f, g, o = gates
    i, f = _rounded(i, DTYPE), _rounded(f, DTYPE)
    g, o = _rounded(g, DTYPE), _rounded(o, DTYPE)
    tl.store(pointer, i, mask=mask)
    tl.store(pointer + hidden, f, mask=mask)
    tl.store(pointer + 2 * hidden, g, mask=mask)
    tl.store(pointer + 3 * hidden, o, mask=mask)
    return i, f, g, o


@triton.jit
def _advance(
    fields,
    time,
    tile,
    z,
    h,
    c,
    DTYPE: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The new (h, c) of a step, from full pre-activations and the old ones; stores what the step leaves."""
    batch, hidden, offs_b, offs_h, mask_b, mask_h = tile
    mask = mask_b[:, None] & mask_h[None, :]
    peepholes = (0.0, 0.0, 0.0)
    if HAS_PEEPHOLE:
        peepholes = _peepholes(fields, hidden, offs_h[None, :], mask_h[None, :], DTYPE, ALIGNED)
    activated, c_new = _gates(z, c, peepholes, HAS_PEEPHOLE)
    h_new = _rounded(activated[3] * _tanh(c_new), DTYPE)
    row = time * batch + offs_b[:, None]
    output = _pointer(fields, _OUTPUT, DTYPE, ALIGNED) + row * hidden + offs_h[None, :]
    if IS_RAGGED:
        active = _active(fields, time, offs_b, mask_b)[:, None]
        tl.store(output, tl.where(active, h_new, 0.0), mask=mask)
        h_new = tl.where(active, h_new, h)
        c_new = tl.where(active, c_new, c)
    else:
        tl.store(output, h_new, mask=mask)
    if SAVE_CELLS:
        cells = _pointer(fields, _CELLS, tl.float32, ALIGNED) + row * hidden + offs_h[None, :]
        tl.store(cells, c_new, mask=mask)
    if SAVE_GATES:
        gates = _pointer(fields, _GATES, DTYPE, ALIGNED) + row * (4 * hidden) + offs_h[None, :]
        _store_gates(gates, hidden, activated, mask, DTYPE)
    return h_new, c_new


@triton.jit(do_not_specialize=["position", "steps", "batch"])
def lstm_step_fwd_kernel(
    table_ptr,  # [G, _RECORD] int64
    position,
    steps,
    batch,
    hidden,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_PROJECTION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One step. Grid (units, sequences, groups)."""
    fields = table_ptr + tl.program_id(2) * _RECORD
    offs_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_b = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_h, mask_b = offs_h < hidden, offs_b < batch
    mask = mask_b[:, None] & mask_h[None, :]
    time = _time(fields, position, steps)
    h_from = _pointer(fields, _H_FROM, DTYPE, ALIGNED)
    h_to = _pointer(fields, _H_TO, DTYPE, ALIGNED)
    if position % 2 == 1:
        h_from, h_to = h_to, h_from

    tile = (batch, hidden, offs_b, offs_h, mask_b, mask_h)
    z_i, z_f, z_g, z_o = _input_part(fields, time, tile, DTYPE, HAS_PROJECTION, HAS_BIAS, ALIGNED)
    gate = tl.cast(hidden, tl.int64) * hidden  # from one gate's weights to the next one's
    weights = _pointer(fields, _WEIGHT_HH, DTYPE, ALIGNED) + offs_h[None, :].to(tl.int64) * hidden
    for k in range(0, hidden, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < hidden
        mask_h_k, mask_w = mask_b[:, None] & mask_k[None, :], mask_k[:, None] & mask_h[None, :]
        h = _operand(tl.load(h_from + offs_b[:, None] * hidden + offs_k[None, :], mask=mask_h_k, other=0.0))  # [B, K]
        w = weights + offs_k[:, None]  # [K, H]
        z_i = tl.dot(h, _operand(tl.load(w, mask=mask_w, other=0.0)), z_i, input_precision=PRECISION)
        z_f = tl.dot(h, _operand(tl.load(w + gate, mask=mask_w, other=0.0)), z_f, input_precision=PRECISION)
        z_g = tl.dot(h, _operand(tl.load(w + 2 * gate, mask=mask_w, other=0.0)), z_g, input_precision=PRECISION)
        z_o = tl.dot(h, _operand(tl.load(w + 3 * gate, mask=mask_w, other=0.0)), z_o, input_precision=PRECISION)

    unit = offs_b[:, None] * hidden + offs_h[None, :]
    c_ptr = _pointer(fields, _C, tl.float32, ALIGNED) + unit
    h = tl.load(h_from + unit, mask=mask, other=0.0)
    c = tl.load(c_ptr, mask=mask, other=0.0)
    h, c = _advance(
        *(fields, time, tile, (z_i, z_f, z_g, z_o), h, c),
        *(DTYPE, HAS_PEEPHOLE, IS_RAGGED, SAVE_CELLS, SAVE_GATES, ALIGNED),
    )
    tl.store(h_to + unit, h, mask=mask)
    tl.store(c_ptr, c, mask=mask)


@triton.jit(do_not_specialize=["steps", "batch"])
def lstm_loop_fwd_kernel(
    table_ptr,  # [G, _RECORD] int64
    steps,
    batch,
    hidden,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_PROJECTION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,  # at least H
):
    """All steps of the window; reads and leaves h in h_from. Grid (sequences, groups)."""
    fields = table_ptr + tl.program_id(1) * _RECORD
    offs_h = tl.arange(0, BLOCK_H)
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_h, mask_b = offs_h < hidden, offs_b < batch
    mask = mask_b[:, None] & mask_h[None, :]

    weights = _pointer(fields, _WEIGHT_HH, DTYPE, ALIGNED) + offs_h[None, :] * hidden + offs_h[:, None]  # [K, H]
    mask_w = mask_h[:, None] & mask_h[None, :]
    w_i = _operand(tl.load(weights, mask=mask_w, other=0.0))
    w_f = _operand(tl.load(weights + hidden * hidden, mask=mask_w, other=0.0))
    w_g = _operand(tl.load(weights + 2 * hidden * hidden, mask=mask_w, other=0.0))
    w_o = _operand(tl.load(weights + 3 * hidden * hidden, mask=mask_w, other=0.0))
    unit = offs_b[:, None] * hidden + offs_h[None, :]
    h_ptr = _pointer(fields, _H_FROM, DTYPE, ALIGNED) + unit
    c_ptr = _pointer(fields, _C, tl.float32, ALIGNED) + unit
    h = tl.load(h_ptr, mask=mask, other=0.0)
    c = tl.load(c_ptr, mask=mask, other=0.0)
    tile = (batch, hidden, offs_b, offs_h, mask_b, mask_h)
    time = _time(fields, 0, steps)
    z_i, z_f, z_g, z_o = _input_part(fields, time, tile, DTYPE, HAS_PROJECTION, HAS_BIAS, ALIGNED)
    for position in range(steps):
        # What the next step begins with is on its way while this one is computed.
        later = _time(fields, tl.minimum(position + 1, steps - 1), steps)
        n_i, n_f, n_g, n_o = _input_part(fields, later, tile, DTYPE, HAS_PROJECTION, HAS_BIAS, ALIGNED)
        z_i = tl.dot(_operand(h), w_i, z_i, input_precision=PRECISION)
        z_f = tl.dot(_operand(h), w_f, z_f, input_precision=PRECISION)
        z_g = tl.dot(_operand(h), w_g, z_g, input_precision=PRECISION)
        z_o = tl.dot(_operand(h), w_o, z_o, input_precision=PRECISION)
        h, c = _advance(
            *(fields, time, tile, (z_i, z_f, z_g, z_o), h, c),
            *(DTYPE, HAS_PEEPHOLE, IS_RAGGED, SAVE_CELLS, SAVE_GATES, ALIGNED),
        )
        z_i, z_f, z_g, z_o, time = n_i, n_f, n_g, n_o, later
    tl.store(h_ptr, h, mask=mask)
    tl.store(c_ptr, c, mask=mask)


@triton.jit
def _retreat(
    fields,
    position,
    steps,
    tile,
    dh,
    dc,
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
    time = _time(fields, position, steps)
    row = time * batch + offs_b[:, None]
    unit = row * hidden + offs_h[None, :]
    if HAS_GRAD_CELLS:
        dc += tl.load(_pointer(fields, _GRAD_CELLS, tl.float32, ALIGNED) + unit, mask=mask, other=0.0)
    dh_all = dh
    if HAS_GRAD_OUTPUT:
        dh_all += tl.load(_pointer(fields, _GRAD_OUTPUT, DTYPE, ALIGNED) + unit, mask=mask, other=0.0)
    gates = _pointer(fields, _GATES, DTYPE, ALIGNED) + row * (4 * hidden) + offs_h[None, :]
    i = tl.load(gates, mask=mask, other=0.0).to(tl.float32)
    f = tl.load(gates + hidden, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gates + 2 * hidden, mask=mask, other=0.0).to(tl.float32)
    o = tl.load(gates + 3 * hidden, mask=mask, other=0.0).to(tl.float32)
    cells = _pointer(fields, _CELLS, tl.float32, ALIGNED)
    before = cells + _time(fields, position - 1, steps) * batch * hidden
    if position == 0:
        before = _pointer(fields, _C_START, tl.float32, ALIGNED)
    tanh_c = _tanh(tl.load(cells + unit, mask=mask, other=0.0))
    c_before = tl.load(before + offs_b[:, None] * hidden + offs_h[None, :], mask=mask, other=0.0)

    dz_o = dh_all * tanh_c * o * (1.0 - o)
    dc_all = dc + dh_all * o * (1.0 - tanh_c * tanh_c)
    if HAS_PEEPHOLE:
        p_i, p_f, p_o = _peepholes(fields, hidden, offs_h[None, :], mask_h[None, :], DTYPE, ALIGNED)
        dc_all += dz_o * p_o
    dz_i = dc_all * g * i * (1.0 - i)
    dz_f = dc_all * c_before * f * (1.0 - f)
    dz_g = dc_all * i * (1.0 - g * g)
    dc_before = dc_all * f
    if HAS_PEEPHOLE:
        dc_before += dz_i * p_i + dz_f * p_f
    if IS_RAGGED:
        active = _active(fields, time, offs_b, mask_b)[:, None]
        dz_i, dz_f = tl.where(active, dz_i, 0.0), tl.where(active, dz_f, 0.0)
        dz_g, dz_o = tl.where(active, dz_g, 0.0), tl.where(active, dz_o, 0.0)
        dc_before = tl.where(active, dc_before, dc)
    grad_gates = _pointer(fields, _GRAD_GATES, DTYPE, ALIGNED) + row * (4 * hidden) + offs_h[None, :]
    return _store_gates(grad_gates, hidden, (dz_i, dz_f, dz_g, dz_o), mask, DTYPE), dc_before


@triton.jit(do_not_specialize=["position", "steps", "batch"])
def lstm_step_bwd_kernel(
    table_ptr,  # [G, _RECORD] int64
    position,
    steps,
    batch,
    hidden,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    HAS_GRAD_OUTPUT: tl.constexpr,
    HAS_GRAD_CELLS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One step backwards, from the window's last one to position 0; then position -1 leaves grad_h. Grid as forward."""
    fields = table_ptr + tl.program_id(2) * _RECORD
    offs_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_b = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_h, mask_b = offs_h < hidden, offs_b < batch
    mask = mask_b[:, None] & mask_h[None, :]

    # What follows this step is the step done just before or, at the window's end, what is held already.
    is_last = position + 1 == steps
    after = tl.maximum(tl.minimum(_time(fields, position + 1, steps), steps - 1), 0)
    grad_after = _pointer(fields, _GRAD_GATES, DTYPE, ALIGNED) + (after * batch + offs_b[:, None]) * (4 * hidden)
    weights = _pointer(fields, _WEIGHT_HH, DTYPE, ALIGNED) + offs_h[None, :]
    dh = tl.zeros([BLOCK_B, BLOCK_H], tl.float32)
    for k in range(0, tl.where(is_last, 0, 4 * hidden), BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < 4 * hidden
        mask_dz, mask_w = mask_b[:, None] & mask_k[None, :], mask_k[:, None] & mask_h[None, :]
        dz = _operand(tl.load(grad_after + offs_k[None, :], mask=mask_dz, other=0.0))  # [B, K]
        w = weights + offs_k[:, None].to(tl.int64) * hidden
        w = _operand(tl.load(w, mask=mask_w, other=0.0))  # [K, H]
        dh = tl.dot(dz, w, dh, input_precision=PRECISION)

    unit = offs_b[:, None] * hidden + offs_h[None, :]
    h_ptr = _pointer(fields, _GRAD_H, tl.float32, ALIGNED) + unit
    c_ptr = _pointer(fields, _GRAD_C, tl.float32, ALIGNED) + unit
    if IS_RAGGED:
        # A step in padding passes on what it was given.
        is_held = (_active(fields, after, offs_b, mask_b) == 0) | is_last
        dh = tl.where(is_held[:, None], tl.load(h_ptr, mask=mask, other=0.0), dh)
        tl.store(h_ptr, dh, mask=mask)
    elif is_last:
        dh = tl.load(h_ptr, mask=mask, other=0.0)
    if position >= 0:
        dc = tl.load(c_ptr, mask=mask, other=0.0)
        _dz, dc = _retreat(
            *(fields, position, steps, (batch, hidden, offs_b, offs_h, mask_b, mask_h), dh, dc),
            *(DTYPE, HAS_PEEPHOLE, IS_RAGGED, HAS_GRAD_OUTPUT, HAS_GRAD_CELLS, ALIGNED),
        )
        tl.store(c_ptr, dc, mask=mask)
    else:
        tl.store(h_ptr, dh, mask=mask)


@triton.jit(do_not_specialize=["steps", "batch"])
def lstm_loop_bwd_kernel(
    table_ptr,  # [G, _RECORD] int64
    steps,
    batch,
    hidden,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    HAS_GRAD_OUTPUT: tl.constexpr,
    HAS_GRAD_CELLS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,  # at least H
):
    """All steps of the window backwards. Grid (sequences, groups)."""
    fields = table_ptr + tl.program_id(1) * _RECORD
    offs_h = tl.arange(0, BLOCK_H)
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_h, mask_b = offs_h < hidden, offs_b < batch
    mask = mask_b[:, None] & mask_h[None, :]

    weights = _pointer(fields, _WEIGHT_HH, DTYPE, ALIGNED) + offs_h[:, None] * hidden + offs_h[None, :]  # [K, H]
    mask_w = mask_h[:, None] & mask_h[None, :]
    w_i = _operand(tl.load(weights, mask=mask_w, other=0.0))
    w_f = _operand(tl.load(weights + hidden * hidden, mask=mask_w, other=0.0))
    w_g = _operand(tl.load(weights + 2 * hidden * hidden, mask=mask_w, other=0.0))
    w_o = _operand(tl.load(weights + 3 * hidden * hidden, mask=mask_w, other=0.0))
    unit = offs_b[:, None] * hidden + offs_h[None, :]
    h_ptr = _pointer(fields, _GRAD_H, tl.float32, ALIGNED) + unit
    c_ptr = _pointer(fields, _GRAD_C, tl.float32, ALIGNED) + unit
    dh = tl.load(h_ptr, mask=mask, other=0.0)
    dc = tl.load(c_ptr, mask=mask, other=0.0)
    for done in range(steps):
        position = steps - 1 - done
        dz, dc = _retreat(
            *(fields, position, steps, (batch, hidden, offs_b, offs_h, mask_b, mask_h), dh, dc),
            *(DTYPE, HAS_PEEPHOLE, IS_RAGGED, HAS_GRAD_OUTPUT, HAS_GRAD_CELLS, ALIGNED),
        )
        dh_before = tl.dot(_operand(dz[0]), w_i, input_precision=PRECISION)
        dh_before = tl.dot(_operand(dz[1]), w_f, dh_before, input_precision=PRECISION)
        dh_before = tl.dot(_operand(dz[2]), w_g, dh_before, input_precision=PRECISION)
        dh_before = tl.dot(_operand(dz[3]), w_o, dh_before, input_precision=PRECISION)
        if IS_RAGGED:  # a step in padding passes on what it was given
            active = _active(fields, _time(fields, position, steps), offs_b, mask_b)[:, None]
            dh = tl.where(active, dh_before, dh)
        else:
            dh = dh_before
    tl.store(h_ptr, dh, mask=mask)
    tl.store(c_ptr, dc, mask=mask)


@triton.jit(do_not_specialize=["steps", "batch"])
def lstm_gates_kernel(
    table_ptr,  # [G, _RECORD] int64
    steps,
    batch,
    hidden,
    DTYPE: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gates and cells of a window again: a scan of each unit. Grid (units, groups).

    `gates` holds the pre-activations, in full but for the peepholes' part.
    """
    fields = table_ptr + tl.program_id(1) * _RECORD
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < batch.to(tl.int64) * hidden
    offs_b, offs_h = offs // hidden, offs % hidden
    gates = _pointer(fields, _GATES, DTYPE, False) + offs_b * (4 * hidden) + offs_h
    cells = _pointer(fields, _CELLS, tl.float32, False) + offs
    c = tl.load(_pointer(fields, _C_START, tl.float32, False) + offs, mask=mask, other=0.0)
    peepholes = (0.0, 0.0, 0.0)
    if HAS_PEEPHOLE:
        peepholes = _peepholes(fields, hidden, offs_h, mask, DTYPE, False)
    for position in range(steps):
        time = _time(fields, position, steps)
        z = gates + time * batch * (4 * hidden)
        z_i = tl.load(z, mask=mask, other=0.0).to(tl.float32)
        z_f = tl.load(z + hidden, mask=mask, other=0.0).to(tl.float32)
        z_g = tl.load(z + 2 * hidden, mask=mask, other=0.0).to(tl.float32)
        z_o = tl.load(z + 3 * hidden, mask=mask, other=0.0).to(tl.float32)
        activated, c_new = _gates((z_i, z_f, z_g, z_o), c, peepholes, HAS_PEEPHOLE)
        if IS_RAGGED:
            c_new = tl.where(_active(fields, time, offs_b, mask), c_new, c)
        c = c_new
        tl.store(cells + time * batch * hidden, c, mask=mask)
        _store_gates(z, hidden, activated, mask, DTYPE)
