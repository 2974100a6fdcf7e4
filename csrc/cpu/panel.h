// The recurrent product on packed weights: acc[rows, 4V] = a[rows, K] * panel[K, 4V], V lanes a register.
//
// A panel holds K rows of four registers: the four gates of V units (forward), or 4V neighbouring units (backward).
// It is read in blocks of kDepth rows that stay in the first-level cache while every row tile passes over them.
// Each element is one chain of multiply-adds in the order of k, whatever the tile: the same bits for any number of
// threads and any batch.
#pragma once

#include "simd.h"

namespace lstmvid {
namespace LSTMVID_ISA {

constexpr int64_t kDepth = 128;     // 32 KB of float panel with AVX-512
constexpr int64_t kPanelRows = 96;  // rows of `a` an accumulator buffer holds: 24 KB
template <class Scalar>
constexpr int64_t kPanelWidth = 4 * kLanes<Scalar>;

template <int kRows, class Scalar>
inline void multiply_tile(const Scalar* a, int64_t lda, const Scalar* panel, int64_t depth, Scalar* acc, bool first) {
  constexpr int kV = kLanes<Scalar>;
  Vec<Scalar> sum[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < 4; ++j) sum[r][j] = first ? Vec<Scalar>{} : load(acc + (r * 4 + j) * kV, kV);
  }
  for (int64_t k = 0; k < depth; ++k, panel += 4 * kV) {
    Vec<Scalar> column[4];
    for (int j = 0; j < 4; ++j) column[j] = load(panel + j * kV, kV);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Scalar value = a[r * lda + k];
      for (int j = 0; j < 4; ++j) sum[r][j] += value * column[j];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < 4; ++j) store(acc + (r * 4 + j) * kV, sum[r][j], kV);
  }
}

template <class Scalar>
inline void multiply_rows(int rows, const Scalar* a, int64_t lda, const Scalar* panel, int64_t depth, Scalar* acc,
                          bool first) {
  static_assert(kTileRows <= 6, "add the missing cases");
  switch (rows) {
    case 1: return multiply_tile<1>(a, lda, panel, depth, acc, first);
    case 2: return multiply_tile<2>(a, lda, panel, depth, acc, first);
#if defined(__AVX2__)
    case 3: return multiply_tile<3>(a, lda, panel, depth, acc, first);
#endif
#if defined(__AVX512F__)
    case 4: return multiply_tile<4>(a, lda, panel, depth, acc, first);
    case 5: return multiply_tile<5>(a, lda, panel, depth, acc, first);
    case 6: return multiply_tile<6>(a, lda, panel, depth, acc, first);
#endif
  }
}

// a: [rows, K] with row stride lda, panel: [K, 4V], acc: [rows, 4V]; rows <= kPanelRows.
template <class Scalar>
inline void multiply_panel(const Scalar* a, int64_t lda, int64_t rows, const Scalar* panel, int64_t depth,
                           Scalar* acc) {
  constexpr int64_t kWidth = kPanelWidth<Scalar>;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t part = depth - k < kDepth ? depth - k : kDepth;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      // Tiles of nearly equal height: a last tile of one row would leave the multipliers idle.
      const int64_t row = rows * tile / tiles, end = rows * (tile + 1) / tiles;
      multiply_rows(static_cast<int>(end - row), a + row * lda + k, lda, panel + k * kWidth, part, acc + row * kWidth,
                    k == 0);
    }
  }
}

// Packs columns [0, count) of four sources into a panel, source j's column v at panel[k][j][v], zeros beyond count[j].
// Element (k, v) of source j is from[j][k * k_stride + v * v_stride].
template <class Scalar, class Stored>
inline void pack_panel(const Stored* const from[4], const int count[4], int64_t k_stride, int64_t v_stride,
                       int64_t depth, Scalar* panel) {
  constexpr int kV = kLanes<Scalar>;
  constexpr int64_t kRun = 64;  // of each column at a time: long enough to stream, and what it fills stays in cache
  for (int64_t k0 = 0; k0 < depth; k0 += kRun) {
    const int64_t end = k0 + kRun < depth ? k0 + kRun : depth;
    for (int j = 0; j < 4; ++j) {
      if (v_stride == 1) {
        for (int64_t k = k0; k < end; ++k) {
          store(panel + (k * 4 + j) * kV, count[j] > 0 ? load(from[j] + k * k_stride, count[j]) : Vec<Scalar>{}, kV);
        }
        continue;
      }
      for (int v = 0; v < kV; ++v) {
        for (int64_t k = k0; k < end; ++k) {
          panel[(k * 4 + j) * kV + v] = v < count[j] ? load(from[j] + k * k_stride + v * v_stride, 1)[0] : Scalar{};
        }
      }
    }
  }
}

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
