// Products of small matrices by one warp: D[16, 8] += A[16, K] B[K, 8], with 32 bytes of K at a time.
//
// That is m16n8k16 for 2-byte operands and m16n8k8 for tf32. Counted in bytes, both spread their operands alike over the
// lanes (PTX ISA, "Matrix Fragments for mma.m16n8k16" and "...m16n8k8"). With row = lane / 4, column = lane % 4:
//   A  register r: row `row + 8 * (r & 1)`, bytes `4 * column + 16 * (r >> 1)` of K
//   B  register r: column `row` of B,       bytes `4 * column + 16 * r` of K
//   D  register r: row `row + 8 * (r >> 1)`, column `2 * column + (r & 1)`
#pragma once

#include <cstdint>

#include "cuda/primitives/barrier.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"

namespace lstmvid {

// A lane's four registers of A; in memory, 32 of them one after the other.
struct alignas(16) FragmentA {
  uint32_t x[4];
};

}  // namespace lstmvid

#if LSTMVID_EMULATED
#include "emulation/matrix.h"
#else

namespace lstmvid {

// Four 8 x 16-byte matrices: lane l gives the address of row l % 8 of matrix l / 8 and gets, in x[m], bytes
// [4 * (l % 4), + 4) of row l / 4 of matrix m. Rows are aligned to 16 bytes; all lanes of the warp call it.
LSTMVID_DEVICE void load_matrices(uint32_t (&x)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// D += A B of one k-step, as the hardware's product is defined for the operands' type.
LSTMVID_DEVICE void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

LSTMVID_DEVICE void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The operands are float32 bit patterns whose low 13 bits the hardware ignores.
LSTMVID_DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

LSTMVID_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
LSTMVID_DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }

}  // namespace lstmvid
#endif

namespace lstmvid {

// x = large + small, each exact in tf32 up to 2^-22 of x.
struct Tf32Pair {
  uint32_t large, small;
};

LSTMVID_DEVICE Tf32Pair split_tf32(uint32_t x) {
  const float large = round_to_tf32(as_float(x));
  return {as_bits(large), as_bits(round_to_tf32(as_float(x) - large))};
}

// D += A B of one k-step in the given precision. For kTf32 the operands have been rounded when they were stored.
template <Precision precision>
LSTMVID_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (precision == Precision::kBFloat16) {
    multiply_bf16(d, a, b0, b1);
  } else if constexpr (precision == Precision::kFloat16) {
    multiply_f16(d, a, b0, b1);
  } else if constexpr (precision == Precision::kTf32) {
    multiply_tf32(d, a, b0, b1);
  } else {
    uint32_t large[4], small[4];
    for (int i = 0; i < 4; ++i) {
      const Tf32Pair pair = split_tf32(a[i]);
      large[i] = pair.large;
      small[i] = pair.small;
    }
    const Tf32Pair c0 = split_tf32(b0), c1 = split_tf32(b1);
    multiply_tf32(d, small, c0.large, c1.large);  // the small terms first: they lose less so
    multiply_tf32(d, large, c0.small, c1.small);
    multiply_tf32(d, large, c0.large, c1.large);
  }
}

}  // namespace lstmvid
