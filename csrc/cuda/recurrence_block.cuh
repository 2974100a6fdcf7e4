// A block of a recurrent kernel: its part of the work, and its memory.
#pragma once

#include "cuda/primitives/async_copy.h"
#include "cuda/primitives/barrier.h"
#include "cuda/primitives/cluster.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"
#include "cuda/primitives/ring.h"
#include "cuda/primitives/warp_group.h"
#include "cuda/recurrence_geometry.h"

namespace lstmvid {

// Which part of the work this block has.
struct Place {
  int group, team, cluster, rank;
  int first_row, rows, tiles;  // of the batch
  int first_unit_block;        // of the cluster

  LSTMVID_DEVICE explicit Place(const Recurrence& r) {
    const LstmSequencePlan& plan = r.plan;
    const RecurrenceGeometry& g = r.g;
    rank = plan.cluster > 1 ? cluster_rank() : 0;
    const int at = static_cast<int>(block_idx()) / plan.cluster;
    cluster = at % plan.clusters;
    team = at / plan.clusters;
    group = team / plan.replicas;
    first_row = team % plan.replicas * g.replica_rows;
    const int64_t left = r.batch - first_row;
    rows = static_cast<int>(left < 0 ? 0 : left < g.replica_rows ? left : g.replica_rows);
    first_unit_block = cluster * g.cluster_unit_blocks;
    // A cluster without units has nothing to do, and nobody would wait until it has read.
    tiles = first_unit_block < g.total_unit_blocks ? (rows + plan.tile_columns - 1) / plan.tile_columns : 0;
  }

  // Unit blocks that rank `of` of this cluster finalises in a pass: of those that a pass has, and of those that exist.
  LSTMVID_DEVICE int owned(const Recurrence& r, int of) const {
    const int left = r.plan.unit_blocks - of * r.g.own;
    return left < 0 ? 0 : left < r.g.own ? left : r.g.own;
  }
  LSTMVID_DEVICE int existing(const Recurrence& r, int pass) const {
    const RecurrenceGeometry& g = r.g;
    const int in_cluster = pass * r.plan.unit_blocks + rank * g.own;
    const int of_cluster = g.cluster_unit_blocks - in_cluster,
              of_all = g.total_unit_blocks - first_unit_block - in_cluster;
    const int left = of_cluster < of_all ? of_cluster : of_all, most = owned(r, rank);
    return left < 0 ? 0 : left < most ? left : most;
  }
  LSTMVID_DEVICE int own_unit_block(const Recurrence& r, int pass) const {
    return first_unit_block + pass * r.plan.unit_blocks + rank * r.g.own;
  }
  LSTMVID_DEVICE int tile_rows(const Recurrence& r, int tile) const {
    const int left = rows - tile * r.plan.tile_columns;
    return left < r.plan.tile_columns ? left : r.plan.tile_columns;
  }
};

// The work items in their order.
struct Item {
  int64_t step, end_step;
  int tile = 0, pass = 0, tiles, passes;

  LSTMVID_DEVICE Item(const Recurrence& r, const Place& place)
      : step(r.first_step), end_step(r.end_step), tiles(place.tiles), passes(r.g.passes) {
    if (tiles == 0) step = end_step;
  }
  LSTMVID_DEVICE bool done() const { return step == end_step; }
  LSTMVID_DEVICE bool is_last_pass() const { return pass + 1 == passes; }
  LSTMVID_DEVICE void advance() {
    if (++pass < passes) return;
    pass = 0;
    if (++tile < tiles) return;
    tile = 0;
    ++step;
  }
};

// The block's shared memory, as recurrence_geometry() lays it out.
struct BlockMemory {
  Ring operands, weights, inputs;
  int first_partial_barrier;

