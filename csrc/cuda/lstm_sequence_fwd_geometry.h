// How a plan cuts the recurrence into blocks, passes, rounds and tiles, and where everything lies in memory. Host code.
//
// Unit block: 8 hidden units, 32 rows of W_hh. Pair: 64 bytes of K, two matrix instructions' worth. A cluster multiplies
// `unit_blocks` unit blocks in a pass, warp (m, k) of each of its blocks unit block m with every k_warps-th pair of the
// block's slice of K; of the products, each block of the cluster finalises `own` unit blocks.
#pragma once

#include <cstdint>

#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {

constexpr int kConsumerWarps = 8;
constexpr int kFeedingWarps = 4;  // of which three have work: registers are handed over by fours
constexpr int kFwdThreads = 32 * (kConsumerWarps + kFeedingWarps);
constexpr int kUnitBlock = 8;
constexpr int kPairBytes = 64;
constexpr int kFragmentBytes = 2048;  // of weights: one pair of one unit block
constexpr int kRegisterRounds = 6;
constexpr int kNarrowTileBlocks = 6, kWideTileBlocks = 4;  // the widest tiles, of operands of 2 and of 4 bytes
constexpr int kProjectionSlots = 2;
constexpr int kConstants = 8;  // words a unit: bias i f g o, peephole i f o, its place in the exchange
constexpr int64_t kAlignment = 128;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t align_up(int64_t bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }

struct FwdGeometry {
  int element_bytes;
  int teams;  // groups * replicas
  // The hidden units.
  int total_unit_blocks, cluster_unit_blocks, passes, own, owning_ranks;
  // K.
  int k_warps, slice_pairs, rounds, streamed_rounds, stages;
  int64_t slice_units;  // hidden units in a block's slice of K
  int stage_row_bytes;  // a batch row of a stage of h: padded, so that rows lie in different banks
  int64_t stage_bytes;  // of shared memory; a stage lies alike in the exchange, and is copied as one piece
  int64_t round_bytes;  // of weights
  // The batch.
  int replica_rows, tiles, tile_blocks;
  int projection_row_bytes, weight_slots;
  // Shared memory: offset of each region.
  int64_t hidden_ring, weight_ring, resident, partials, projections, constants, cells, lengths, shared_bytes;
  // Workspace: offset of each region, and sizes.
  int64_t flags, row_lengths, exchange, packed, cells_in_workspace, workspace_bytes;
  int64_t flags_per_tile, exchange_tile_bytes, exchange_slot_bytes, packed_group_bytes, cells_per_block;
};

// Throws std::invalid_argument if the plan is no plan for this call.
FwdGeometry fwd_geometry(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan);

}  // namespace lstmvid
