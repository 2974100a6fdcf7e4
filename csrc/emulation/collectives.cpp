// What the 32 lanes of a warp do together: votes, matrix loads and matrix products.
#include <algorithm>
#include <cstring>

#include "cuda/primitives/matrix.h"
#include "emulation/machine.h"
#include "emulation/sanitizers.h"

namespace lstmvid::emulation {
namespace {

void load_for_all(Warp& warp) {
  ++statistics().matrix_loads;
  ++machine.progress;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const Operand* rows = warp.operands + 8 * matrix;
    int most = 0;
    for (int i = 0; i < 8; ++i) {  // rows of other addresses in the same banks as row i's
      int same = 1;
      for (int j = 0; j < i; ++j) {
        const auto one = reinterpret_cast<uintptr_t>(rows[i].in), other = reinterpret_cast<uintptr_t>(rows[j].in);
        same += one % 128 == other % 128 && one != other;
      }
      most = std::max(most, same);
    }
    statistics().matrix_load_conflicts += static_cast<uint64_t>(most - 1);
    for (int lane = 0; lane < 32; ++lane) {
      const auto* row = static_cast<const uint32_t*>(rows[lane / 4].in);
      static_cast<uint32_t*>(warp.operands[lane].out)[matrix] = row[lane % 4];
    }
  }
}

// The operands of one product, as PTX's tables spread them over the lanes, and D.
template <int kDepth>
struct Tile {
  float a[16][kDepth], b[kDepth][8], d[16][8];
};

template <int kDepth, class Unpack>
void multiply_for_all(Warp& warp, Unpack unpack) {
  constexpr int kPerRegister = kDepth / 8;  // elements
  Tile<kDepth> tile;
  for (int lane = 0; lane < 32; ++lane) {
    const Operand& operand = warp.operands[lane];
    const int row = lane / 4, column = lane % 4;
    const auto* a = static_cast<const uint32_t*>(operand.in);
    const auto* d = static_cast<const float*>(operand.out);
    const uint32_t b[2] = {operand.b0, operand.b1};
    for (int r = 0; r < 4; ++r) {
      for (int i = 0; i < kPerRegister; ++i) {
        tile.a[row + 8 * (r & 1)][kPerRegister * (column + 4 * (r >> 1)) + i] = unpack(a[r], i);
      }
      tile.d[row + 8 * (r >> 1)][2 * column + (r & 1)] = d[r];
    }
    for (int r = 0; r < 2; ++r) {
      for (int i = 0; i < kPerRegister; ++i) tile.b[kPerRegister * (column + 4 * r) + i][row] = unpack(b[r], i);
    }
  }
  for (int m = 0; m < 16; ++m) {
    float sums[8];
    std::copy_n(tile.d[m], 8, sums);
    for (int k = 0; k < kDepth; ++k) {
      for (int n = 0; n < 8; ++n) sums[n] += tile.a[m][k] * tile.b[k][n];
    }
    std::copy_n(sums, 8, tile.d[m]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* d = static_cast<float*>(warp.operands[lane].out);
    for (int r = 0; r < 4; ++r) d[r] = tile.d[lane / 4 + 8 * (r >> 1)][2 * (lane % 4) + (r & 1)];
  }
  ++statistics().products;
  ++machine.progress;
}

void multiply_bf16_for_all(Warp& warp) {
  multiply_for_all<16>(warp, [](uint32_t x, int i) { return float_of(i == 0 ? x << 16 : x & 0xffff0000u); });
}
void multiply_f16_for_all(Warp& warp) {
  multiply_for_all<16>(warp, [](uint32_t x, int i) { return float_of_half(static_cast<uint16_t>(x >> 16 * i)); });
}
void multiply_tf32_for_all(Warp& warp) {
  multiply_for_all<8>(warp, [](uint32_t x, int) { return float_of(x & 0xffffe000u); });
}

}  // namespace

const char* name_of(Meeting meeting) {
  switch (meeting) {
    case Meeting::kSyncLanes: return "sync_lanes()";
    case Meeting::kAllLanes: return "all_lanes()";
    case Meeting::kLoadMatrices: return "load_matrices()";
    case Meeting::kMultiply: return "multiply()";
    case Meeting::kFenceProducts: return "fence_products()";
    case Meeting::kMultiplyGroup: return "multiply_group()";
    case Meeting::kCommitProducts: return "commit_products()";
    case Meeting::kWaitProducts: return "wait_products()";
  }
  return "";
}

void meet(Meeting meeting, void (*work)(Warp&)) {
  Warp& warp = *running->warp;
  const uint32_t bit = 1u << running->lane;
  if (warp.ended != 0) fail("%s, but lanes %08x of the warp have ended", name_of(meeting), warp.ended);
  if (warp.arrived == 0) {
    warp.meeting = meeting;
  } else if (warp.meeting != meeting) {
    fail("%s, while lanes %08x of the warp wait in %s", name_of(meeting), warp.arrived, name_of(warp.meeting));
  }
  warp.arrived |= bit;
  if (warp.arrived != ~0u) {
    suspend(Waits::kLanes);
    return;
  }
  warp.arrived = 0;
  work(warp);
  make_ready(&warp, ~bit);
  maybe_yield();
}

void sync_lanes() {
  Warp& warp = *running->warp;
  const uint64_t round = warp.syncs;
  release(warp.order.of(round));
  meet(Meeting::kSyncLanes, [](Warp& of) { ++of.syncs; });
  acquire(warp.order.of(round));
}

bool all_lanes(bool predicate) {
  Warp& warp = *running->warp;
  warp.operands[running->lane].b0 = predicate;
  meet(Meeting::kAllLanes, [](Warp& of) {
    bool all = true;
    for (const Operand& operand : of.operands) all = all && operand.b0 != 0;
    for (Operand& operand : of.operands) operand.b1 = all;
  });
  return warp.operands[running->lane].b1 != 0;
}

void load_matrices(uint32_t* x, const void* shared_row) {
  const Block& block = *running->warp->block;
  if (reinterpret_cast<uintptr_t>(shared_row) % 16 != 0)
    fail("load_matrices() of a row that isn't aligned to 16 bytes");
  if (!is_shared(block, shared_row, 16)) fail("load_matrices() of a row outside the block's shared memory");
  report_read(shared_row, 16);
  running->warp->operands[running->lane] = {x, shared_row, 0, 0};
  meet(Meeting::kLoadMatrices, load_for_all);
}

void multiply(Operands operands, float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  running->warp->operands[running->lane] = {d, a, b0, b1};
  switch (operands) {
    case Operands::kBFloat16: meet(Meeting::kMultiply, multiply_bf16_for_all); break;
    case Operands::kFloat16: meet(Meeting::kMultiply, multiply_f16_for_all); break;
    case Operands::kTf32: meet(Meeting::kMultiply, multiply_tf32_for_all); break;
  }
}

}  // namespace lstmvid::emulation
