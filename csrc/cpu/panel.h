// The recurrent product on packed weights: acc[rows, 4V] = a[rows, K] * panel[K, 4V], V lanes a register.
//
// A panel holds four registers' width of columns: the four gates of V units (forward), or 4V neighbouring units
// (backward). It is read in blocks of kDepth rows that stay in the first-level cache while every row tile passes over
// them. Each element is one chain of multiply-adds in the order of k, whatever the tile: the same bits for any number
// of threads and any batch.
//
// Operands are what the product reads: the type it adds up in, or bfloat16 where the processor multiplies pairs of them
// (kPack = 2 neighbouring k in one lane, [K / 2][4][V][2]).
#pragma once

#include "simd.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace lstmvid {
namespace LSTMVID_ISA {

constexpr int64_t kDepth = 128;     // packs of k: 32 KB of panel with AVX-512
constexpr int64_t kPanelRows = 96;  // rows of `a` an accumulator buffer holds: 24 KB

// Multiply-adds of one pack: sum[V] += a[kPack] * column[V][kPack], with `a` broadcast to a register once.
template <class Stored>
struct Product {
  using Operand = Stored;
  using Scalar = Stored;
  using Packs = Vec<Stored>;
  static constexpr int kPack = 1;
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

template <int kRows, class Product, class Operand, class Scalar>
inline void multiply_tile(const Operand* a, int64_t lda, const Operand* panel, int64_t packs, Scalar* acc, bool first) {
  constexpr int kV = kLanes<Scalar>;
  Vec<Scalar> sum[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < 4; ++j) sum[r][j] = first ? Vec<Scalar>{} : load(acc + (r * 4 + j) * kV, kV);
  }
  for (int64_t k = 0; k < packs; ++k, panel += kPackWidth<Product>) {
    typename Product::Packs column[4];
    for (int j = 0; j < 4; ++j)
      column[j] = load_bits<typename Product::Packs>(panel + j * kV * Product::kPack, kV * Product::kPack);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Product::Packs value = Product::broadcast(a + r * lda + k * Product::kPack);
      for (int j = 0; j < 4; ++j) sum[r][j] = Product::add(sum[r][j], value, column[j]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < 4; ++j) store(acc + (r * 4 + j) * kV, sum[r][j], kV);
  }
}

template <class Product, class Operand, class Scalar>
inline void multiply_rows(int rows, const Operand* a, int64_t lda, const Operand* panel, int64_t packs, Scalar* acc,
                          bool first) {
  static_assert(kTileRows <= 6, "add the missing cases");
  switch (rows) {
    case 1: return multiply_tile<1, Product>(a, lda, panel, packs, acc, first);
    case 2: return multiply_tile<2, Product>(a, lda, panel, packs, acc, first);
#if defined(__AVX2__)
    case 3: return multiply_tile<3, Product>(a, lda, panel, packs, acc, first);
#endif
#if defined(__AVX512F__)
    case 4: return multiply_tile<4, Product>(a, lda, panel, packs, acc, first);
    case 5: return multiply_tile<5, Product>(a, lda, panel, packs, acc, first);
    case 6: return multiply_tile<6, Product>(a, lda, panel, packs, acc, first);
#endif
  }
}

// a: [rows, K] with row stride lda, zero up to a whole pack; panel: [K, 4V]; acc: [rows, 4V]; rows <= kPanelRows.
// `add`: to what acc holds already.
template <class Product, class Operand, class Scalar>
inline void multiply_panel(const Operand* a, int64_t lda, int64_t rows, const Operand* panel, int64_t depth,
                           Scalar* acc, bool add) {
  const int64_t packs = (depth + Product::kPack - 1) / Product::kPack;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t k = 0; k < packs; k += kDepth) {
    const int64_t part = packs - k < kDepth ? packs - k : kDepth;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      // Tiles of nearly equal height: a last tile of one row would leave the multipliers idle.
      const int64_t row = rows * tile / tiles, end = rows * (tile + 1) / tiles;
      multiply_rows<Product>(static_cast<int>(end - row), a + row * lda + k * Product::kPack, lda,
                             panel + k * kPackWidth<Product>, part, acc + row * kAccWidth<Scalar>, k == 0 && !add);
    }
  }
}

template <class Product>
constexpr int64_t panel_size(int64_t depth) {
  return (depth + Product::kPack - 1) / Product::kPack * kPackWidth<Product>;
}

// Packs four sources into a panel: source j's column v at lane v of register j, zeros from count[j] on and behind the
// last k. Element (k, v) of source j is from[j][k * k_stride + v * v_stride]; one of the strides is 1.
template <class Product, class Stored>
inline void pack_panel(const Stored* const from[4], const int count[4], int64_t k_stride, int64_t v_stride,
                       int64_t depth, typename Product::Operand* panel) {
  using Operand = typename Product::Operand;
  constexpr int64_t kV = kLanes<typename Product::Scalar>, kPack = Product::kPack;
  constexpr int64_t kRun = 64;  // of each column at a time: long enough to stream, and what it fills stays in cache
  const int64_t padded_depth = (depth + kPack - 1) / kPack * kPack;
  for (int64_t k0 = 0; k0 < padded_depth; k0 += kRun) {
    const int64_t end = k0 + kRun < padded_depth ? k0 + kRun : padded_depth;
    for (int64_t j = 0; j < 4; ++j) {
      const auto place = [&](int64_t k, int64_t v) {
        const bool inside = v < count[j] && k < depth;
        panel[((k / kPack * 4 + j) * kV + v) * kPack + k % kPack] =
            inside ? converted<Operand>(from[j][k * k_stride + v * v_stride]) : Operand{};
      };
      // The short stride goes innermost.
      if (v_stride == 1) {
        for (int64_t k = k0; k < end; ++k) {
          for (int64_t v = 0; v < kV; ++v) place(k, v);
        }
      } else {
        for (int64_t v = 0; v < kV; ++v) {
          for (int64_t k = k0; k < end; ++k) place(k, v);
        }
      }
    }
  }
}

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
