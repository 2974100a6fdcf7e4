"""The products of a decoder on its own output, a launch each: around the recurrent step kernels, forward and backward.

    forward    projection_t [B, 4H] = x_t W_ih^T + b, x_t the frame seen or the layer below's h_t
               z_t [B, D] = h_t W_out^T + b_out;  x_{t+1} = link(z_t) where own_t, else truth_t
    backward   dz_t [B, D] = grad_z_t + link'(z_t) (dgates_{t+1} W_ih) where own_t         (dgates of the bottom layer)
               above_t [B, H] = dz_t W_out or, for a layer below, dgates_t W_ih

A program owns BLOCK_N columns of BLOCK_B sequences. Floor of a launch: 2 B N K FLOP, and the weights, N K elements,
once from memory: those of a large decoder don't stay in L2 from one step to the next.

As for the step kernels, addresses come out of a record in device memory (record_kernels.py), so that a CUDA graph
serves any tensors of the same shapes. Sequences are windows of n steps, of which `position` is one. Offsets between
rows are 64 bits wide.
"""

import triton
import triton.language as tl

from .operand_kernels import operand, rounded
from .record_kernels import (
    LOOP_BIAS,
    LOOP_FRAME,
    LOOP_GRAD_Z,
    LOOP_OWN,
    LOOP_SOURCE,
    LOOP_TARGET,
    LOOP_TRUTH,
    LOOP_WEIGHT,
    LOOP_Z,
    pointer_of,
)


@triton.jit
def _tile(batch, columns, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr):
    """What a program owns: (sequences, columns, which of them there are), by the grid (columns, sequences)."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_b = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    return offs_b, offs_n, offs_b < batch, offs_n < columns


@triton.jit
def _product(
    source,
    weight,
    tile,
    depth,
    columns,
    PRECISION: tl.constexpr,
    IS_TURNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """[BLOCK_B, BLOCK_N] float32: `source` [B, K] times `weight` [K, N], or [N, K] where it is turned."""
    offs_b, offs_n, mask_b, mask_n = tile
    total = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    if IS_TURNED:
        column = weight + offs_n[None, :].to(tl.int64) * depth
    else:
        column = weight + offs_n[None, :]
    for k in range(0, depth, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < depth
        mask_x, mask_w = mask_b[:, None] & mask_k[None, :], mask_k[:, None] & mask_n[None, :]
        x = operand(tl.load(source + offs_b[:, None] * depth + offs_k[None, :], mask=mask_x, other=0.0))  # [B, K]
        if IS_TURNED:
            w = column + offs_k[:, None]  # [K, N]
        else:
            w = column + offs_k[:, None].to(tl.int64) * columns
        total = tl.dot(x, operand(tl.load(w, mask=mask_w, other=0.0)), total, input_precision=PRECISION)
    return total


@triton.jit
def _add_bias(total, record, offs_n, mask_n, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    bias = tl.load(pointer_of(record, LOOP_BIAS, DTYPE, ALIGNED) + offs_n, mask=mask_n, other=0.0)
    return total + bias.to(tl.float32)[None, :]


@triton.jit
def linked(z, LINK: tl.constexpr):
    """The frame that z stands for, both float32."""
    if LINK == "sigmoid":
        z = tl.sigmoid(z)
    elif LINK == "rectifier":
        z = tl.where(z <= 0, 0.0, z)  # so that NaN stays
    return z


@triton.jit
def through_link(gradient, z, LINK: tl.constexpr):
    """The gradient of z, from that of the frame it stands for."""
    if LINK == "sigmoid":
        y = tl.sigmoid(z)
        gradient *= y * (1.0 - y)
    elif LINK == "rectifier":
        gradient = tl.where(z > 0, gradient, 0.0)
    return gradient


@triton.jit
def owned(record, position, batch, offs_b, mask_b):
    """[BLOCK_B]: whose next frame is the decoder's own."""
    own = tl.load(record + LOOP_OWN).to(tl.pointer_type(tl.int8)) + tl.cast(position, tl.int64) * batch
    return tl.load(own + offs_b, mask=mask_b, other=0) != 0


