// The part of a recurrent kernel that multiplies, which is the same in both directions.
//
//   sums [32 rows of a unit block, batch rows of a tile] = W [32, K] operands [K, tile]
//
// W as fragments, the first rounds of K in registers, the next in shared memory, the rest streamed from L2 each step; the
// operands from the exchange through a ring of stages. Every warp has one unit block and each k_warps-th pair of K.
#pragma once

#include "cuda/primitives/cluster.h"
#include "cuda/primitives/flags.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/recurrence_block.cuh"

namespace lstmvid {

template <Precision precision, int tile_blocks, int register_rounds, int most_ahead>
struct RecurrenceConfig {
  static constexpr Precision kPrecision = precision;
  static constexpr int kTileBlocks = tile_blocks;  // of 8 batch rows
  static constexpr int kRounds = register_rounds;  // whose weights stay in registers
  static_assert(tile_blocks >= 1 && tile_blocks <= 6, "more than 48 columns of sums spill on some chip");
  // A round's weights are loaded while the one before is multiplied: a small tile's products are too few to hide the load
  // otherwise. Beside weights in registers there is room for it up to `most_ahead` tile blocks.
  static constexpr bool kLoadsAhead = tile_blocks <= (register_rounds > 0 ? most_ahead : 5);
  // The sums and the weights fit beside each other only where the feeding warps can give registers away.
  static constexpr bool kIsServed = register_rounds == 0 || kCanMoveRegisters;
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
struct Multiplier {
  static constexpr int kTileBlocks = Config::kTileBlocks;

  const Recurrence& r;
  const Place& place;
  BlockMemory memory;  // cursors of its own
  const int unit_block, k_warp;
  const bool multiplies;  // 8 warps needn't divide by the unit blocks
  uint32_t parity = 0;    // of the item, for the partial sums' barriers
  Fragments in_registers[Config::kRounds > 0 ? Config::kRounds : 1];
  float sums[2][kTileBlocks][4];  // upper and lower 16 rows: fragments D of matrix.h

  LSTMVID_DEVICE Multiplier(const Recurrence& r, const Place& place, const BlockMemory& memory)
      : r(r),
        place(place),
        memory(memory),
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

  // The partial sums [own][tile block][source][upper, lower rows][lane] of the first source.
  LSTMVID_DEVICE float4* partial(int own, int n) const {
    const int sources = r.plan.cluster * r.g.k_warps;
    return reinterpret_cast<float4*>(shared_memory() + r.g.partials) + (own * kTileBlocks + n) * sources * 64 +
           lane_idx();
  }

  // The sums to the block that finalises the unit block.
  LSTMVID_DEVICE void send_partials() {
    const RecurrenceGeometry& g = r.g;
    const int to = unit_block / g.own;
    const int source = place.rank * g.k_warps + k_warp;
    wait(memory.partials_empty(to), parity ^ 1, r.max_polls);
#pragma unroll
    for (int n = 0; n < kTileBlocks; ++n) {
      float4* slot = partial(unit_block % g.own, n) + source * 64;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* x = sums[half][n];
        store_remote(slot + half * kWarpSize, to, make_float4(x[0], x[1], x[2], x[3]), memory.partials_full());
      }
    }
    finish_remote_stores(memory.partials_full(), to);
  }

  // Until all sums of the item have come that this block finalises.
  LSTMVID_DEVICE void wait_partials() {
    if (thread_idx() == 0) {
      const int sums = place.owned(r, place.rank) * kTileBlocks * r.plan.cluster * r.g.k_warps;
      expect_remote_stores(memory.partials_full(), static_cast<uint32_t>(sums * 1024));
    }
    if (r.plan.cluster > 1) {
      wait_in_cluster(memory.partials_full(), parity, r.max_polls);
    } else {
      wait(memory.partials_full(), parity, r.max_polls);
    }
  }

  // A lane's sums over all sources, in their order, of a pair of float4: upper and lower rows.
  LSTMVID_DEVICE void add_partials(const float4* slot, float4& upper, float4& lower) const {
    upper = slot[0];
    lower = slot[kWarpSize];
    const int sources = r.plan.cluster * r.g.k_warps;
#pragma unroll 2
    for (int source = 1; source < sources; ++source) {
      const float4 x = slot[source * 64], y = slot[source * 64 + kWarpSize];
      upper = make_float4(upper.x + x.x, upper.y + x.y, upper.z + x.z, upper.w + x.w);
      lower = make_float4(lower.x + y.x, lower.y + y.y, lower.z + y.z, lower.w + y.w);
    }
  }

  // All lanes of a warp, when they need the sums no more.
  LSTMVID_DEVICE void release_partials() {
    sync_lanes();
    if (lane_idx() == 0) {
      for (int rank = 0; rank < r.plan.cluster; ++rank) arrive_remote(memory.partials_empty(place.rank), rank);
    }
  }

  // By all warps that finalise, when they have stored what the next step multiplies.
  LSTMVID_DEVICE void publish_item(const Item& item) {
    sync_warps(1, kConsumerWarps * kWarpSize);
    if (item.is_last_pass() && thread_idx() == 0) {
      publish(tile_flags(r, place, item.tile) + place.cluster * r.g.owning_ranks + place.rank,
              static_cast<uint32_t>(item.step + 1));
    }
  }

  // Calls visit(own unit block, tile block) for this warp's share of an item's cells.
  template <class Visit>
  LSTMVID_DEVICE void for_cells(const Item& item, const Visit& visit) const {
    const int blocks = (place.tile_rows(r, item.tile) + 7) / 8, count = place.existing(r, item.pass) * blocks;
#pragma unroll 1
    for (int i = warp_idx(); i < count; i += kConsumerWarps) visit(i / blocks, i % blocks);
  }

  // The same for all items of a step: for what is carried from step to step.
  template <class Visit>
  LSTMVID_DEVICE void for_all_cells(const Visit& visit) const {
    Item item(r, place);
    for (; !item.done() && item.step == r.first_step; item.advance()) {
      for_cells(item, [&](int own, int n) { visit(item, own, n); });
    }
  }

  // What a lane carries, in so many words, for its cells of a unit block and 8 rows: the first; each next is kWarpSize further.
  template <int words>
  LSTMVID_DEVICE float* state(const Item& item, int own, int n) const {
    float* base = r.plan.cells_in_shared ? reinterpret_cast<float*>(shared_memory() + r.g.state)
                                         : reinterpret_cast<float*>(r.workspace + r.g.state_in_workspace) +
                                               block_idx() * r.g.state_words_per_block;
    const int64_t block = (static_cast<int64_t>(item.tile) * r.g.passes + item.pass) * r.g.own + own;
    return base + (block * kTileBlocks + n) * words * kWarpSize + lane_idx();
  }

  // Of a row of the item's tile: its steps, -1 where there is no such row.
  LSTMVID_DEVICE int32_t length(const Item& item, int row_in_tile) const {
    const int32_t* lengths = r.plan.cells_in_shared ? reinterpret_cast<const int32_t*>(shared_memory() + r.g.lengths)
                                                    : row_lengths(r, place);
    return lengths[item.tile * r.plan.tile_columns + row_in_tile];
  }
};

}  // namespace lstmvid
