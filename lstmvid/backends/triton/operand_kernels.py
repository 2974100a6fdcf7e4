"""Operands of products and rounding to their type, for all kernels, so that the interpreter does as a GPU does."""

import triton
import triton.language as tl

# Triton's interpreter can't multiply bfloat16, and cuts off where a GPU rounds to nearest.
_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def operand(x):
    """`x` as `tl.dot` takes it."""
    return x.to(tl.float32) if _IS_INTERPRETED else x


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """Float32 `x` as DTYPE, to nearest even."""
    if _IS_INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(DTYPE)
