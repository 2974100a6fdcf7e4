// What runs before the recurrence: weights into matrix fragments, the initial states into the exchange, flags to zero.
//
// One pass over W_hh, memory-bound: 2 * 4H * H elements moved, once a call.
#pragma once

#include "cuda/lstm_sequence_fwd_launch.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"

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

// packed [groups][cluster][pass][rank][round][k warp][unit block][k-step 2][i|f, g|o][lane][16 bytes]: what a lane loads
// as the A operand of matrix.h. Rows 0-7 of a matrix are one gate of the unit block's 8 units, rows 8-15 the next gate.
// Zeros where there is no such unit.
template <Precision precision>
__global__ void __launch_bounds__(kPrepareThreads)
    pack_weights_kernel(const __grid_constant__ FwdParameters parameters) {
  const auto& [p, plan, g] = parameters;
  constexpr int kWord = 4 / sizeof(Element<precision>);  // elements in a register
  const int64_t hidden = p.hidden;
  auto* packed = reinterpret_cast<Element<precision>*>(static_cast<uint8_t*>(p.workspace) + g.packed);
  const int64_t lanes = p.groups * g.packed_group_bytes / 16;
  for (int64_t at = block_idx() * kPrepareThreads + thread_idx(); at < lanes; at += grid_blocks() * kPrepareThreads) {
    int64_t rest = at;
    const auto take = [&rest](int64_t extent) {
      const int64_t index = rest % extent;
      rest /= extent;
      return index;
    };
    const int64_t lane = take(kWarpSize), gates = take(2), k_step = take(2), m = take(plan.unit_blocks);
    const int64_t k_warp = take(g.k_warps), round = take(g.rounds), rank = take(plan.cluster), pass = take(g.passes);
    const int64_t cluster = take(plan.clusters), group = rest;

    const int64_t in_cluster = pass * plan.unit_blocks + m;
    const int64_t unit_block = cluster * g.cluster_unit_blocks + in_cluster;
    const int64_t unit = unit_block * kUnitBlock + lane / 4;
    const int64_t pair = round * g.k_warps + k_warp;
    const bool exists = in_cluster < g.cluster_unit_blocks && unit < hidden && pair < g.slice_pairs;
    const auto* weight_hh = static_cast<const Element<precision>*>(p.weight_hh[group]);
    for (int r = 0; r < 4; ++r) {
      const int64_t row = (2 * gates + (r & 1)) * hidden + unit;
      const int64_t byte = k_step * 32 + 4 * (lane % 4) + 16 * (r >> 1);
      const int64_t k =
          rank * g.slice_units + (pair * kPairBytes + byte) / static_cast<int64_t>(sizeof(Element<precision>));
      for (int e = 0; e < kWord; ++e) {
        Element<precision> x = from_float<Element<precision>>(0.0f);
        if (exists && k + e < hidden) x = as_operand<precision>(weight_hh[row * hidden + k + e]);
        packed[at * 4 * kWord + r * kWord + e] = x;
      }
    }
  }
}

// exchange [slot 2][team][tile][rank][stage][row][units of the stage, padding]: h_0 in the first slot, zeros elsewhere, which
// the products of padding units need. Also the flags, the rows' lengths (-1: no such row), and h_n of empty sequences.
template <Precision precision>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_state_kernel(const __grid_constant__ FwdParameters parameters) {
  const auto& [p, plan, g] = parameters;
  auto* workspace = static_cast<uint8_t*>(p.workspace);
  const int64_t first = block_idx() * kPrepareThreads + thread_idx(), stride = grid_blocks() * kPrepareThreads;

  auto* exchange = reinterpret_cast<Element<precision>*>(workspace + g.exchange);
  constexpr int64_t kSize = sizeof(Element<precision>);
  const int64_t row_elements = g.stage_row_bytes / kSize, tile_columns = plan.tile_columns;
  const int64_t slot_elements = g.exchange_slot_bytes / kSize;
  for (int64_t at = first; at < 2 * slot_elements; at += stride) {
    int64_t rest = at % slot_elements;
    const auto take = [&rest](int64_t extent) {
      const int64_t index = rest % extent;
      rest /= extent;
      return index;
    };
    const int64_t column = take(row_elements), tile_row = take(tile_columns), stage = take(g.stages);
    const int64_t rank = take(plan.cluster), tile = take(g.tiles), team = rest;
    const int64_t in_slice = stage * (row_elements - 16 / kSize) + column;
    const int64_t unit = rank * g.slice_units + in_slice;
    const int64_t in_replica = tile * tile_columns + tile_row;
    const int64_t row = team % plan.replicas * g.replica_rows + in_replica;
    const bool exists = at < slot_elements && team < g.teams && column < row_elements - 16 / kSize &&
                        in_slice < g.slice_units && unit < p.hidden && in_replica < g.replica_rows && row < p.batch;
    Element<precision> x = from_float<Element<precision>>(0.0f);
    if (exists) {
      const int64_t group = team / plan.replicas;
      const auto* h_0 = static_cast<const Element<precision>*>(p.h_0.data) + group * p.h_0.stride;
      x = as_operand<precision>(h_0[row * p.hidden + unit]);
    }
    exchange[at] = x;
  }

  auto* flags = reinterpret_cast<uint32_t*>(workspace + g.flags);
  for (int64_t at = first; at < g.teams * g.tiles * g.flags_per_tile; at += stride) flags[at] = 0;

  auto* row_lengths = reinterpret_cast<int32_t*>(workspace + g.row_lengths);
  const int64_t tile_rows = g.tiles * tile_columns;
  for (int64_t at = first; at < plan.replicas * tile_rows; at += stride) {
    const int64_t in_replica = at % tile_rows, row = at / tile_rows * g.replica_rows + in_replica;
    const bool exists = in_replica < g.replica_rows && row < p.batch;
    row_lengths[at] = !exists ? -1 : static_cast<int32_t>(p.lengths == nullptr ? p.steps : p.lengths[row]);
  }

  for (int64_t at = first; at < p.groups * p.batch * p.hidden; at += stride) {
    const int64_t group = at / (p.batch * p.hidden), in_group = at % (p.batch * p.hidden);
    if (p.lengths == nullptr || p.lengths[in_group / p.hidden] > 0) continue;
    static_cast<Element<precision>*>(p.h_n.data)[group * p.h_n.stride + in_group] =
        static_cast<const Element<precision>*>(p.h_0.data)[group * p.h_0.stride + in_group];
  }
}

}  // namespace lstmvid
