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

from .cell_kernels import (
    active_at,
    advance,
    gates_of,
    input_part,
    load_four,
    peepholes_of,
    retreat,
    store_gates,
    time_of,
)
from .operand_kernels import operand
from .record_kernels import (
    C_START,
    CELLS,
    GATES,
    GRAD_C,
    GRAD_GATES,
    GRAD_H,
    H_FROM,
    H_TO,
    RECORD,
    WEIGHT_HH,
    C,
    pointer_of,
)


@triton.jit(do_not_specialize=["position", "steps", "batch"])
def lstm_step_fwd_kernel(
    table_ptr,  # [G, RECORD] int64
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
    fields = table_ptr + tl.program_id(2) * RECORD
    offs_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_b = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_h, mask_b = offs_h < hidden, offs_b < batch
    mask = mask_b[:, None] & mask_h[None, :]
    time = time_of(fields, position, steps)
    h_from = pointer_of(fields, H_FROM, DTYPE, ALIGNED)
    h_to = pointer_of(fields, H_TO, DTYPE, ALIGNED)
    if position % 2 == 1:
        h_from, h_to = h_to, h_from

    tile = (batch, hidden, offs_b, offs_h, mask_b, mask_h)
    z_i, z_f, z_g, z_o = input_part(fields, time, tile, DTYPE, HAS_PROJECTION, HAS_BIAS, ALIGNED)
    gate = tl.cast(hidden, tl.int64) * hidden  # from one gate's weights to the next one's
    weights = pointer_of(fields, WEIGHT_HH, DTYPE, ALIGNED) + offs_h[None, :].to(tl.int64) * hidden
    for k in range(0, hidden, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < hidden
        mask_h_k, mask_w = mask_b[:, None] & mask_k[None, :], mask_k[:, None] & mask_h[None, :]
        h = operand(tl.load(h_from + offs_b[:, None] * hidden + offs_k[None, :], mask=mask_h_k, other=0.0))  # [B, K]
        w = weights + offs_k[:, None]  # [K, H]
        z_i = tl.dot(h, operand(tl.load(w, mask=mask_w, other=0.0)), z_i, input_precision=PRECISION)
        z_f = tl.dot(h, operand(tl.load(w + gate, mask=mask_w, other=0.0)), z_f, input_precision=PRECISION)
        z_g = tl.dot(h, operand(tl.load(w + 2 * gate, mask=mask_w, other=0.0)), z_g, input_precision=PRECISION)
        z_o = tl.dot(h, operand(tl.load(w + 3 * gate, mask=mask_w, other=0.0)), z_o, input_precision=PRECISION)

    unit = offs_b[:, None] * hidden + offs_h[None, :]
    c_ptr = pointer_of(fields, C, tl.float32, ALIGNED) + unit
    h = tl.load(h_from + unit, mask=mask, other=0.0)
    c = tl.load(c_ptr, mask=mask, other=0.0)
    peepholes = peepholes_of(fields, hidden, offs_h[None, :], mask_h[None, :], DTYPE, HAS_PEEPHOLE, ALIGNED)
    h, c = advance(
        *(fields, time, tile, (z_i, z_f, z_g, z_o), h, c, peepholes),
        *(DTYPE, HAS_PEEPHOLE, IS_RAGGED, True, SAVE_CELLS, SAVE_GATES, ALIGNED),
    )
    tl.store(h_to + unit, h, mask=mask)
    tl.store(c_ptr, c, mask=mask)


@triton.jit(do_not_specialize=["steps", "batch"])
def lstm_loop_fwd_kernel(
    table_ptr,  # [G, RECORD] int64
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
    fields = table_ptr + tl.program_id(1) * RECORD
    offs_h = tl.arange(0, BLOCK_H)
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_h, mask_b = offs_h < hidden, offs_b < batch
    mask = mask_b[:, None] & mask_h[None, :]

    weights = pointer_of(fields, WEIGHT_HH, DTYPE, ALIGNED) + offs_h[None, :] * hidden + offs_h[:, None]  # [K, H]
    mask_w = mask_h[:, None] & mask_h[None, :]
    w_i, w_f, w_g, w_o = load_four(weights, hidden * hidden, mask_w)
    w_i, w_f, w_g, w_o = operand(w_i), operand(w_f), operand(w_g), operand(w_o)
    unit = offs_b[:, None] * hidden + offs_h[None, :]
    h_ptr = pointer_of(fields, H_FROM, DTYPE, ALIGNED) + unit
    c_ptr = pointer_of(fields, C, tl.float32, ALIGNED) + unit
    h = tl.load(h_ptr, mask=mask, other=0.0)
    c = tl.load(c_ptr, mask=mask, other=0.0)
    tile = (batch, hidden, offs_b, offs_h, mask_b, mask_h)
    time = time_of(fields, 0, steps)
    z_i, z_f, z_g, z_o = input_part(fields, time, tile, DTYPE, HAS_PROJECTION, HAS_BIAS, ALIGNED)
    for position in range(steps):
        # What the next step begins with is on its way while this one is computed.
        later = time_of(fields, tl.minimum(position + 1, steps - 1), steps)
        n_i, n_f, n_g, n_o = input_part(fields, later, tile, DTYPE, HAS_PROJECTION, HAS_BIAS, ALIGNED)
        z_i = tl.dot(operand(h), w_i, z_i, input_precision=PRECISION)
        z_f = tl.dot(operand(h), w_f, z_f, input_precision=PRECISION)
        z_g = tl.dot(operand(h), w_g, z_g, input_precision=PRECISION)
        z_o = tl.dot(operand(h), w_o, z_o, input_precision=PRECISION)
        peepholes = peepholes_of(fields, hidden, offs_h[None, :], mask_h[None, :], DTYPE, HAS_PEEPHOLE, ALIGNED)
        h, c = advance(
            *(fields, time, tile, (z_i, z_f, z_g, z_o), h, c, peepholes),
            *(DTYPE, HAS_PEEPHOLE, IS_RAGGED, True, SAVE_CELLS, SAVE_GATES, ALIGNED),
        )
        z_i, z_f, z_g, z_o, time = n_i, n_f, n_g, n_o, later
    tl.store(h_ptr, h, mask=mask)
    tl.store(c_ptr, c, mask=mask)


@triton.jit(do_not_specialize=["position", "steps", "batch"])
def lstm_step_bwd_kernel(
    table_ptr,  # [G, RECORD] int64
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
    fields = table_ptr + tl.program_id(2) * RECORD
    offs_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_b = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_h, mask_b = offs_h < hidden, offs_b < batch
    mask = mask_b[:, None] & mask_h[None, :]

    # What follows this step is the step done just before or, at the window's end, what is held already.
    is_last = position + 1 == steps
    after = tl.maximum(tl.minimum(time_of(fields, position + 1, steps), steps - 1), 0)
    grad_after = pointer_of(fields, GRAD_GATES, DTYPE, ALIGNED) + (after * batch + offs_b[:, None]) * (4 * hidden)
    weights = pointer_of(fields, WEIGHT_HH, DTYPE, ALIGNED) + offs_h[None, :]
    dh = tl.zeros([BLOCK_B, BLOCK_H], tl.float32)
    for k in range(0, tl.where(is_last, 0, 4 * hidden), BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < 4 * hidden
        mask_dz, mask_w = mask_b[:, None] & mask_k[None, :], mask_k[:, None] & mask_h[None, :]
        dz = operand(tl.load(grad_after + offs_k[None, :], mask=mask_dz, other=0.0))  # [B, K]
        w = weights + offs_k[:, None].to(tl.int64) * hidden
        w = operand(tl.load(w, mask=mask_w, other=0.0))  # [K, H]
        dh = tl.dot(dz, w, dh, input_precision=PRECISION)

    unit = offs_b[:, None] * hidden + offs_h[None, :]
    h_ptr = pointer_of(fields, GRAD_H, tl.float32, ALIGNED) + unit
    c_ptr = pointer_of(fields, GRAD_C, tl.float32, ALIGNED) + unit
    if IS_RAGGED:
        # A step in padding passes on what it was given.
        is_held = (active_at(fields, after, offs_b, mask_b) == 0) | is_last
        dh = tl.where(is_held[:, None], tl.load(h_ptr, mask=mask, other=0.0), dh)
        tl.store(h_ptr, dh, mask=mask)
    elif is_last:
        dh = tl.load(h_ptr, mask=mask, other=0.0)
    if position >= 0:
        dc = tl.load(c_ptr, mask=mask, other=0.0)
        peepholes = peepholes_of(fields, hidden, offs_h[None, :], mask_h[None, :], DTYPE, HAS_PEEPHOLE, ALIGNED)
        _dz, dc = retreat(
            *(fields, position, steps, (batch, hidden, offs_b, offs_h, mask_b, mask_h), dh, dc, peepholes),
            *(DTYPE, HAS_PEEPHOLE, IS_RAGGED, HAS_GRAD_OUTPUT, HAS_GRAD_CELLS, ALIGNED),
        )
        tl.store(c_ptr, dc, mask=mask)
    else:
        tl.store(h_ptr, dh, mask=mask)


@triton.jit(do_not_specialize=["steps", "batch"])
def lstm_loop_bwd_kernel(
    table_ptr,  # [G, RECORD] int64
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
    fields = table_ptr + tl.program_id(1) * RECORD
    offs_h = tl.arange(0, BLOCK_H)
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_h, mask_b = offs_h < hidden, offs_b < batch
    mask = mask_b[:, None] & mask_h[None, :]

    weights = pointer_of(fields, WEIGHT_HH, DTYPE, ALIGNED) + offs_h[:, None] * hidden + offs_h[None, :]  # [K, H]
    mask_w = mask_h[:, None] & mask_h[None, :]
    w_i, w_f, w_g, w_o = load_four(weights, hidden * hidden, mask_w)
    w_i, w_f, w_g, w_o = operand(w_i), operand(w_f), operand(w_g), operand(w_o)
    unit = offs_b[:, None] * hidden + offs_h[None, :]
    h_ptr = pointer_of(fields, GRAD_H, tl.float32, ALIGNED) + unit
    c_ptr = pointer_of(fields, GRAD_C, tl.float32, ALIGNED) + unit
    dh = tl.load(h_ptr, mask=mask, other=0.0)
    dc = tl.load(c_ptr, mask=mask, other=0.0)
    for done in range(steps):
        position = steps - 1 - done
        peepholes = peepholes_of(fields, hidden, offs_h[None, :], mask_h[None, :], DTYPE, HAS_PEEPHOLE, ALIGNED)
        dz, dc = retreat(
            *(fields, position, steps, (batch, hidden, offs_b, offs_h, mask_b, mask_h), dh, dc, peepholes),
            *(DTYPE, HAS_PEEPHOLE, IS_RAGGED, HAS_GRAD_OUTPUT, HAS_GRAD_CELLS, ALIGNED),
        )
        dh_before = tl.dot(operand(dz[0]), w_i, input_precision=PRECISION)
        dh_before = tl.dot(operand(dz[1]), w_f, dh_before, input_precision=PRECISION)
        dh_before = tl.dot(operand(dz[2]), w_g, dh_before, input_precision=PRECISION)
        dh_before = tl.dot(operand(dz[3]), w_o, dh_before, input_precision=PRECISION)
        if IS_RAGGED:  # a step in padding passes on what it was given
            active = active_at(fields, time_of(fields, position, steps), offs_b, mask_b)[:, None]
            dh = tl.where(active, dh_before, dh)
        else:
            dh = dh_before
    tl.store(h_ptr, dh, mask=mask)
    tl.store(c_ptr, dc, mask=mask)


@triton.jit(do_not_specialize=["steps", "batch"])
def lstm_gates_kernel(
    table_ptr,  # [G, RECORD] int64
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
    fields = table_ptr + tl.program_id(1) * RECORD
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < batch.to(tl.int64) * hidden
    offs_b, offs_h = offs // hidden, offs % hidden
    gates = pointer_of(fields, GATES, DTYPE, False) + offs_b * (4 * hidden) + offs_h
    cells = pointer_of(fields, CELLS, tl.float32, False) + offs
    c = tl.load(pointer_of(fields, C_START, tl.float32, False) + offs, mask=mask, other=0.0)
    peepholes = peepholes_of(fields, hidden, offs_h, mask, DTYPE, HAS_PEEPHOLE, False)
    for position in range(steps):
        time = time_of(fields, position, steps)
        z = gates + time * batch * (4 * hidden)
        z_i, z_f, z_g, z_o = load_four(z, hidden, mask)
        sums = (z_i.to(tl.float32), z_f.to(tl.float32), z_g.to(tl.float32), z_o.to(tl.float32))
        activated, c_new = gates_of(sums, c, peepholes, HAS_PEEPHOLE)
        if IS_RAGGED:
            c_new = tl.where(active_at(fields, time, offs_b, mask), c_new, c)
        c = c_new
        tl.store(cells + time * batch * hidden, c, mask=mask)
        store_gates(z, hidden, activated, mask, DTYPE)
