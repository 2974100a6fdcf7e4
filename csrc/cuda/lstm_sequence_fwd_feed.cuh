// The warps of the forward recurrence that feed the others: each copies one kind of data, as far ahead as its ring has room.
#pragma once

#include "cuda/lstm_sequence_fwd_block.cuh"
#include "cuda/primitives/async_copy.h"
#include "cuda/primitives/flags.h"

namespace lstmvid {

// Returns when all blocks whose units lie in this block's slice of K have published the step before the item's.
LSTMVID_DEVICE void wait_published(const FwdParameters& parameters, const FwdPlace& place, const FwdItem& item) {
  const auto& [p, plan, g] = parameters;
  if (item.step == p.first_step) return;  // an earlier launch's work
  const int slice = static_cast<int>(g.slice_units), hidden = static_cast<int>(p.hidden);
  const int first_unit = place.rank * slice, end_unit = first_unit + slice < hidden ? first_unit + slice : hidden;
  if (first_unit >= end_unit) return;
  const int cluster_units = g.cluster_unit_blocks * kUnitBlock;
  const int first = first_unit / cluster_units * g.owning_ranks;
  const int end = ((end_unit - 1) / cluster_units + 1) * g.owning_ranks;
  const uint32_t* flags = tile_flags(parameters, place, item.tile);
  const auto step = static_cast<uint32_t>(item.step);
  PollBudget budget(p.max_polls);
  for (bool published = false; !published; budget.spend()) {
    published = true;
    for (int i = first + lane_idx(); i < end; i += kWarpSize) published = published && observe(flags + i) >= step;
    published = all_lanes(published);
  }
  sync_lanes();  // what one lane observed, all may copy
}

LSTMVID_DEVICE void feed_hidden(const FwdParameters& parameters, const FwdPlace& place, Ring ring) {
  const FwdGeometry& g = parameters.g;
  for (FwdItem item(parameters, place); !item.done(); item.advance()) {
    wait_published(parameters, place, item);
    const FenceToken fence = fence_async_copies();
    const uint8_t* from = exchange_tile(parameters, place, item.step, item.tile) +
                          static_cast<int64_t>(place.rank) * g.stages * g.stage_bytes;
    for (int stage = 0; stage < g.stages; ++stage) {
      ring.wait_empty(parameters.p.max_polls);
      copy_block(fence, ring.here(), from + stage * g.stage_bytes, static_cast<uint32_t>(g.stage_bytes), ring.full());
      ring.advance();
    }
  }
}

LSTMVID_DEVICE void feed_weights(const FwdParameters& parameters, const FwdPlace& place, Ring ring) {
  const auto& [p, plan, g] = parameters;
  for (FwdItem item(parameters, place); !item.done(); item.advance()) {
    const uint8_t* from =
        packed_weights(parameters, place, item.pass) + (plan.register_rounds + plan.resident_rounds) * g.round_bytes;
    for (int round = 0; round < g.streamed_rounds; ++round) {
      ring.wait_empty(p.max_polls);
      copy_block(read_only_memory(), ring.here(), from + round * g.round_bytes, static_cast<uint32_t>(g.round_bytes),
                 ring.full());
      ring.advance();
    }
  }
}

// [row of the tile][gate][own units]: of each row and gate, what is contiguous in memory.
template <class Operand>
LSTMVID_DEVICE void feed_projections(const FwdParameters& parameters, const FwdPlace& place, Ring ring) {
  const auto& [p, plan, g] = parameters;
  constexpr int kPiece = 16 / sizeof(Operand);
  const int gate_bytes = g.own * kUnitBlock * static_cast<int>(sizeof(Operand));
  const auto* projection = static_cast<const Operand*>(p.projection.data) + place.group * p.projection.stride;
  const bool in_pieces = p.hidden % kUnitBlock == 0 && reinterpret_cast<uintptr_t>(projection) % 16 == 0;
  for (FwdItem item(parameters, place); !item.done(); item.advance()) {
    const int64_t first_unit = place.own_unit_block(parameters, item.pass) * static_cast<int64_t>(kUnitBlock);
    const int64_t left = p.hidden - first_unit, most = place.existing(parameters, item.pass) * kUnitBlock;
    const int units = static_cast<int>(left < most ? left : most);
    const int64_t row = place.first_row + static_cast<int64_t>(item.tile) * plan.tile_columns;
    const Operand* from =
        projection + (time_of(parameters, place, item.step) * p.batch + row) * 4 * p.hidden + first_unit;
    const int rows = place.tile_rows(parameters, item.tile);
    const int pieces = units <= 0 ? 0 : in_pieces ? units / kPiece : units;
    ring.wait_empty(p.max_polls);
    // A row's pieces side by side on the lanes, and as many rows as then fit.
    const int lanes = 4 * pieces < kWarpSize ? (pieces > 0 ? 4 * pieces : 1) : kWarpSize,
              rows_at_once = kWarpSize / lanes;
    for (int n = lane_idx() / lanes; n < rows; n += rows_at_once) {
      if (lane_idx() / lanes >= rows_at_once) break;
      for (int k = lane_idx() % lanes; k < 4 * pieces; k += lanes) {
        const int gate = k / pieces, piece = k % pieces;
        const Operand* source = from + (static_cast<int64_t>(n) * 4 + gate) * p.hidden;
        uint8_t* target = ring.here() + n * g.projection_row_bytes + gate * gate_bytes;
        if (in_pieces) {
          copy_16_bytes(target + piece * 16, source + piece * kPiece);
        } else {
          reinterpret_cast<Operand*>(target)[piece] = load_exchanged(source + piece);
        }
      }
    }
    if (in_pieces) {
      arrive_when_copied(ring.full());
    } else {
      arrive(ring.full());
    }
    ring.advance();
  }
}

template <class Operand>
LSTMVID_DEVICE void feed(const FwdParameters& parameters, const FwdPlace& place, const FwdShared& shared) {
  switch (warp_idx() - kConsumerWarps) {
    case 0: return feed_hidden(parameters, place, shared.hidden);
    case 1:
      if (parameters.g.streamed_rounds > 0) feed_weights(parameters, place, shared.weights);
      return;
    case 2:
      if (parameters.p.projection.data != nullptr && place.owned(parameters, place.rank) > 0) {
        feed_projections<Operand>(parameters, place, shared.projections);
      }
  }
}

}  // namespace lstmvid
