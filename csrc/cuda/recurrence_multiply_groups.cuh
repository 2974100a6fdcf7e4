// The part of a recurrent kernel that multiplies, on chips where warp groups do it; the same in both directions.
//
//   sums [64 rows of two unit blocks, batch rows of a tile] = W [64, K] operands [K, tile]
//
// A group reads the operands once where four warps by themselves read them four times, needs no split of K inside the block
// up to four unit blocks, and half the registers for its sums: so more rounds of weights stay in registers. Those are
// fragments as in recurrence_multiply.cuh, all others core matrices in shared memory. Warp w of a group has the upper or lower
// 16 rows (w % 2) of the group's unit block w / 2, as fragments D of matrix.h.
//
// Products run while the next ones are issued: a stage of operands is released a stage later, when they have read it.
#pragma once

#include "cuda/primitives/cluster.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/warp_group.h"
#include "cuda/recurrence_block.cuh"
#include "cuda/recurrence_sums.cuh"

namespace lstmvid {

constexpr int kGroupRows = 64;  // two unit blocks

template <class Config>
struct GroupMultiplier : Sums<Config> {
  using Base = Sums<Config>;
  using Base::kTileBlocks;
  using Base::memory, Base::parity, Base::place, Base::r;
  static constexpr int kOperandChunk = kTileBlocks * kCoreMatrixBytes;  // the geometry's stage_chunk_bytes
  static constexpr int kWeightChunk = kGroupRows * kPieceBytes;
  static constexpr int kStepBytes = kPairBytes / 2, kStepChunks = kStepBytes / kPieceBytes;
  static constexpr bool multiplies = true;

  const int first_unit_block, k_group;                                   // of this warp's group
  FragmentA in_registers[Config::kRounds > 0 ? Config::kRounds : 1][2];  // [round][k-step]
  float sums[kTileBlocks][4];

  LSTMVID_DEVICE GroupMultiplier(const Recurrence& r, const Place& place, const BlockMemory& memory)
      : Base(r, place, memory),
        first_unit_block(warp_idx() / kGroupWarps * 2 % r.plan.unit_blocks),
        k_group(warp_idx() / kGroupWarps * 2 / r.plan.unit_blocks) {}

  LSTMVID_DEVICE int unit_block() const { return first_unit_block + warp_idx() % kGroupWarps / 2; }

  // This group's weights in a round.
  LSTMVID_DEVICE const uint8_t* mine(const uint8_t* round) const {
    return round + (k_group * r.plan.unit_blocks + first_unit_block) * kFragmentBytes;
  }

  LSTMVID_DEVICE void load_registers() {
    if constexpr (Config::kRounds > 0) {
      const uint8_t* packed = mine(packed_weights(r, place, 0)) + warp_idx() % kGroupWarps / 2 * kFragmentBytes;
#pragma unroll
      for (int round = 0; round < Config::kRounds; ++round) {
        const auto* fragments = reinterpret_cast<const FragmentA*>(packed + round * r.g.round_bytes);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          in_registers[round][step] = fragments[(2 * step + warp_idx() % 2) * kWarpSize + lane_idx()];
        }
      }
    }
  }

  // One batch of two products. Their fence and their commit are here, in one straight line: elsewhere the compiler would make
  // of the commit an empty product to wait for, and put in fences of its own.
  LSTMVID_DEVICE void multiply_round(const FragmentA (&weights)[2], uint64_t operands) {
    fence_products();
    multiply_group<Config::kPrecision>(sums, weights[0], operands);
    multiply_group<Config::kPrecision>(sums, weights[1], moved(operands, kStepChunks * kOperandChunk));
    commit_products();
  }
  LSTMVID_DEVICE void multiply_round(uint64_t weights, uint64_t operands) {
    fence_products();
    multiply_group<Config::kPrecision>(sums, weights, operands);
    multiply_group<Config::kPrecision>(sums, moved(weights, kStepChunks * kWeightChunk),
                                       moved(operands, kStepChunks * kOperandChunk));
    commit_products();
  }

  // sums = this warp's rows of the group's part of the product.
  LSTMVID_DEVICE void multiply_item(const Item& item) {
    const LstmSequencePlan& plan = r.plan;
    const RecurrenceGeometry& g = r.g;
    const uint64_t polls = r.max_polls;
#pragma unroll
    for (int n = 0; n < kTileBlocks; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
    }
    fence_products(sums);
    constexpr int kRoundChunks = kPairBytes / kPieceBytes;
    const int first = k_group * kRoundChunks * kOperandChunk, next = g.k_warps * kRoundChunks * kOperandChunk;
    uint64_t operands = 0;
    int round_of_stage = 0, left = g.rounds;
    const auto enter = [&] {
      if (round_of_stage == 0) {
        memory.operands.wait_full(polls);
        operands = matrix_descriptor(memory.operands.here() + first, kOperandChunk);
      }
    };
    // Whether the stage before this one has been read, once all rounds but the last are done.
    const auto frees_a_stage = [&] { return round_of_stage == 0 && left < g.rounds; };
    const auto leave = [&] {
      --left;
      operands = moved(operands, next);
      if (++round_of_stage < plan.hidden_stage_rounds && left > 0) return;
      round_of_stage = 0;
      memory.operands.advance();
    };

    if constexpr (Config::kRounds > 0) {
#pragma unroll
      for (int round = 0; round < Config::kRounds; ++round) {
        enter();
        multiply_round(in_registers[round], operands);
        if (frees_a_stage()) {
          wait_products<1>();
          memory.operands.release_before();
        }
        leave();
      }
    }
    const uint8_t* resident = shared_memory() + g.resident + item.pass * plan.resident_rounds * g.round_bytes;
    uint64_t weights = matrix_descriptor(mine(resident), kWeightChunk);
    int streamed = -plan.resident_rounds;
    const auto multiply_next = [&] {
      enter();
      if (streamed >= 0) {
        memory.weights.wait_full(polls);
        weights = matrix_descriptor(mine(memory.weights.here()), kWeightChunk);
      }
      multiply_round(weights, operands);
      weights = moved(weights, static_cast<int>(g.round_bytes));
      if (streamed >= 0 || frees_a_stage()) wait_products<1>();
      if (streamed > 0) memory.weights.release_before();
      if (streamed >= 0) memory.weights.advance();
      if (frees_a_stage()) memory.operands.release_before();
      leave();
      ++streamed;
    };
    // By itself, where no rounds were before: at a loop that products begin in, the compiler waits for each of them.
    if constexpr (Config::kRounds == 0) multiply_next();
#pragma unroll 1
    while (streamed < g.streamed_rounds) multiply_next();
    wait_products(sums);
    memory.operands.release_before();
    if (g.streamed_rounds > 0) memory.weights.release_before();
  }

  // The sums to the block that finalises the unit block.
  LSTMVID_DEVICE void send_partials() {
    const RecurrenceGeometry& g = r.g;
    const int to = unit_block() / g.own, half = warp_idx() % 2;
    const int source = place.rank * g.k_warps + k_group;
    wait(memory.partials_empty(to), parity ^ 1, r.max_polls);
#pragma unroll
    for (int n = 0; n < kTileBlocks; ++n) {
      float4* slot = Base::partial(unit_block() % g.own, n) + source * 64 + half * kWarpSize;
      const float* x = sums[n];
      store_remote(slot, to, make_float4(x[0], x[1], x[2], x[3]), memory.partials_full());
    }
    finish_remote_stores(memory.partials_full(), to);
  }
};

}  // namespace lstmvid
