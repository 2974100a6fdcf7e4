"""Sums over steps and batch for the gradients of biases and peepholes, of one layer.

    bias [4H]: sum of dz        peephole [3H]: sums of dz_i c_{t-1}, dz_f c_{t-1}, dz_o c_t

One pass over dz [R, 4H] and the cells [R, H], R = n B rows. A program adds up BLOCK_H units of a part of the rows, in
their order; the parts are added up afterwards, in theirs. Floor: dz once and, with peepholes, the cells twice.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "batch"])
def gate_sums_kernel(
    grad_gates_ptr,  # [R, 4H]
    cells_ptr,  # [R, H]
    start_ptr,  # [B, H]: the cells that the first step starts from
    parts_ptr,  # [parts, 7, H] float32: bias i f g o, peephole i f o
    rows,
    batch,
    hidden,
    IS_REVERSE: tl.constexpr,
    HAS_PEEPHOLE: tl.constexpr,
    PART_ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Grid (units, parts)."""
    offs_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask_h = offs_h < hidden
    first = tl.program_id(1).to(tl.int64) * PART_ROWS
    b_i = tl.zeros([BLOCK_H], tl.float32)
    b_f, b_g, b_o, p_i, p_f, p_o = b_i, b_i, b_i, b_i, b_i, b_i
    for block in range(0, PART_ROWS, BLOCK_R):
        offs_r = first + block + tl.arange(0, BLOCK_R)
        mask = (offs_r < rows)[:, None] & mask_h[None, :]
        pointer = grad_gates_ptr + offs_r[:, None] * (4 * hidden) + offs_h[None, :]
        dz_i = tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
        dz_f = tl.load(pointer + hidden, mask=mask, other=0.0).to(tl.float32)
        dz_g = tl.load(pointer + 2 * hidden, mask=mask, other=0.0).to(tl.float32)
        dz_o = tl.load(pointer + 3 * hidden, mask=mask, other=0.0).to(tl.float32)
        b_i += tl.sum(dz_i, 0)
        b_f += tl.sum(dz_f, 0)
        b_g += tl.sum(dz_g, 0)
        b_o += tl.sum(dz_o, 0)
        if HAS_PEEPHOLE:
            c = tl.load(cells_ptr + offs_r[:, None] * hidden + offs_h[None, :], mask=mask, other=0.0)
            # In padding the cells carry their state, so that a neighbour always has the cell a step started from.
            if IS_REVERSE:
                before = offs_r + batch
                is_first, in_start = before >= rows, before - rows
            else:
                before = offs_r - batch
                is_first, in_start = before < 0, offs_r
            kept = tl.load(
                cells_ptr + before[:, None] * hidden + offs_h[None, :], mask=mask & (is_first == 0)[:, None], other=0.0
            )
            given = tl.load(
                start_ptr + in_start[:, None] * hidden + offs_h[None, :], mask=mask & is_first[:, None], other=0.0
            )
            c_before = kept + given
            p_i += tl.sum(dz_i * c_before, 0)
            p_f += tl.sum(dz_f * c_before, 0)
            p_o += tl.sum(dz_o * c, 0)
    part = parts_ptr + tl.program_id(1).to(tl.int64) * (7 * hidden) + offs_h
    tl.store(part, b_i, mask=mask_h)
    tl.store(part + hidden, b_f, mask=mask_h)
    tl.store(part + 2 * hidden, b_g, mask=mask_h)
    tl.store(part + 3 * hidden, b_o, mask=mask_h)
    tl.store(part + 4 * hidden, p_i, mask=mask_h)
    tl.store(part + 5 * hidden, p_f, mask=mask_h)
    tl.store(part + 6 * hidden, p_o, mask=mask_h)
