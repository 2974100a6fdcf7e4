// Products of matrices by a warp group, four warps in a row of which the first one's index is divisible by 4:
// D[64, N] += A[64, K] B[K, N], with 32 bytes of K at a time and N from 8 to 48 (PTX: wgmma). sm_90a alone has them.
//
// A and B lie in shared memory as core matrices of 8 rows of 16 bytes, 128 bytes in one piece; or a lane has its part of A in
// registers. Warp w of the group has rows [16 w, 16 w + 16) of A and D, spread over its lanes as in matrix.h; of D [n] are
// columns [8 n, 8 n + 8).
//
// The products run behind the warps' backs, in their order. From multiply_group() until wait_products() nobody may touch D
// or A's registers, nor write to the shared memory that is read; all four warps issue the same ones. They read shared memory
// by the asynchronous proxy: what bulk copies have brought needs no fence, what was stored needs fence_operands() between.
#pragma once

#include <cstdint>

#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"

namespace lstmvid {

constexpr int kGroupWarps = 4;
constexpr int kPieceBytes = 16;        // of a row, which a core matrix holds
constexpr int kCoreMatrixBytes = 128;  // 8 rows

}  // namespace lstmvid

#if LSTMVID_EMULATED
#include "emulation/warp_group.h"
#else

namespace lstmvid {

// 16 bytes of an operand into this block's shared memory.
LSTMVID_DEVICE void store_operand(float4* shared, float4 value) { *shared = value; }

// By every thread after its last store_operand(), before the barrier that lets the products begin.
LSTMVID_DEVICE void fence_operands() {
  if constexpr (kHasWarpGroups) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Where the compiler must have D in its registers, and not know what it is.
template <int tile_blocks>
LSTMVID_DEVICE void hold(float (&d)[tile_blocks][4]) {
#pragma unroll
  for (int n = 0; n < tile_blocks; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}

// Before products, in the same straight line of code as they: orders them after what was done to registers before.
LSTMVID_DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// The same after D has been set or read.
template <int tile_blocks>
LSTMVID_DEVICE void fence_products(float (&d)[tile_blocks][4]) {
  hold(d);
  fence_products();
}

// The products that this warp has issued since its last commit become one batch.
LSTMVID_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all batches but the last `pending` ones are done: what they read may be written to. D stays forbidden.
template <int pending>
LSTMVID_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Until all are done, and D can be read.
template <int tile_blocks>
LSTMVID_DEVICE void wait_products(float (&d)[tile_blocks][4]) {
  wait_products<0>();
  hold(d);
}

template <int tile_blocks>
struct GroupProduct;

// The instruction for a width of D. Its operands by number: D's registers first, then A's four and B's descriptor, or both
// descriptors. The ones behind them: D is added to, nothing is negated or transposed.
#define LSTMVID_D(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define LSTMVID_GROUP_PRODUCT_OF(name, type, blocks, columns, d_text, registers_text, descriptors_text, ...)           \
  static LSTMVID_DEVICE void name(float (&d)[blocks][4], const FragmentA& a, uint64_t b) {                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" d_text "}, " registers_text \
                 ", 1, 1, 1, 0;"                                                                                       \
                 : __VA_ARGS__                                                                                         \
                 : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b));                                        \
  }                                                                                                                    \
  static LSTMVID_DEVICE void name(float (&d)[blocks][4], uint64_t a, uint64_t b) {                                     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" d_text                      \
                 "}, " descriptors_text ", 1, 1, 1, 0, 0;"                                                             \
                 : __VA_ARGS__                                                                                         \
                 : "l"(a), "l"(b));                                                                                    \
  }
#define LSTMVID_GROUP_PRODUCT(blocks, ...)                      \
  template <>                                                   \
  struct GroupProduct<blocks> {                                 \
    LSTMVID_GROUP_PRODUCT_OF(bf16, "bf16", blocks, __VA_ARGS__) \
    LSTMVID_GROUP_PRODUCT_OF(f16, "f16", blocks, __VA_ARGS__)   \
  };

#define LSTMVID_D_1 "%0, %1, %2, %3"
#define LSTMVID_D_2 LSTMVID_D_1 ", %4, %5, %6, %7"
#define LSTMVID_D_3 LSTMVID_D_2 ", %8, %9, %10, %11"
#define LSTMVID_D_4 LSTMVID_D_3 ", %12, %13, %14, %15"
#define LSTMVID_D_5 LSTMVID_D_4 ", %16, %17, %18, %19"
#define LSTMVID_D_6 LSTMVID_D_5 ", %20, %21, %22, %23"
LSTMVID_GROUP_PRODUCT(1, "8", LSTMVID_D_1, "{%4, %5, %6, %7}, %8", "%4, %5", LSTMVID_D(0))
LSTMVID_GROUP_PRODUCT(2, "16", LSTMVID_D_2, "{%8, %9, %10, %11}, %12", "%8, %9", LSTMVID_D(0), LSTMVID_D(1))
LSTMVID_GROUP_PRODUCT(3, "24", LSTMVID_D_3, "{%12, %13, %14, %15}, %16", "%12, %13", LSTMVID_D(0), LSTMVID_D(1),
                      LSTMVID_D(2))
LSTMVID_GROUP_PRODUCT(4, "32", LSTMVID_D_4, "{%16, %17, %18, %19}, %20", "%16, %17", LSTMVID_D(0), LSTMVID_D(1),
                      LSTMVID_D(2), LSTMVID_D(3))
LSTMVID_GROUP_PRODUCT(5, "40", LSTMVID_D_5, "{%20, %21, %22, %23}, %24", "%20, %21", LSTMVID_D(0), LSTMVID_D(1),
                      LSTMVID_D(2), LSTMVID_D(3), LSTMVID_D(4))
LSTMVID_GROUP_PRODUCT(6, "48", LSTMVID_D_6, "{%24, %25, %26, %27}, %28", "%24, %25", LSTMVID_D(0), LSTMVID_D(1),
                      LSTMVID_D(2), LSTMVID_D(3), LSTMVID_D(4), LSTMVID_D(5))
#undef LSTMVID_GROUP_PRODUCT
#undef LSTMVID_GROUP_PRODUCT_OF
#undef LSTMVID_D
#undef LSTMVID_D_1
#undef LSTMVID_D_2
#undef LSTMVID_D_3
#undef LSTMVID_D_4
#undef LSTMVID_D_5
#undef LSTMVID_D_6

}  // namespace lstmvid
#endif

