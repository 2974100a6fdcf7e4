"""A decoder on its own output, all steps in one launch, where one program holds all units and a whole frame.

    forward    for each layer  h_t = cell(x_t W_ih^T + h_{t-1} W_hh^T + b), x_t the frame seen or h_t of the layer below
               z_t [B, D] = h_t W_out^T + b_out;  x_{t+1} = link(z_t) where own_t, else truth_t
    backward   dz_t [B, D] = grad_z_t + link'(z_t) dx_{t+1} where own_t;  above = dz_t W_out
               for each layer, top first  dgates_t from above + dh_t;  dh_{t-1} = dgates_t W_hh;  above = dgates_t W_ih
               dx_t = above of the bottom layer

A program has BLOCK_B sequences for as long as they last: of every layer h and c (backward dh and dc), and the frame
that the next step sees (backward its gradient), stay in registers. Floor of a step: 2 L + 1 products one after the
other, each with its exchange through shared memory; of the work, 2 B (4 H (D + (2 L - 1) H) + D H) FLOP.

The table is that of the steps' launches (closed_loop_steps.py): a row for each layer's recurrence, then one for each
product. Offsets between rows are 64 bits wide.
"""

import triton
import triton.language as tl

from .cell_kernels import advance, load_four, peepholes_of, retreat
from .closed_loop_kernels import linked, owned, through_link
from .operand_kernels import operand, rounded
from .record_kernels import (
    GRAD_C,
    GRAD_H,
    H_FROM,
    LOOP_BIAS,
    LOOP_GRAD_Z,
    LOOP_ROW,
    LOOP_SOURCE,
    LOOP_TARGET,
    LOOP_TRUTH,
    LOOP_WEIGHT,
    LOOP_Z,
    WEIGHT_HH,
    C,
    pointer_of,
)


@triton.jit
def _weights(pointer, distance, offs_k, offs_n, mask_k, mask_n):
    """Of the gates (i, f, g, o), each [K, N] as operands, where `offs` say how far apart the values lie."""
    w_i, w_f, w_g, w_o = load_four(
        pointer + offs_k[:, None] + offs_n[None, :], distance, mask_k[:, None] & mask_n[None, :]
    )
    return operand(w_i), operand(w_f), operand(w_g), operand(w_o)


@triton.jit
def _biases(product, hidden, offs_h, mask_h, DTYPE: tl.constexpr, HAS_BIAS: tl.constexpr, ALIGNED: tl.constexpr):
    """Of the gates (i, f, g, o), each [1, H] float32; zeros if there are none."""
    biases = (0.0, 0.0, 0.0, 0.0)
    if HAS_BIAS:
        bias = pointer_of(product, LOOP_BIAS, DTYPE, ALIGNED) + offs_h[None, :]
        b_i, b_f, b_g, b_o = load_four(bias, hidden, mask_h[None, :])
        biases = (b_i.to(tl.float32), b_f.to(tl.float32), b_g.to(tl.float32), b_o.to(tl.float32))
    return biases


@triton.jit
def _add_products(x, weights, z, PRECISION: tl.constexpr):
    """`z` of the gates (i, f, g, o), each [B, H], and what `x` adds to them by the weights [K, H] of each."""
    x = operand(x)
    z_i = tl.dot(x, weights[0], z[0], input_precision=PRECISION)
    z_f = tl.dot(x, weights[1], z[1], input_precision=PRECISION)
    z_g = tl.dot(x, weights[2], z[2], input_precision=PRECISION)
    z_o = tl.dot(x, weights[3], z[3], input_precision=PRECISION)
    return z_i, z_f, z_g, z_o


@triton.jit
def _sum_products(dz, weights, PRECISION: tl.constexpr):
    """The sum over the gates (i, f, g, o) of dz, each [B, H], times the weights [H, K] of each."""
    total = tl.dot(operand(dz[0]), weights[0], input_precision=PRECISION)
    total = tl.dot(operand(dz[1]), weights[1], total, input_precision=PRECISION)
    total = tl.dot(operand(dz[2]), weights[2], total, input_precision=PRECISION)
    return tl.dot(operand(dz[3]), weights[3], total, input_precision=PRECISION)


