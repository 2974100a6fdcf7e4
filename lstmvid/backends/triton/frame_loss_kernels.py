"""The loss of frames that are read from a decoder's top layer, and its gradient, without the logits in memory.

    z [R, D] = h W^T + b;  the loss's sum;  dz [R, D] = its gradient         (R = frames, T B of them)

    bernoulli   max(z, 0) - z v + log(1 + exp(-|z|)),  dz = sigmoid(z) - v   (cross-entropy, on logits)
    gaussian    (z - v)^2 / 2,                         dz = z - v
    rectified   (max(z, 0) - v)^2 / 2,                 dz = max(z, 0) - v where z > 0

A program has a tile of z, which never leaves its registers: it reads v, writes dz if it is wanted, and its part of the
sum. Floor: 2 R D H FLOP, and v and dz once. Offsets between rows are 64 bits wide.
"""

import triton
import triton.language as tl

from .operand_kernels import operand, rounded


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1], to some units in the last place: what rounding 1 + x loses is made up for."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@triton.jit
def _loss_and_gradient(z, v, LIKELIHOOD: tl.constexpr):
    if LIKELIHOOD == "bernoulli":
        loss = tl.where(z > 0, z, 0.0) - z * v + _log1p(tl.exp(-tl.abs(z)))
        return loss, tl.sigmoid(z) - v
    if LIKELIHOOD == "gaussian":
        return 0.5 * (z - v) * (z - v), z - v
    difference = tl.where(z <= 0, 0.0, z) - v  # so that NaN stays
    return 0.5 * difference * difference, tl.where(z <= 0, 0.0, difference)


@triton.jit(do_not_specialize=["rows"])
def frame_loss_kernel(
    h_ptr,  # [R, H]
    weight_ptr,  # [D, H]
    bias_ptr,  # [D]
    target_ptr,  # [R, D], bytes of which 255 is one, or real numbers
    grad_ptr,  # [R, D]
    parts_ptr,  # [tiles of R, tiles of D] float32
    rows,
    hidden,
    features,
    LIKELIHOOD: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_BYTES: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (tiles of R, tiles of D)."""
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_r, mask_d = offs_r < rows, offs_d < features
    z = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    weights = weight_ptr + offs_d[None, :].to(tl.int64) * hidden
    for k in range(0, hidden, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < hidden
        mask_h, mask_w = mask_r[:, None] & mask_k[None, :], mask_k[:, None] & mask_d[None, :]
        h = operand(tl.load(h_ptr + offs_r[:, None] * hidden + offs_k[None, :], mask=mask_h, other=0.0))  # [R, K]
        w = operand(tl.load(weights + offs_k[:, None], mask=mask_w, other=0.0))  # [K, D]
        z = tl.dot(h, w, z, input_precision=PRECISION)
    if HAS_BIAS:
        z += tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)[None, :]
    place = offs_r[:, None] * features + offs_d[None, :]
    mask = mask_r[:, None] & mask_d[None, :]
    v = tl.load(target_ptr + place, mask=mask, other=0).to(tl.float32)
    if IS_BYTES:
        v = v / 255.0
    loss, dz = _loss_and_gradient(z, v, LIKELIHOOD)
    if SAVE:
        tl.store(grad_ptr + place, rounded(dz, grad_ptr.dtype.element_ty), mask=mask)
    part = parts_ptr + tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(part, tl.sum(tl.where(mask, loss, 0.0)))
