// A block of the forward recurrence: its part of the work, and its memory.
#pragma once

#include "cuda/lstm_sequence_fwd_launch.h"
#include "cuda/primitives/async_copy.h"
#include "cuda/primitives/barrier.h"
#include "cuda/primitives/cluster.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"
#include "cuda/primitives/ring.h"

namespace lstmvid {

// Which part of the work this block has.
struct FwdPlace {
  int group, team, cluster, rank;
  int first_row, rows, tiles;  // of the batch
  int first_unit_block;        // of the cluster

  LSTMVID_DEVICE explicit FwdPlace(const FwdParameters& parameters) {
    const auto& [p, plan, g] = parameters;
    rank = plan.cluster > 1 ? cluster_rank() : 0;
    const int at = static_cast<int>(block_idx()) / plan.cluster;
    cluster = at % plan.clusters;
    team = at / plan.clusters;
    group = team / plan.replicas;
    first_row = team % plan.replicas * g.replica_rows;
    const int64_t left = p.batch - first_row;
    rows = static_cast<int>(left < 0 ? 0 : left < g.replica_rows ? left : g.replica_rows);
    first_unit_block = cluster * g.cluster_unit_blocks;
    // A cluster without units has nothing to do, and nobody would wait until it has read.
    tiles = first_unit_block < g.total_unit_blocks ? (rows + plan.tile_columns - 1) / plan.tile_columns : 0;
  }

  // Unit blocks that rank `of` of this cluster finalises in a pass: of those that a pass has, and of those that exist.
  LSTMVID_DEVICE int owned(const FwdParameters& parameters, int of) const {
    const int left = parameters.plan.unit_blocks - of * parameters.g.own;
    return left < 0 ? 0 : left < parameters.g.own ? left : parameters.g.own;
  }
  LSTMVID_DEVICE int existing(const FwdParameters& parameters, int pass) const {
    const FwdGeometry& g = parameters.g;
    const int in_cluster = pass * parameters.plan.unit_blocks + rank * g.own;
    const int of_cluster = g.cluster_unit_blocks - in_cluster,
              of_all = g.total_unit_blocks - first_unit_block - in_cluster;
    const int left = of_cluster < of_all ? of_cluster : of_all, most = owned(parameters, rank);
    return left < 0 ? 0 : left < most ? left : most;
  }
  LSTMVID_DEVICE int own_unit_block(const FwdParameters& parameters, int pass) const {
    return first_unit_block + pass * parameters.plan.unit_blocks + rank * parameters.g.own;
  }
  LSTMVID_DEVICE int tile_rows(const FwdParameters& parameters, int tile) const {
    const int left = rows - tile * parameters.plan.tile_columns;
    return left < parameters.plan.tile_columns ? left : parameters.plan.tile_columns;
  }
};

// The work items in their order.
struct FwdItem {
  int64_t step, end_step;
  int tile = 0, pass = 0, tiles, passes;

