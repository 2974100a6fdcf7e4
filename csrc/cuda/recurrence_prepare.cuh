// What runs before the recurrence: weights into matrix fragments, the first operands into the exchange, flags to zero.
//
// One pass over W_hh, memory-bound: 2 * 4H * H elements moved, once a call.
#pragma once

#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"
#include "cuda/recurrence_block.cuh"
#include "cuda/recurrence_geometry.h"

namespace lstmvid {

constexpr int kPrepareThreads = 256, kPrepareBlocks = 4096;  // at most

// An operand as the exchange and the packed weights hold it.
template <Precision precision>
LSTMVID_DEVICE Element<precision> as_operand(Element<precision> x) {
  if constexpr (precision == Precision::kTf32) {
    return round_to_tf32(x);
  } else {
    return x;
  }
}

// Takes an index apart, the fastest dimension first.
struct Digits {
  int64_t rest;

  LSTMVID_DEVICE int64_t take(int64_t extent) {
    const int64_t digit = rest % extent;
    rest /= extent;
    return digit;
  }
};

// Where 16 bytes of a round of weights come from: elements of the product's rows and of K.
struct PackedPiece {
  int unit_block, k_warp;  // of the pass, of the round
  int row[4], byte[4];     // of each 4 bytes: of the unit block, of the pair of K
};

// [k warp][unit block][k-step][upper, lower 16 rows][lane][16 bytes]: what a lane loads as the A operand of matrix.h.
LSTMVID_DEVICE PackedPiece fragment_piece(const LstmSequencePlan& plan, int64_t at) {
  Digits digits{at};
  const auto lane = static_cast<int>(digits.take(kWarpSize)), half = static_cast<int>(digits.take(2));
  const auto k_step = static_cast<int>(digits.take(2)), m = static_cast<int>(digits.take(plan.unit_blocks));
  PackedPiece piece{m, static_cast<int>(digits.rest), {}, {}};
  for (int i = 0; i < 4; ++i) {
    piece.row[i] = 16 * half + 8 * (i & 1) + lane / 4;
    piece.byte[i] = k_step * 32 + 4 * (lane % 4) + 16 * (i >> 1);
  }
  return piece;
}

// [k warp][two unit blocks][16 bytes of K][row][16 bytes]: what a warp group reads as its A operand, in core matrices.
LSTMVID_DEVICE PackedPiece core_matrix_piece(const LstmSequencePlan& plan, int64_t at) {
  Digits digits{at};
  const auto row = static_cast<int>(digits.take(2 * 32)), chunk = static_cast<int>(digits.take(kPairBytes / 16));
  const auto m = static_cast<int>(digits.take(plan.unit_blocks / 2));
  PackedPiece piece{2 * m + row / 32, static_cast<int>(digits.rest), {}, {}};
  for (int i = 0; i < 4; ++i) {
    piece.row[i] = row % 32;
    piece.byte[i] = 16 * chunk + 4 * i;
  }
  return piece;
}

// packed [groups][cluster][pass][rank][round][a round's weights, as above]. Zeros where there is no such weight.
//
// Parameters::weight(group, unit block, row, k): the element of W_hh in that row (of 32) of the product, for operand k.
template <Precision precision, class Parameters>
__global__ void __launch_bounds__(kPrepareThreads) pack_weights_kernel(const __grid_constant__ Parameters parameters) {
  const Recurrence& r = parameters.r;
  const LstmSequencePlan& plan = r.plan;
  const RecurrenceGeometry& g = r.g;
  constexpr int kWord = 4 / sizeof(Element<precision>);  // elements in a register
  auto* packed = reinterpret_cast<Element<precision>*>(r.workspace + g.packed);
  const int64_t lanes = parameters.p.groups * g.packed_group_bytes / 16;
  for (int64_t at = block_idx() * kPrepareThreads + thread_idx(); at < lanes; at += grid_blocks() * kPrepareThreads) {
    Digits digits{at};
    const int64_t in_round = digits.take(g.round_bytes / 16), round = digits.take(g.rounds);
    const int64_t rank = digits.take(plan.cluster), pass = digits.take(g.passes), cluster = digits.take(plan.clusters);
    const int64_t group = digits.rest;
    const PackedPiece piece = plan.warp_groups && round >= plan.register_rounds ? core_matrix_piece(plan, in_round)
                                                                                : fragment_piece(plan, in_round);

    const int64_t in_cluster = pass * plan.unit_blocks + piece.unit_block;
    const int64_t unit_block = cluster * g.cluster_unit_blocks + in_cluster, pair = round * g.k_warps + piece.k_warp;
    const bool exists = in_cluster < g.cluster_unit_blocks && pair < g.slice_pairs;
    for (int i = 0; i < 4; ++i) {
      const int64_t byte = pair * kPairBytes + piece.byte[i];
      const int64_t k = rank * g.slice + byte / static_cast<int64_t>(sizeof(Element<precision>));
      for (int e = 0; e < kWord; ++e) {
        const auto* weight =
            exists ? parameters.template weight<Element<precision>>(group, unit_block, piece.row[i], k + e) : nullptr;
        packed[at * 4 * kWord + i * kWord + e] =
            weight != nullptr ? as_operand<precision>(*weight) : from_float<Element<precision>>(0.0f);
      }
    }
  }
}

// exchange [slot 2][team][tile][rank][stage][operands, as place_in_stage() says]: the first step's in the first slot, zeros
// elsewhere, which the products of padding need. Also the flags, and the rows' lengths (-1: no such row).
//
// Parameters::first_operand(group, row, k): null for zero.
template <Precision precision, class Parameters>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const __grid_constant__ Parameters parameters) {
  const Recurrence& r = parameters.r;
  const LstmSequencePlan& plan = r.plan;
  const RecurrenceGeometry& g = r.g;
  const int64_t first = block_idx() * kPrepareThreads + thread_idx(), stride = grid_blocks() * kPrepareThreads;

  constexpr int64_t kSize = sizeof(Element<precision>);
  const int64_t of_stage = g.stage_k_bytes / kSize;
  const int64_t all = 2 * g.teams * g.tiles * (g.exchange_tile_bytes / g.stage_bytes) * plan.tile_columns * of_stage;
  for (int64_t at = first; at < all; at += stride) {
    Digits digits{at};
    const int64_t column = digits.take(of_stage), tile_row = digits.take(plan.tile_columns);
    const int64_t stage = digits.take(g.stages), rank = digits.take(plan.cluster), tile = digits.take(g.tiles);
    const int64_t team = digits.take(g.teams), slot = digits.rest;
    const int64_t in_slice = stage * of_stage + column, k = rank * g.slice + in_slice;
    const int64_t in_replica = tile * plan.tile_columns + tile_row;
    const int64_t row = team % plan.replicas * g.replica_rows + in_replica;
    const bool exists =
        slot == 0 && in_slice < g.slice && k < g.units * g.k_of_unit && in_replica < g.replica_rows && row < r.batch;
    const auto* operand =
        exists ? parameters.template first_operand<Element<precision>>(team / plan.replicas, row, k) : nullptr;
    uint8_t* to = r.workspace + g.exchange + slot * g.exchange_slot_bytes +
                  (team * g.tiles + tile) * g.exchange_tile_bytes + (rank * g.stages + stage) * g.stage_bytes;
    to += place_in_stage(g, column * kSize) + tile_row * g.stage_row_bytes;
    *reinterpret_cast<Element<precision>*>(to) =
        operand != nullptr ? as_operand<precision>(*operand) : from_float<Element<precision>>(0.0f);
  }

  auto* flags = reinterpret_cast<uint32_t*>(r.workspace + g.flags);
  for (int64_t at = first; at < g.teams * g.tiles * g.flags_per_tile; at += stride) flags[at] = 0;

  auto* row_lengths = reinterpret_cast<int32_t*>(r.workspace + g.row_lengths);
  const int64_t tile_rows = static_cast<int64_t>(g.tiles) * plan.tile_columns;
  for (int64_t at = first; at < plan.replicas * tile_rows; at += stride) {
    const int64_t in_replica = at % tile_rows, row = at / tile_rows * g.replica_rows + in_replica;
    const bool exists = in_replica < g.replica_rows && row < r.batch;
    const int64_t* lengths = parameters.p.lengths;
    row_lengths[at] = !exists ? -1 : static_cast<int32_t>(lengths == nullptr ? r.steps : lengths[row]);
  }
}

}  // namespace lstmvid
