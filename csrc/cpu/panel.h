// The recurrent product on packed weights: acc[rows, 4V] = a[rows, K] * panel[K, 4V], V lanes a register.
//
// A panel holds four registers' width of columns: the four gates of V units (forward), or 4V neighbouring units
// (backward). It is read in blocks of kDepth rows that stay in the first-level cache while every row tile passes over
// them. Each element is a chain of multiply-adds for each block, whatever the tile, and the blocks' sums are added in
// order: the same bits for any number of threads and any batch, and an error that grows as slowly as a library's.
//
// Weights often lie in the third-level cache. The processor's prefetcher brings a block as the first row tile reads it
// and rests while the others do; so these fetch the block that comes next, and reading hides behind multiplying.
#pragma once

#include "panel_tiles.h"
#include "product.h"

namespace lstmvid {
namespace LSTMVID_ISA {

template <int kRows, class Product, bool kFetches, class Operand, class Scalar>
inline void multiply_tile(const Operand* a, int64_t lda, const Operand* panel, int64_t packs, Scalar* acc, bool first,
                          Fetch fetch) {
  constexpr int kV = kLanes<Scalar>;
  Vec<Scalar> sum[kRows][4] = {};
  for (int64_t k = 0; k < packs; ++k, panel += kPackWidth<Product>) {
    typename Product::Packs column[4];
    for (int j = 0; j < 4; ++j)
      column[j] = load_bits<typename Product::Packs>(panel + j * kV * Product::kPack, kV * Product::kPack);
    if constexpr (kFetches) {
      __builtin_prefetch(fetch.from, 0, 2);  // to the second level
      __builtin_prefetch(fetch.from + kCacheLine, 0, 2);
      fetch.from += fetch.bytes;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Product::Packs value = Product::broadcast(a + r * lda + k * Product::kPack);
      for (int j = 0; j < 4; ++j) sum[r][j] = Product::add(sum[r][j], value, column[j]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < 4; ++j) {
      Scalar* const to = acc + (r * 4 + j) * kV;
      store(to, first ? sum[r][j] : load(to, kV) + sum[r][j], kV);
    }
  }
}

template <int kRows, class Product, class Operand, class Scalar>
inline void multiply_fetching(const Operand* a, int64_t lda, const Operand* panel, int64_t packs, Scalar* acc,
                              bool first, Fetch fetch) {
  if (fetch.bytes == 0) return multiply_tile<kRows, Product, false>(a, lda, panel, packs, acc, first, fetch);
  multiply_tile<kRows, Product, true>(a, lda, panel, packs, acc, first, fetch);
}

template <class Product, class Operand, class Scalar>
inline void multiply_rows(int rows, const Operand* a, int64_t lda, const Operand* panel, int64_t packs, Scalar* acc,
                          bool first, Fetch fetch) {
  static_assert(kTileRows <= 6, "add the missing cases");
  switch (rows) {
    case 1: return multiply_fetching<1, Product>(a, lda, panel, packs, acc, first, fetch);
    case 2: return multiply_fetching<2, Product>(a, lda, panel, packs, acc, first, fetch);
#if defined(__AVX2__)
    case 3: return multiply_fetching<3, Product>(a, lda, panel, packs, acc, first, fetch);
#endif
#if defined(__AVX512F__)
    case 4: return multiply_fetching<4, Product>(a, lda, panel, packs, acc, first, fetch);
    case 5: return multiply_fetching<5, Product>(a, lda, panel, packs, acc, first, fetch);
    case 6: return multiply_fetching<6, Product>(a, lda, panel, packs, acc, first, fetch);
#endif
  }
}

// a: [rows, K] with row stride lda, zero up to packs_of(K), and kRowsBeyond more rows; panel: [K, 4V]; acc: [rows, 4V],
// of kPanelRows rows. `add`: to what acc holds already. `after`: the panel that is read after this one; null where the
// second-level cache holds panels: there is nothing to fetch, and sums stay in registers for the whole depth.
template <class Product, class Operand, class Scalar>
inline void multiply_panel(const Operand* a, int64_t lda, int64_t rows, const Operand* panel, int64_t depth,
                           Scalar* acc, bool add, const Operand* after) {
  const int64_t packs = packs_of<Product>(depth);
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<Operand, bfloat16>)
    return multiply_by_tiles(a, lda, rows, panel, packs, acc, add, after);
#endif
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  // A single tile reads without rest. Two lines a pack, as a tile fetches, are enough for any number of them.
  const int64_t fetchers = tiles == 1 || after == nullptr ? 0 : (tiles < kFetchers ? tiles : kFetchers);
  const int64_t bytes = fetchers == 0 ? 0 : kPackWidth<Product> * sizeof(Operand) / fetchers;
  const int64_t at_once = after == nullptr ? packs : kDepth;
  for (int64_t k = 0; k < packs; k += at_once) {
    const int64_t part = packs - k < at_once ? packs - k : at_once;
    const Operand* next = k + at_once < packs ? panel + (k + at_once) * kPackWidth<Product> : after;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      // Tiles of nearly equal height: a last tile of one row would leave the multipliers idle.
      const int64_t row = rows * tile / tiles, end = rows * (tile + 1) / tiles;
      const Fetch fetch = {reinterpret_cast<const char*>(next) + tile * part * bytes, tile < fetchers ? bytes : 0};
      multiply_rows<Product>(static_cast<int>(end - row), a + row * lda + k * Product::kPack, lda,
                             panel + k * kPackWidth<Product>, part, acc + row * kAccWidth<Scalar>, k == 0 && !add,
                             fetch);
    }
  }
}

template <class Product>
constexpr int64_t panel_size(int64_t depth) {
  return packs_of<Product>(depth) * kPackWidth<Product>;
}

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