namespace lstmvid {

// Of a matrix in shared memory, aligned to 16 bytes, whose core matrices follow each other along its rows, and along K lie
// `chunk_bytes` apart (PTX ISA, "Matrix Descriptor Format", without swizzle).
LSTMVID_DEVICE uint64_t matrix_descriptor(const void* shared, int chunk_bytes) {
  const uint64_t address = shared_address(shared) >> 4, along_k = static_cast<uint64_t>(chunk_bytes >> 4);
  return address | along_k << 16 | static_cast<uint64_t>(kCoreMatrixBytes >> 4) << 32;
}

// The same matrix so many bytes further on, a multiple of 16.
LSTMVID_DEVICE uint64_t moved(uint64_t descriptor, int bytes) { return descriptor + static_cast<uint64_t>(bytes >> 4); }

// D += A B of one k-step. `a`: the lane's registers of A, or A's descriptor.
template <Precision precision, int tile_blocks, class A>
LSTMVID_DEVICE void multiply_group(float (&d)[tile_blocks][4], const A& a, uint64_t b) {
  static_assert(precision == Precision::kBFloat16 || precision == Precision::kFloat16, "operands of 2 bytes");
  if constexpr (precision == Precision::kBFloat16) {
    GroupProduct<tile_blocks>::bf16(d, a, b);
  } else {
    GroupProduct<tile_blocks>::f16(d, a, b);
  }
}

}  // namespace lstmvid
