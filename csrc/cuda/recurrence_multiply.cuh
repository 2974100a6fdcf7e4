// The part of a recurrent kernel that multiplies, each warp by itself; the same in both directions.
//
//   sums [32 rows of a unit block, batch rows of a tile] = W [32, K] operands [K, tile]
//
// W as fragments, the first rounds of K in registers, the next in shared memory, the rest streamed from L2 each step; the
// operands from the exchange through a ring of stages. Every warp has one unit block and each k_warps-th pair of K.
#pragma once

#include "cuda/primitives/cluster.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/recurrence_block.cuh"
#include "cuda/recurrence_sums.cuh"

namespace lstmvid {

template <Precision precision, int tile_blocks, int register_rounds, int most_ahead, bool warp_groups>
struct RecurrenceConfig {
  static constexpr Precision kPrecision = precision;
  static constexpr bool kWarpGroups = warp_groups;  // multiply, instead of warps by themselves
  static constexpr int kTileBlocks = tile_blocks;   // of 8 batch rows
  static constexpr int kRounds = register_rounds;   // whose weights stay in registers
  static_assert(tile_blocks >= 1 && tile_blocks <= 6, "more than 48 columns of sums spill on some chip");
  // A round's weights are loaded while the one before is multiplied: a small tile's products are too few to hide the load
  // otherwise. Beside weights in registers there is room for it up to `most_ahead` tile blocks.
  static constexpr bool kLoadsAhead = tile_blocks <= (register_rounds > 0 ? most_ahead : 5);
  // The sums and the weights fit beside each other only where the feeding warps can give registers away.
  static constexpr bool kIsServed = (register_rounds == 0 || kCanMoveRegisters) && (!warp_groups || kHasWarpGroups);
};

// A warp's weights of a round.
struct Fragments {
  FragmentA of[2][2];  // [k-step][upper, lower 16 rows]

  LSTMVID_DEVICE void load(const uint8_t* packed) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      of[i / 2][i % 2] = reinterpret_cast<const FragmentA*>(packed)[i * kWarpSize + lane_idx()];
    }
  }
};

template <class Config>
struct WarpMultiplier : Sums<Config> {
  using Base = Sums<Config>;
  using Base::kTileBlocks;
  using Base::memory, Base::parity, Base::place, Base::r;

  const int unit_block, k_warp;
  const bool multiplies;  // 8 warps needn't divide by the unit blocks
  Fragments in_registers[Config::kRounds > 0 ? Config::kRounds : 1];
  float sums[2][kTileBlocks][4];  // upper and lower 16 rows: fragments D of matrix.h

  LSTMVID_DEVICE WarpMultiplier(const Recurrence& r, const Place& place, const BlockMemory& memory)
      : Base(r, place, memory),
        unit_block(warp_idx() % r.plan.unit_blocks),
        k_warp(warp_idx() / r.plan.unit_blocks),
        multiplies(k_warp < r.g.k_warps) {}

  // This warp's fragments in a round of weights.
  LSTMVID_DEVICE const uint8_t* mine(const uint8_t* round) const {
    return round + (k_warp * r.plan.unit_blocks + unit_block) * kFragmentBytes;
  }

  LSTMVID_DEVICE void load_registers() {
    if constexpr (Config::kRounds > 0) {
      if (!multiplies) return;
      const uint8_t* packed = packed_weights(r, place, 0);
#pragma unroll
      for (int round = 0; round < Config::kRounds; ++round) {
        in_registers[round].load(mine(packed + round * r.g.round_bytes));
      }
    }
  }

  LSTMVID_DEVICE void multiply_round(const Fragments& weights, const uint8_t* operands) {
#pragma unroll
    for (int n = 0; n < kTileBlocks; ++n) {
      uint32_t b[4];  // [K 64 bytes, 8 rows]
      load_matrices(b, operands + n * 8 * r.g.stage_row_bytes);
#pragma unroll
      for (int k_step = 0; k_step < 2; ++k_step) {
        multiply<Config::kPrecision>(sums[0][n], weights.of[k_step][0].x, b[2 * k_step], b[2 * k_step + 1]);
        multiply<Config::kPrecision>(sums[1][n], weights.of[k_step][1].x, b[2 * k_step], b[2 * k_step + 1]);
      }
    }
  }

  // sums = this warp's part of the product.
  LSTMVID_DEVICE void multiply_item(const Item& item) {
    const LstmSequencePlan& plan = r.plan;
    const RecurrenceGeometry& g = r.g;
    const uint64_t polls = r.max_polls;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kTileBlocks; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[half][n][i] = 0.0f;
      }
    }
    const int lane = lane_idx();
    const int lane_offset = lane % 8 * g.stage_row_bytes + lane / 8 * 16 + k_warp * kPairBytes;
    const uint8_t* operands = nullptr;
    int left_in_stage = 0, left = g.rounds;
    const auto enter = [&] {
      if (left_in_stage == 0) {
        memory.operands.wait_full(polls);
        operands = memory.operands.here() + lane_offset;
        left_in_stage = plan.hidden_stage_rounds;
      }
    };
    const auto leave = [&] {
      --left;
      operands += g.k_warps * kPairBytes;
      if (--left_in_stage == 0 || left == 0) {
        memory.operands.release();
        left_in_stage = 0;
      }
    };

    if constexpr (Config::kRounds > 0) {
#pragma unroll
      for (int round = 0; round < Config::kRounds; ++round) {
        enter();
        multiply_round(in_registers[round], operands);
        leave();
      }
    }
    Fragments weights;
    const uint8_t* resident = mine(shared_memory() + g.resident + item.pass * plan.resident_rounds * g.round_bytes);
    if (Config::kLoadsAhead && plan.resident_rounds > 0) weights.load(resident);
#pragma unroll 1
    for (int round = 0; round < plan.resident_rounds; ++round) {
      Fragments next;
      if constexpr (Config::kLoadsAhead) {
        resident += g.round_bytes;
        if (round + 1 < plan.resident_rounds) next.load(resident);
      } else {
        weights.load(resident + round * g.round_bytes);
      }
      enter();
      multiply_round(weights, operands);
      leave();
      if constexpr (Config::kLoadsAhead) weights = next;
    }
#pragma unroll 1
    for (int round = 0; round < g.streamed_rounds; ++round) {
      enter();
      memory.weights.wait_full(polls);
      weights.load(mine(memory.weights.here()));
      multiply_round(weights, operands);
      memory.weights.release();
      leave();
    }
  }

  // The sums to the block that finalises the unit block.
  LSTMVID_DEVICE void send_partials() {
    const RecurrenceGeometry& g = r.g;
    const int to = unit_block / g.own;
    const int source = place.rank * g.k_warps + k_warp;
    wait(memory.partials_empty(to), parity ^ 1, r.max_polls);
#pragma unroll
    for (int n = 0; n < kTileBlocks; ++n) {
      float4* slot = Base::partial(unit_block % g.own, n) + source * 64;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* x = sums[half][n];
        store_remote(slot + half * kWarpSize, to, make_float4(x[0], x[1], x[2], x[3]), memory.partials_full());
      }
    }
    finish_remote_stores(memory.partials_full(), to);
  }
};

}  // namespace lstmvid