  LSTMVID_DEVICE FwdItem(const FwdParameters& parameters, const FwdPlace& place)
      : step(parameters.p.first_step),
        end_step(parameters.p.end_step),
        tiles(place.tiles),
        passes(parameters.g.passes) {
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

// The block's shared memory, as fwd_geometry() lays it out.
struct FwdShared {
  Ring hidden, weights, projections;
  int first_partial_barrier;

  LSTMVID_DEVICE explicit FwdShared(const FwdParameters& parameters)
      : hidden(0, parameters.plan.hidden_stages, parameters.g.hidden_ring, parameters.g.stage_bytes),
        weights(2 * hidden.slots, parameters.g.weight_slots, parameters.g.weight_ring, parameters.g.round_bytes),
        projections(weights.barriers + 2 * weights.slots, kProjectionSlots, parameters.g.projections,
                    static_cast<int64_t>(parameters.plan.tile_columns) * parameters.g.projection_row_bytes),
        first_partial_barrier(projections.barriers + 2 * kProjectionSlots) {}
  LSTMVID_DEVICE Barrier* partials_full() const {
    return reinterpret_cast<Barrier*>(shared_memory()) + first_partial_barrier;
  }
  LSTMVID_DEVICE Barrier* partials_empty(int rank) const { return partials_full() + 1 + rank; }  // of who finalises
};

LSTMVID_DEVICE const uint8_t* packed_weights(const FwdParameters& parameters, const FwdPlace& place, int pass) {
  const auto& [p, plan, g] = parameters;
  const int64_t index = (static_cast<int64_t>(place.cluster) * g.passes + pass) * plan.cluster + place.rank;
  return static_cast<const uint8_t*>(p.workspace) + g.packed + place.group * g.packed_group_bytes +
         index * g.rounds * g.round_bytes;
}

LSTMVID_DEVICE uint8_t* exchange_tile(const FwdParameters& parameters, const FwdPlace& place, int64_t step, int tile) {
  const auto& [p, plan, g] = parameters;
  return static_cast<uint8_t*>(p.workspace) + g.exchange + (step & 1) * g.exchange_slot_bytes +
         (static_cast<int64_t>(place.team) * g.tiles + tile) * g.exchange_tile_bytes;
}

LSTMVID_DEVICE uint32_t* tile_flags(const FwdParameters& parameters, const FwdPlace& place, int tile) {
  const FwdGeometry& g = parameters.g;
  return reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(parameters.p.workspace) + g.flags) +
         (static_cast<int64_t>(place.team) * g.tiles + tile) * g.flags_per_tile;
}

// Of the replica's rows, tile after tile; -1 where there is no row.
LSTMVID_DEVICE const int32_t* row_lengths(const FwdParameters& parameters, const FwdPlace& place) {
  const auto& [p, plan, g] = parameters;
  return reinterpret_cast<const int32_t*>(static_cast<const uint8_t*>(p.workspace) + g.row_lengths) +
         static_cast<int64_t>(place.team % plan.replicas) * g.tiles * plan.tile_columns;
}

LSTMVID_DEVICE int64_t time_of(const FwdParameters& parameters, const FwdPlace& place, int64_t step) {
  return (parameters.p.reverse >> place.group & 1) != 0 ? parameters.p.steps - 1 - step : step;
}

// One thread.
LSTMVID_DEVICE void init_barriers(const FwdParameters& parameters, const FwdPlace& place, const FwdShared& shared) {
  const auto& [p, plan, g] = parameters;
  const int multiplying = g.k_warps * plan.unit_blocks, owned = place.owned(parameters, place.rank);
  shared.hidden.init(kCopyArrivals, multiplying);
  shared.weights.init(kCopyArrivals, multiplying);
  shared.projections.init(kWarpSize, kConsumerWarps);
  init(shared.partials_full(), remote_store_arrivals(owned > 0 ? owned * g.k_warps * plan.cluster : 1));
  for (int rank = 0; rank < plan.cluster; ++rank) init(shared.partials_empty(rank), kConsumerWarps);
  fence_init();
}

// [pass][own][unit][kConstants]
LSTMVID_DEVICE float* shared_constants(const FwdParameters& parameters) {
  return reinterpret_cast<float*>(shared_memory() + parameters.g.constants);
}

// Biases and peepholes of the block's own units, and where in the exchange each unit's h lies.
template <class Operand>
LSTMVID_DEVICE void load_constants(const FwdParameters& parameters, const FwdPlace& place) {
  const auto& [p, plan, g] = parameters;
  const auto* bias = static_cast<const Operand*>(p.bias[place.group]);
  const auto* peephole = static_cast<const Operand*>(p.peephole[place.group]);
  const int units = g.own * kUnitBlock;
  for (int i = thread_idx(); i < g.passes * units; i += kFwdThreads) {
    const int64_t unit = place.own_unit_block(parameters, i / units) * static_cast<int64_t>(kUnitBlock) + i % units;
    const bool exists = unit < p.hidden;
    float* constants = shared_constants(parameters) + i * kConstants;
    for (int gate = 0; gate < 4; ++gate) {
      constants[gate] = exists && bias != nullptr ? to_float(bias[gate * p.hidden + unit]) : 0.0f;
    }
    for (int gate = 0; gate < 3; ++gate) {
      constants[4 + gate] = exists && peephole != nullptr ? to_float(peephole[gate * p.hidden + unit]) : 0.0f;
    }
    const int64_t slice = unit / g.slice_units, in_slice = unit % g.slice_units;
    const int64_t stage_units = (g.stage_row_bytes - 16) / sizeof(Operand);
    const int64_t place_in_tile = (slice * g.stages + in_slice / stage_units) * g.stage_bytes;
    const int64_t place_in_row = in_slice % stage_units * sizeof(Operand);
    constants[7] = as_float(static_cast<uint32_t>(place_in_tile + place_in_row));
  }
}

LSTMVID_DEVICE void load_lengths(const FwdParameters& parameters, const FwdPlace& place) {
  if (!parameters.plan.cells_in_shared) return;
  auto* to = reinterpret_cast<int32_t*>(shared_memory() + parameters.g.lengths);
  const int32_t* from = row_lengths(parameters, place);
  for (int i = thread_idx(); i < parameters.g.tiles * parameters.plan.tile_columns; i += kFwdThreads) to[i] = from[i];
}

LSTMVID_DEVICE void load_resident_weights(const FwdParameters& parameters, const FwdPlace& place) {
  const auto& [p, plan, g] = parameters;
  const int64_t pass_bytes = plan.resident_rounds * g.round_bytes;
  for (int pass = 0; pass < g.passes; ++pass) {
    const auto* from =
        reinterpret_cast<const float4*>(packed_weights(parameters, place, pass) + plan.register_rounds * g.round_bytes);
    auto* to = reinterpret_cast<float4*>(shared_memory() + g.resident + pass * pass_bytes);
    for (int64_t i = thread_idx(); i < pass_bytes / 16; i += kFwdThreads) to[i] = from[i];
  }
}

}  // namespace lstmvid