@triton.jit(do_not_specialize=["position", "batch"])
def loop_projection_kernel(
    record_ptr,  # int64
    position,
    batch,
    depth,
    columns,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FROM_FRAME: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """target_t [B, N] = source_t [B, K] weight [N, K]^T + bias; one source for all steps where it is the frame seen."""
    offs_b, offs_n, mask_b, mask_n = _tile(batch, columns, BLOCK_B, BLOCK_N)
    tile = (offs_b, offs_n, mask_b, mask_n)
    step = tl.cast(position, tl.int64) * batch
    source = pointer_of(record_ptr, LOOP_SOURCE, DTYPE, ALIGNED)
    if not FROM_FRAME:
        source += step * depth
    weight = pointer_of(record_ptr, LOOP_WEIGHT, DTYPE, ALIGNED)
    total = _product(source, weight, tile, depth, columns, PRECISION, True, BLOCK_B, BLOCK_N, BLOCK_K)
    if HAS_BIAS:
        total = _add_bias(total, record_ptr, offs_n, mask_n, DTYPE, ALIGNED)
    target = pointer_of(record_ptr, LOOP_TARGET, DTYPE, ALIGNED) + (step + offs_b[:, None]) * columns + offs_n[None, :]
    tl.store(target, rounded(total, DTYPE), mask=mask_b[:, None] & mask_n[None, :])


@triton.jit(do_not_specialize=["position", "batch"])
def loop_head_kernel(
    record_ptr,  # int64
    position,
    batch,
    depth,
    columns,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    LINK: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """target_t [B, N] = source_t [B, K] weight [N, K]^T + bias: z; and the frame that a next step sees."""
    offs_b, offs_n, mask_b, mask_n = _tile(batch, columns, BLOCK_B, BLOCK_N)
    tile, mask = (offs_b, offs_n, mask_b, mask_n), mask_b[:, None] & mask_n[None, :]
    step = tl.cast(position, tl.int64) * batch
    source = pointer_of(record_ptr, LOOP_SOURCE, DTYPE, ALIGNED) + step * depth
    weight = pointer_of(record_ptr, LOOP_WEIGHT, DTYPE, ALIGNED)
    total = _product(source, weight, tile, depth, columns, PRECISION, True, BLOCK_B, BLOCK_N, BLOCK_K)
    z = rounded(_add_bias(total, record_ptr, offs_n, mask_n, DTYPE, ALIGNED), DTYPE)
    unit = offs_b[:, None] * columns + offs_n[None, :]
    tl.store(pointer_of(record_ptr, LOOP_TARGET, DTYPE, ALIGNED) + step * columns + unit, z, mask=mask)
    if HAS_NEXT:
        frame = linked(z.to(tl.float32), LINK)
        if HAS_TRUTH:
            true = pointer_of(record_ptr, LOOP_TRUTH, DTYPE, ALIGNED) + step * columns + unit
            true = tl.load(true, mask=mask, other=0.0).to(tl.float32)
            frame = tl.where(owned(record_ptr, position, batch, offs_b, mask_b)[:, None], frame, true)
        tl.store(pointer_of(record_ptr, LOOP_FRAME, DTYPE, ALIGNED) + unit, rounded(frame, DTYPE), mask=mask)


@triton.jit(do_not_specialize=["position", "batch"])
def loop_frame_bwd_kernel(
    record_ptr,  # int64
    position,
    batch,
    depth,
    columns,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    LINK: tl.constexpr,
    HAS_TRUTH: tl.constexpr,
    HAS_LATER: tl.constexpr,
    HAS_GRAD_Z: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """target_t [B, N] = grad_z_t + link'(z_t) (source_{t+1} [B, K] weight [K, N]) where own_t.

    `source` is that of the step after position 0; without a later step there is nothing to read of it.
    """
    offs_b, offs_n, mask_b, mask_n = _tile(batch, columns, BLOCK_B, BLOCK_N)
    tile, mask = (offs_b, offs_n, mask_b, mask_n), mask_b[:, None] & mask_n[None, :]
    step = tl.cast(position, tl.int64) * batch
    unit = step * columns + offs_b[:, None] * columns + offs_n[None, :]
    dz = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    if HAS_LATER:
        source = pointer_of(record_ptr, LOOP_SOURCE, DTYPE, ALIGNED) + step * depth
        weight = pointer_of(record_ptr, LOOP_WEIGHT, DTYPE, ALIGNED)
        dz = _product(source, weight, tile, depth, columns, PRECISION, False, BLOCK_B, BLOCK_N, BLOCK_K)
        if LINK != "identity":
            z = tl.load(pointer_of(record_ptr, LOOP_Z, DTYPE, ALIGNED) + unit, mask=mask, other=0.0).to(tl.float32)
            dz = through_link(dz, z, LINK)
        if HAS_TRUTH:
            dz = tl.where(owned(record_ptr, position, batch, offs_b, mask_b)[:, None], dz, 0.0)
    if HAS_GRAD_Z:
        dz += tl.load(pointer_of(record_ptr, LOOP_GRAD_Z, DTYPE, ALIGNED) + unit, mask=mask, other=0.0).to(tl.float32)
    tl.store(pointer_of(record_ptr, LOOP_TARGET, DTYPE, ALIGNED) + unit, rounded(dz, DTYPE), mask=mask)


@triton.jit(do_not_specialize=["position", "batch"])
def loop_back_kernel(
    record_ptr,  # int64
    position,
    batch,
    depth,
    columns,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """target_t [B, N] = source_t [B, K] weight [K, N]: from the gradients of a product's results to its operand's."""
    offs_b, offs_n, mask_b, mask_n = _tile(batch, columns, BLOCK_B, BLOCK_N)
    tile = (offs_b, offs_n, mask_b, mask_n)
    step = tl.cast(position, tl.int64) * batch
    source = pointer_of(record_ptr, LOOP_SOURCE, DTYPE, ALIGNED) + step * depth
    weight = pointer_of(record_ptr, LOOP_WEIGHT, DTYPE, ALIGNED)
    total = _product(source, weight, tile, depth, columns, PRECISION, False, BLOCK_B, BLOCK_N, BLOCK_K)
    target = pointer_of(record_ptr, LOOP_TARGET, DTYPE, ALIGNED) + (step + offs_b[:, None]) * columns + offs_n[None, :]
    tl.store(target, rounded(total, DTYPE), mask=mask_b[:, None] & mask_n[None, :])