  LSTMVID_DEVICE explicit BlockMemory(const Recurrence& r)
      : operands(0, r.plan.hidden_stages, r.g.operand_ring, r.g.stage_bytes),
        weights(2 * operands.slots, r.g.weight_slots, r.g.weight_ring, r.g.round_bytes),
        inputs(weights.barriers + 2 * weights.slots, r.g.input_slots, r.g.inputs,
               static_cast<int64_t>(r.plan.tile_columns) * r.g.input_row_bytes),
        first_partial_barrier(inputs.barriers + 2 * r.g.input_slots) {}
  LSTMVID_DEVICE Barrier* partials_full() const {
    return reinterpret_cast<Barrier*>(shared_memory()) + first_partial_barrier;
  }
  LSTMVID_DEVICE Barrier* partials_empty(int rank) const { return partials_full() + 1 + rank; }  // of who finalises
};

LSTMVID_DEVICE const uint8_t* packed_weights(const Recurrence& r, const Place& place, int pass) {
  const LstmSequencePlan& plan = r.plan;
  const RecurrenceGeometry& g = r.g;
  const int64_t index = (static_cast<int64_t>(place.cluster) * g.passes + pass) * plan.cluster + place.rank;
  return r.workspace + g.packed + place.group * g.packed_group_bytes + index * g.rounds * g.round_bytes;
}

LSTMVID_DEVICE uint8_t* exchange_tile(const Recurrence& r, const Place& place, int64_t step, int tile) {
  const RecurrenceGeometry& g = r.g;
  return r.workspace + g.exchange + (step & 1) * g.exchange_slot_bytes +
         (static_cast<int64_t>(place.team) * g.tiles + tile) * g.exchange_tile_bytes;
}

LSTMVID_DEVICE uint32_t* tile_flags(const Recurrence& r, const Place& place, int tile) {
  const RecurrenceGeometry& g = r.g;
  return reinterpret_cast<uint32_t*>(r.workspace + g.flags) +
         (static_cast<int64_t>(place.team) * g.tiles + tile) * g.flags_per_tile;
}

// Of the replica's rows, tile after tile; -1 where there is no row.
LSTMVID_DEVICE const int32_t* row_lengths(const Recurrence& r, const Place& place) {
  const LstmSequencePlan& plan = r.plan;
  const RecurrenceGeometry& g = r.g;
  return reinterpret_cast<const int32_t*>(r.workspace + g.row_lengths) +
         static_cast<int64_t>(place.team % plan.replicas) * g.tiles * plan.tile_columns;
}

LSTMVID_DEVICE int64_t time_of(const Recurrence& r, const Place& place, int64_t step) {
  return (r.reverse >> place.group & 1) != 0 ? r.steps - 1 - step : step;
}

// One thread.
LSTMVID_DEVICE void init_barriers(const Recurrence& r, const Place& place, const BlockMemory& shared) {
  const LstmSequencePlan& plan = r.plan;
  const RecurrenceGeometry& g = r.g;
  const int multiplying = plan.warp_groups ? kConsumerWarps : g.k_warps * plan.unit_blocks,
            owned = place.owned(r, place.rank);
  shared.operands.init(kCopyArrivals, multiplying);
  shared.weights.init(kCopyArrivals, multiplying);
  shared.inputs.init(kWarpSize, kConsumerWarps);
  init(shared.partials_full(), remote_store_arrivals(owned > 0 ? owned * g.sending_warps * plan.cluster : 1));
  for (int rank = 0; rank < plan.cluster; ++rank) init(shared.partials_empty(rank), kConsumerWarps);
  fence_init();
}

// Of a byte of K in a stage of operands, for its first row; each next is stage_row_bytes further.
LSTMVID_DEVICE int64_t place_in_stage(const RecurrenceGeometry& g, int64_t byte) {
  return byte / 16 * g.stage_chunk_bytes + byte % 16;
}

// [pass][own][unit][kConstants]
LSTMVID_DEVICE float* shared_constants(const Recurrence& r) {
  return reinterpret_cast<float*>(shared_memory() + r.g.constants);
}

// Of the block's own units: biases, peepholes, and where in the exchange the unit's first operand lies. Either may be null.
template <class Operand>
LSTMVID_DEVICE void load_constants(const Recurrence& r, const Place& place, const Operand* bias,
                                   const Operand* peephole) {
  const RecurrenceGeometry& g = r.g;
  const int units = g.own * g.unit_block;
  for (int i = thread_idx(); i < g.passes * units; i += kRecurrenceThreads) {
    const int64_t unit = place.own_unit_block(r, i / units) * static_cast<int64_t>(g.unit_block) + i % units;
    const bool exists = unit < g.units;
    float* constants = shared_constants(r) + i * kConstants;
    for (int gate = 0; gate < 4; ++gate) {
      constants[gate] = exists && bias != nullptr ? to_float(bias[gate * g.units + unit]) : 0.0f;
    }
    for (int gate = 0; gate < 3; ++gate) {
      constants[4 + gate] = exists && peephole != nullptr ? to_float(peephole[gate * g.units + unit]) : 0.0f;
    }
    const int64_t k = unit * g.k_of_unit, byte = k % g.slice * static_cast<int64_t>(sizeof(Operand));
    const int64_t stage = k / g.slice * g.stages + byte / g.stage_k_bytes;
    constants[7] = as_float(static_cast<uint32_t>(stage * g.stage_bytes + place_in_stage(g, byte % g.stage_k_bytes)));
  }
}

LSTMVID_DEVICE void load_lengths(const Recurrence& r, const Place& place) {
  if (!r.plan.cells_in_shared) return;
  auto* to = reinterpret_cast<int32_t*>(shared_memory() + r.g.lengths);
  const int32_t* from = row_lengths(r, place);
  for (int i = thread_idx(); i < r.g.tiles * r.plan.tile_columns; i += kRecurrenceThreads) to[i] = from[i];
}

LSTMVID_DEVICE void load_resident_weights(const Recurrence& r, const Place& place) {
  const LstmSequencePlan& plan = r.plan;
  const RecurrenceGeometry& g = r.g;
  const int64_t pass_bytes = plan.resident_rounds * g.round_bytes;
  for (int pass = 0; pass < g.passes; ++pass) {
    const auto* from =
        reinterpret_cast<const float4*>(packed_weights(r, place, pass) + plan.register_rounds * g.round_bytes);
    auto* to = reinterpret_cast<float4*>(shared_memory() + g.resident + pass * pass_bytes);
    for (int64_t i = thread_idx(); i < pass_bytes / 16; i += kRecurrenceThreads) store_operand(to + i, from[i]);
  }
  if (plan.warp_groups) fence_operands();
}

}  // namespace lstmvid
