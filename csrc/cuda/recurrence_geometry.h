// How a plan cuts a recurrence into blocks, passes, rounds and tiles, and where everything lies in memory. Host code.
//
// Each step computes, for every unit and batch row, sums over K operands that the step before has left in the exchange: the
// forward pass four gates a unit from h, the backward pass dh of a unit from the gates' gradients.
//
// Unit block: 32 rows of the product, which is 8 units forward and 32 backward. Pair: 64 bytes of K, two matrix
// instructions' worth. A cluster multiplies `unit_blocks` unit blocks in a pass, warp (m, k) of each of its blocks unit
// block m with every k_warps-th pair of the block's slice of K; of the sums, each block of the cluster finalises `own`
// unit blocks. Warp groups do the same with two unit blocks each: there k_warps counts the groups along K.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "lstmvid/dtype.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {

constexpr int kConsumerWarps = 8;
constexpr int kFeedingWarps = 4;  // of which three have work: registers are handed over by fours
constexpr int kRecurrenceThreads = 32 * (kConsumerWarps + kFeedingWarps);
constexpr int kPairBytes = 64;
constexpr int kFragmentBytes = 2048;  // of weights: one pair of one unit block
constexpr int kRegisterRounds = 6;
constexpr int kGroupRegisterRounds = 16;                   // of warp groups, whose sums take half the registers
constexpr int kNarrowTileBlocks = 6, kWideTileBlocks = 4;  // the widest tiles, of operands of 2 and of 4 bytes
constexpr int kConstants = 8;                              // words a unit, the last one its place in the exchange
constexpr int64_t kAlignment = 128;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t align_up(int64_t bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }

// What tells the two directions apart.
struct RecurrenceShape {
  int64_t units, batch;
  int groups, element_bytes;
  int unit_block;           // units of 32 rows of the product
  int k_of_unit;            // operands that a unit leaves in the exchange
  int input_bytes_of_unit;  // that the gate arithmetic reads for a unit and row, besides the sums
  int input_slots;          // of their ring
  int state_words_of_lane;  // that a lane carries from step to step for its cells of a unit block and 8 rows
};

struct RecurrenceGeometry {
  int element_bytes, unit_block, k_of_unit;
  int64_t units;
  int teams;  // groups * replicas
  // The units.
  int total_unit_blocks, cluster_unit_blocks, passes, own, owning_ranks;
  // K.
  int k_warps, slice_pairs, rounds, streamed_rounds, stages;
  int64_t slice;      // elements of K that a block multiplies
  int stage_k_bytes;  // of K that a stage of operands holds of each batch row
  // Where they lie in it: from row to row, and from 16 bytes of K to the next. For warps, rows that are padded, so that they
  // lie in different banks; for warp groups, the core matrices of warp_group.h.
  int stage_row_bytes, stage_chunk_bytes;
  int64_t stage_bytes;  // of shared memory; a stage lies alike in the exchange, and is copied as one piece
  int64_t round_bytes;  // of weights
  int sending_warps;    // of a block, that have sums of one unit block
  // The batch.
  int replica_rows, tiles, tile_blocks;
  int input_row_bytes, input_slots, weight_slots;
  // Shared memory: offset of each region.
  int64_t operand_ring, weight_ring, resident, partials, inputs, constants, state, lengths, shared_bytes;
  // Workspace: offset of each region, and sizes.
  int64_t flags, row_lengths, exchange, packed, state_in_workspace, workspace_bytes;
  int64_t flags_per_tile, exchange_tile_bytes, exchange_slot_bytes, packed_group_bytes, state_words_per_block;
};

// What every part of the kernels reads.
struct Recurrence {
  int64_t steps, batch;
  int64_t first_step, end_step;  // of this launch
  uint32_t reverse;
  uint64_t max_polls;
  uint8_t* workspace;
  LstmSequencePlan plan;
  RecurrenceGeometry g;
};

// Throws std::invalid_argument if the plan is no plan for this shape. `what` names the function that was called.
RecurrenceGeometry recurrence_geometry(const RecurrenceShape& shape, const LstmSequencePlan& plan, const char* what);

// Of either direction's call, which may run to step `last`. Throws std::invalid_argument where it can't be run at all.
template <class Call>
Recurrence recurrence(const Call& p, int64_t last, const RecurrenceShape& shape, const LstmSequencePlan& plan,
                      const char* what) {
  const auto refuse = [what](const std::string& why) { throw std::invalid_argument(std::string(what) + ": " + why); };
  if (p.dtype == DType::kFloat64) refuse("float64 isn't computed here");
  if (p.steps < 1 || p.steps >= INT32_MAX - 1)
    refuse("steps must be from 1 to 2^31 - 3, got " + std::to_string(p.steps));
  if (p.first_step < 0 || p.first_step >= p.end_step || p.end_step > last) refuse("no such steps to run");
  return {p.steps,
          p.batch,
          p.first_step,
          p.end_step,
          p.reverse,
          p.max_polls,
          static_cast<uint8_t*>(p.workspace),
          plan,
          recurrence_geometry(shape, plan, what)};
}

}  // namespace lstmvid
