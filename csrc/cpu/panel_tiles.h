// multiply_panel of panel.h for bfloat16 on a processor's matrix unit (AMX): 16 x 16 sums and 16 packs of k at a time.
//
// The panel is the same, [K / 2][4][16][2]: 16 packs of one of its four registers' width are a tile. A tile register
// holds up to 16 rows; 32 x 32 sums (4 registers) take two tiles of `a` and two of the panel, or up to 16 x 64 sums one of `a`
// and four of the panel. Row tiles all have one height, since setting the registers up anew costs as much as a dozen
// products: the last ones may read and compute up to kRowsBeyond rows that nobody uses.
#pragma once

#include "product.h"

namespace lstmvid {
namespace LSTMVID_ISA {

#if defined(__AMX_BF16__)

constexpr int kTileHeight = 16;
constexpr int kTilePacks = 16;

// The layout of the tile registers, which belong to the thread; 0: not set up. A library may set them up otherwise between
// two calls of ours, never within one.
inline int& tile_height() {
  thread_local int height = 0;
  return height;
}

inline void set_up_tiles(int height) {
  if (tile_height() == height) return;
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } layout;
  for (int tile = 0; tile < 8; ++tile) {
    layout.row_bytes[tile] = 64;
    layout.rows[tile] =
        static_cast<uint8_t>(tile < 6 ? height : kTilePacks);  // 0-3: sums, 4-5: of a, 6-7: of the panel
  }
  asm volatile("" : : "r"(&layout) : "memory");  // GCC's intrinsics don't say that they read memory
  _tile_loadconfig(&layout);
  tile_height() = height;
}

// A thread's tile registers while it computes: left behind, they would be saved at each switch to another thread.
struct MatrixUnit {
  MatrixUnit() { tile_height() = 0; }
  ~MatrixUnit() {
    if (tile_height() != 0) _tile_release();
    tile_height() = 0;
  }
};

// acc[rows of one tile, 64], over the whole depth.
inline void multiply_single(const bfloat16* a, int64_t row_bytes, const bfloat16* panel, int64_t tiles, float* acc,
                            bool add) {
  constexpr int kBytes = 4 * 64;  // of a pack, and of a row of acc
  if (add) {
    _tile_loadd(0, acc, kBytes);
    _tile_loadd(1, acc + 16, kBytes);
    _tile_loadd(2, acc + 32, kBytes);
    _tile_loadd(3, acc + 48, kBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < tiles; ++k, a += 2 * kTilePacks, panel += kTilePacks * 128) {
    _tile_loadd(4, a, row_bytes);
    _tile_loadd(6, panel, kBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + 32, kBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, panel + 64, kBytes);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, panel + 96, kBytes);
    _tile_dpbf16ps(3, 4, 7);
  }
  _tile_stored(0, acc, kBytes);
  _tile_stored(1, acc + 16, kBytes);
  _tile_stored(2, acc + 32, kBytes);
  _tile_stored(3, acc + 48, kBytes);
}

// acc[rows of two tiles, or of one, 32]: half of a panel's columns.
template <bool kTwo>
inline void multiply_pair(const bfloat16* a, int64_t lda, const bfloat16* panel, int64_t tiles, float* acc, bool add,
                          Fetch fetch) {
  constexpr int kBytes = 4 * 64;
  const int64_t row_bytes = lda * 2;
  const bfloat16* lower = a + tile_height() * lda;
  float* lower_acc = acc + tile_height() * 64;
  if (add) {
    _tile_loadd(0, acc, kBytes);
    _tile_loadd(1, acc + 16, kBytes);
    if (kTwo) _tile_loadd(2, lower_acc, kBytes);
    if (kTwo) _tile_loadd(3, lower_acc + 16, kBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < tiles; ++k, a += 2 * kTilePacks, lower += 2 * kTilePacks, panel += kTilePacks * 128) {
    for (int64_t line = 0; line < fetch.bytes; line += kCacheLine) __builtin_prefetch(fetch.from + line, 0, 2);
    fetch.from += fetch.bytes;
    _tile_loadd(4, a, row_bytes);
    _tile_loadd(6, panel, kBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + 32, kBytes);
    _tile_dpbf16ps(1, 4, 7);
    if (kTwo) _tile_loadd(5, lower, row_bytes);
    if (kTwo) _tile_dpbf16ps(2, 5, 6);
    if (kTwo) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, acc, kBytes);
  _tile_stored(1, acc + 16, kBytes);
  if (kTwo) _tile_stored(2, lower_acc, kBytes);
  if (kTwo) _tile_stored(3, lower_acc + 16, kBytes);
}

// Null `after`: there is nothing to fetch.
inline void multiply_by_tiles(const bfloat16* a, int64_t lda, int64_t rows, const bfloat16* panel, int64_t packs,
                              float* acc, bool add, const bfloat16* after) {
  const int64_t row_tiles = (rows + kTileHeight - 1) / kTileHeight;
  set_up_tiles(static_cast<int>((rows + row_tiles - 1) / row_tiles));
  asm volatile("" : : : "memory");  // what tiles load was stored before
  if (row_tiles == 1) return multiply_single(a, 2 * lda, panel, packs / kTilePacks, acc, add);
  const int64_t height = 2 * tile_height(), pairs = (row_tiles + 1) / 2;
  const int64_t bytes = after == nullptr ? 0 : kTilePacks * 4 * 64 / (2 * pairs);  // of the next block, at each step
  for (int64_t k = 0; k < packs; k += kDepth) {
    const int64_t part = (packs - k < kDepth ? packs - k : kDepth) / kTilePacks;
    const char* next = reinterpret_cast<const char*>(k + kDepth < packs ? panel + (k + kDepth) * 128 : after);
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t pair = 0; pair < pairs; ++pair, next += part * bytes) {
        const bfloat16* const from = a + pair * height * lda + 2 * k;
        const bfloat16* const columns = panel + k * 128 + half * 64;
        float* const to = acc + pair * height * 64 + half * 32;
        if (2 * pair + 1 < row_tiles) {
          multiply_pair<true>(from, lda, columns, part, to, k > 0 || add, {next, bytes});
        } else {
          multiply_pair<false>(from, lda, columns, part, to, k > 0 || add, {next, bytes});
        }
      }
    }
  }
}

#else

struct MatrixUnit {};  // this processor has none

#endif

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