@triton.jit(do_not_specialize=["steps", "batch"])
def loop_whole_fwd_kernel(
    table_ptr,  # [2 L + 1, LOOP_ROW] int64: layers, then their products, then the head's
    steps,
    batch,
    hidden,
    frame_size,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    LAYERS: tl.constexpr,
    LINK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    SAVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,  # at least H
    BLOCK_D: tl.constexpr,  # at least D
):
    """All steps; reads and leaves h in h_from. Grid (sequences)."""
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_h, offs_d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    mask_b, mask_h, mask_d = offs_b < batch, offs_h < hidden, offs_d < frame_size
    tile = (batch, hidden, offs_b, offs_h, mask_b, mask_h)
    state, mask_state = offs_b[:, None] * hidden + offs_h[None, :], mask_b[:, None] & mask_h[None, :]
    frame, mask_frame = offs_b[:, None] * frame_size + offs_d[None, :], mask_b[:, None] & mask_d[None, :]
    head = table_ptr + 2 * LAYERS * LOOP_ROW

    h, c, of_input, of_state, biases, peepholes = (), (), (), (), (), ()
    for index in tl.static_range(LAYERS):
        layer, product = table_ptr + index * LOOP_ROW, table_ptr + (LAYERS + index) * LOOP_ROW
        h += (tl.load(pointer_of(layer, H_FROM, DTYPE, ALIGNED) + state, mask=mask_state, other=0.0),)
        c += (tl.load(pointer_of(layer, C, tl.float32, ALIGNED) + state, mask=mask_state, other=0.0),)
        peepholes += (peepholes_of(layer, hidden, offs_h[None, :], mask_h[None, :], DTYPE, HAS_PEEPHOLE, ALIGNED),)
        weights = pointer_of(layer, WEIGHT_HH, DTYPE, ALIGNED)
        of_state += (_weights(weights, hidden * hidden, offs_h, offs_h * hidden, mask_h, mask_h),)
        weights = pointer_of(product, LOOP_WEIGHT, DTYPE, ALIGNED)
        if index == 0:
            of_input += (_weights(weights, hidden * frame_size, offs_d, offs_h * frame_size, mask_d, mask_h),)
        else:
            of_input += (_weights(weights, hidden * hidden, offs_h, offs_h * hidden, mask_h, mask_h),)
        biases += (_biases(product, hidden, offs_h, mask_h, DTYPE, HAS_BIAS, ALIGNED),)
    weights = pointer_of(head, LOOP_WEIGHT, DTYPE, ALIGNED) + offs_h[:, None] + offs_d[None, :] * hidden
    of_output = operand(tl.load(weights, mask=mask_h[:, None] & mask_d[None, :], other=0.0))  # [H, D]
    bias_out = tl.load(pointer_of(head, LOOP_BIAS, DTYPE, ALIGNED) + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    seen = pointer_of(table_ptr + LAYERS * LOOP_ROW, LOOP_SOURCE, DTYPE, ALIGNED) + frame
    seen = tl.load(seen, mask=mask_frame, other=0.0)

    for position in range(steps):
        time = tl.cast(position, tl.int64)
        place = time * batch * frame_size + frame
        if HAS_TRUTH:  # on its way while the step is computed
            has_next = (mask_b & (position + 1 < steps)) != 0  # of which the interpreter makes a mask, too
            is_own = owned(head, position, batch, offs_b, has_next)[:, None]
            true = pointer_of(head, LOOP_TRUTH, DTYPE, ALIGNED) + place
            true = tl.load(true, mask=has_next[:, None] & mask_d[None, :], other=0.0)
        next_h, next_c, below = (), (), seen
        for index in tl.static_range(LAYERS):
            layer, zero = table_ptr + index * LOOP_ROW, tl.zeros([BLOCK_B, BLOCK_H], tl.float32)
            b_i, b_f, b_g, b_o = biases[index]
            z = (zero + b_i, zero + b_f, zero + b_g, zero + b_o)
            z = _add_products(h[index], of_state[index], z, PRECISION)
            z = _add_products(below, of_input[index], z, PRECISION)
            below, c_new = advance(
                *(layer, time, tile, z, h[index], c[index], peepholes[index]),
                *(DTYPE, HAS_PEEPHOLE, False, SAVE, SAVE, SAVE, ALIGNED),
            )
            next_h += (below,)
            next_c += (c_new,)
        h, c = next_h, next_c
        z = tl.dot(operand(below), of_output, input_precision=PRECISION)
        z = rounded(z + bias_out[None, :], DTYPE)
        tl.store(pointer_of(head, LOOP_TARGET, DTYPE, ALIGNED) + place, z, mask=mask_frame)
        seen = rounded(linked(z.to(tl.float32), LINK), DTYPE)
        if HAS_TRUTH:
            seen = tl.where(is_own, seen, true)

    for index in tl.static_range(LAYERS):
        layer = table_ptr + index * LOOP_ROW
        tl.store(pointer_of(layer, H_FROM, DTYPE, ALIGNED) + state, h[index], mask=mask_state)
        tl.store(pointer_of(layer, C, tl.float32, ALIGNED) + state, c[index], mask=mask_state)


@triton.jit(do_not_specialize=["steps", "batch"])
def loop_whole_bwd_kernel(
    table_ptr,  # [2 L + 1, LOOP_ROW] int64: layers, then the frame's product, then those of what lies above each layer
    steps,
    batch,
    hidden,
    frame_size,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    LAYERS: tl.constexpr,
    LINK: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    HAS_GRAD_Z: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,  # at least H
    BLOCK_D: tl.constexpr,  # at least D
):
    """All steps, last one first. Grid (sequences)."""
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_h, offs_d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    mask_b, mask_h, mask_d = offs_b < batch, offs_h < hidden, offs_d < frame_size
    tile = (batch, hidden, offs_b, offs_h, mask_b, mask_h)
    state, mask_state = offs_b[:, None] * hidden + offs_h[None, :], mask_b[:, None] & mask_h[None, :]
    frame, mask_frame = offs_b[:, None] * frame_size + offs_d[None, :], mask_b[:, None] & mask_d[None, :]
    head = table_ptr + LAYERS * LOOP_ROW

    dh, dc, of_input, of_state, peepholes = (), (), (), (), ()
    for index in tl.static_range(LAYERS):
        layer = table_ptr + index * LOOP_ROW
        dh += (tl.load(pointer_of(layer, GRAD_H, tl.float32, ALIGNED) + state, mask=mask_state, other=0.0),)
        dc += (tl.load(pointer_of(layer, GRAD_C, tl.float32, ALIGNED) + state, mask=mask_state, other=0.0),)
        peepholes += (peepholes_of(layer, hidden, offs_h[None, :], mask_h[None, :], DTYPE, HAS_PEEPHOLE, ALIGNED),)
        weights = pointer_of(layer, WEIGHT_HH, DTYPE, ALIGNED)
        of_state += (_weights(weights, hidden * hidden, offs_h * hidden, offs_h, mask_h, mask_h),)
        if index == 0:
            weights = pointer_of(head, LOOP_WEIGHT, DTYPE, ALIGNED)
            of_input += (_weights(weights, hidden * frame_size, offs_h * frame_size, offs_d, mask_h, mask_d),)
        else:  # its product is that of the layer below
            weights = pointer_of(head + index * LOOP_ROW, LOOP_WEIGHT, DTYPE, ALIGNED)
            of_input += (_weights(weights, hidden * hidden, offs_h * hidden, offs_h, mask_h, mask_h),)
    weights = pointer_of(head + LAYERS * LOOP_ROW, LOOP_WEIGHT, DTYPE, ALIGNED)
    weights += offs_d[:, None] * hidden + offs_h[None, :]
    of_output = operand(tl.load(weights, mask=mask_d[:, None] & mask_h[None, :], other=0.0))  # [D, H]

    of_seen = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)  # with respect to the frame that the step after this one sees
    for done in range(steps):
        position = steps - 1 - done
        place = tl.cast(position, tl.int64) * batch * frame_size + frame
        dz = of_seen
        if LINK != "identity":
            z = tl.load(pointer_of(head, LOOP_Z, DTYPE, ALIGNED) + place, mask=mask_frame, other=0.0).to(tl.float32)
            dz = through_link(dz, z, LINK)
        if HAS_TRUTH:
            has_next = (mask_b & (position + 1 < steps)) != 0
            dz = tl.where(owned(head, position, batch, offs_b, has_next)[:, None], dz, 0.0)
        if HAS_GRAD_Z:
            given = pointer_of(head, LOOP_GRAD_Z, DTYPE, ALIGNED) + place
            dz += tl.load(given, mask=mask_frame, other=0.0).to(tl.float32)
        dz = rounded(dz, DTYPE)
        tl.store(pointer_of(head, LOOP_TARGET, DTYPE, ALIGNED) + place, dz, mask=mask_frame)
        above = tl.dot(operand(dz), of_output, input_precision=PRECISION)
        before_h, before_c = (), ()
        for index in tl.static_range(LAYERS - 1, -1, -1):
            dgates, dc_new = retreat(
                *(table_ptr + index * LOOP_ROW, position, steps, tile, dh[index] + above, dc[index], peepholes[index]),
                *(DTYPE, HAS_PEEPHOLE, False, False, False, ALIGNED),
            )
            # Triton knows no star in a tuple.
            before_h = (_sum_products(dgates, of_state[index], PRECISION),) + before_h  # noqa: RUF005
            before_c = (dc_new,) + before_c  # noqa: RUF005
            above = _sum_products(dgates, of_input[index], PRECISION)
        dh, dc, of_seen = before_h, before_c, above

    for index in tl.static_range(LAYERS):
        layer = table_ptr + index * LOOP_ROW
        tl.store(pointer_of(layer, GRAD_H, tl.float32, ALIGNED) + state, dh[index], mask=mask_state)
        tl.store(pointer_of(layer, GRAD_C, tl.float32, ALIGNED) + state, dc[index], mask=mask_state)
