// How operands are multiplied: by registers of V lanes, in packs of k.
//
// Operands are what the product reads: the type it adds up in, or bfloat16 where the processor multiplies pairs of them
// (kPack = 2 neighbouring k in one lane, [K / 2][4][V][2]).
#pragma once

#include "simd.h"

namespace lstmvid {
namespace LSTMVID_ISA {

constexpr int64_t kDepth = 128;     // packs of k: 32 KB of panel with AVX-512
constexpr int64_t kPanelRows = 96;  // rows of `a` an accumulator buffer holds: 24 KB
constexpr int64_t kFetchers = 8;    // row tiles that share in fetching the next block
constexpr int64_t kCacheLine = 64;

// Multiply-adds of one pack: sum[V] += a[kPack] * column[V][kPack], with `a` broadcast to a register once.
template <class Stored>
struct Product {
  using Operand = Stored;
  using Scalar = Stored;
  using Packs = Vec<Stored>;
  static constexpr int kPack = 1;
  static constexpr int64_t kPacksAtOnce = 1;  // a panel's depth and the rows of `a` end with zeros up to a multiple
  static constexpr int64_t kRowsBeyond = 0;   // rows of `a` that may be read, but don't count, behind the last
  // x - 0 is x for the compiler too; 0 + x is not, because of -0.
  static inline __attribute__((always_inline)) Packs broadcast(const Operand* a) { return *a - Packs{}; }
  static inline __attribute__((always_inline)) Vec<Scalar> add(const Vec<Scalar>& sum, const Packs& a, const Packs& b) {
    return sum + a * b;
  }
};

#if defined(__AVX512BF16__)
template <>
struct Product<bfloat16> {
  using Operand = bfloat16;
  using Scalar = float;
  using Packs = UintVec;  // a pair in each lane
  static constexpr int kPack = 2;
#if defined(__AMX_BF16__)
  static constexpr int64_t kPacksAtOnce = 16;
  static constexpr int64_t kRowsBeyond = 5;
#else
  static constexpr int64_t kPacksAtOnce = 1;
  static constexpr int64_t kRowsBeyond = 0;
#endif
  static inline __attribute__((always_inline)) Packs broadcast(const Operand* a) {
    uint32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return Packs{} + pair;
  }
  static inline __attribute__((always_inline)) FloatVec add(const FloatVec& sum, const Packs& a, const Packs& b) {
    return bits_as<FloatVec>(_mm512_dpbf16_ps(bits_as<__m512>(sum), bits_as<__m512bh>(a), bits_as<__m512bh>(b)));
  }
};
#else
template <>
struct Product<bfloat16> : Product<float> {};
#endif

template <class Product>
constexpr int64_t kPackWidth = 4 * kLanes<typename Product::Scalar> * Product::kPack;  // operands of one pack of k
template <class Scalar>
constexpr int64_t kAccWidth = 4 * kLanes<Scalar>;

template <class Product>
constexpr int64_t packs_of(int64_t depth) {
  constexpr int64_t kAtOnce = Product::kPack * Product::kPacksAtOnce;
  return (depth + kAtOnce - 1) / kAtOnce * Product::kPacksAtOnce;
}

// A row tile's share of the block that comes next: so many bytes of it at each pack. None: `bytes` is 0.
struct Fetch {
  const char* from;
  int64_t bytes;
};

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
