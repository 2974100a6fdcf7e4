// The warps of a recurrent kernel that feed the others: each copies one kind of data, as far ahead as its ring has room.
#pragma once

#include "cuda/primitives/async_copy.h"
#include "cuda/primitives/flags.h"
#include "cuda/recurrence_block.cuh"

namespace lstmvid {

// Returns when all blocks whose units lie in this block's slice of K have published the step before the item's.
LSTMVID_DEVICE void wait_published(const Recurrence& r, const Place& place, const Item& item) {
  const RecurrenceGeometry& g = r.g;
  if (item.step == r.first_step) return;  // an earlier launch's work
  const int64_t k = place.rank * g.slice, all = g.units * g.k_of_unit, end_k = k + g.slice < all ? k + g.slice : all;
  if (k >= end_k) return;
  const int first_unit = static_cast<int>(k) / g.k_of_unit, end_unit = (static_cast<int>(end_k) - 1) / g.k_of_unit + 1;
  const int cluster_units = g.cluster_unit_blocks * g.unit_block;
  const int first = first_unit / cluster_units * g.owning_ranks;
  const int end = ((end_unit - 1) / cluster_units + 1) * g.owning_ranks;
  const uint32_t* flags = tile_flags(r, place, item.tile);
  const auto step = static_cast<uint32_t>(item.step);
  PollBudget budget(r.max_polls);
  for (bool published = false; !published; budget.spend()) {
    published = true;
    for (int i = first + lane_idx(); i < end; i += kWarpSize) published = published && observe(flags + i) >= step;
    published = all_lanes(published);
  }
  sync_lanes();  // what one lane observed, all may copy
}

LSTMVID_DEVICE void feed_operands(const Recurrence& r, const Place& place, Ring ring) {
  const RecurrenceGeometry& g = r.g;
  for (Item item(r, place); !item.done(); item.advance()) {
    wait_published(r, place, item);
    const FenceToken fence = fence_async_copies();
    const uint8_t* from =
        exchange_tile(r, place, item.step, item.tile) + static_cast<int64_t>(place.rank) * g.stages * g.stage_bytes;
    for (int stage = 0; stage < g.stages; ++stage) {
      ring.wait_empty(r.max_polls);
      copy_block(fence, ring.here(), from + stage * g.stage_bytes, static_cast<uint32_t>(g.stage_bytes), ring.full());
      ring.advance();
    }
  }
}

LSTMVID_DEVICE void feed_weights(const Recurrence& r, const Place& place, Ring ring) {
  const LstmSequencePlan& plan = r.plan;
  const RecurrenceGeometry& g = r.g;
  for (Item item(r, place); !item.done(); item.advance()) {
    const uint8_t* from =
        packed_weights(r, place, item.pass) + (plan.register_rounds + plan.resident_rounds) * g.round_bytes;
    for (int round = 0; round < g.streamed_rounds; ++round) {
      ring.wait_empty(r.max_polls);
      copy_block(read_only_memory(), ring.here(), from + round * g.round_bytes, static_cast<uint32_t>(g.round_bytes),
                 ring.full());
      ring.advance();
    }
  }
}

// Whether 16 bytes at a time can be copied of rows of `units` elements, in all tensors that begin at such addresses.
LSTMVID_DEVICE bool is_aligned(const void* tensor) { return reinterpret_cast<uintptr_t>(tensor) % 16 == 0; }
LSTMVID_DEVICE bool are_pieces(int64_t units) { return units % 8 == 0; }

// Rows of a tile that a slot of inputs takes: `segments` pieces of `units` elements in each row of a tensor.
template <class T>
struct InputRows {
  const T* from;         // the first row's first piece
  int64_t row, segment;  // elements from row to row, and from piece to piece of a row
  int segments, units;
  int to, segment_bytes;  // in a row of the slot

  // By all lanes; pieces side by side on them, and as many rows as then fit.
  LSTMVID_DEVICE void copy(uint8_t* slot, int row_bytes, int rows, bool is_async) const {
    constexpr int kPiece = 16 / sizeof(T);
    const int pieces = units <= 0 ? 0 : is_async ? units / kPiece : units, all = segments * pieces;
    if (all == 0) return;
    const int lanes = all < kWarpSize ? all : kWarpSize, rows_at_once = kWarpSize / lanes;
    if (lane_idx() >= lanes * rows_at_once) return;
    for (int n = lane_idx() / lanes; n < rows; n += rows_at_once) {
      for (int i = lane_idx() % lanes; i < all; i += lanes) {
        const int at = i / pieces, piece = i % pieces;
        const T* source = from + n * row + at * segment;
        uint8_t* target = slot + n * row_bytes + to + at * segment_bytes;
        if (is_async) {
          copy_16_bytes(target + piece * 16, source + piece * kPiece);
        } else {
          reinterpret_cast<T*>(target)[piece] = load_exchanged(source + piece);
        }
      }
    }
  }
};

// After the copies of a slot: its arrivals, of every lane one.
LSTMVID_DEVICE void finish_inputs(Ring& ring, bool is_async) {
  if (is_async) {
    arrive_when_copied(ring.full());
  } else {
    arrive(ring.full());
  }
  ring.advance();
}

// The first unit of the item that this block finalises, and how many of them there are.
struct OwnUnits {
  int64_t first;
  int count;

  LSTMVID_DEVICE OwnUnits(const Recurrence& r, const Place& place, const Item& item)
      : first(place.own_unit_block(r, item.pass) * static_cast<int64_t>(r.g.unit_block)) {
    const int64_t left = r.g.units - first, most = place.existing(r, item.pass) * static_cast<int64_t>(r.g.unit_block);
    count = static_cast<int>(left < most ? left : most);
  }
};

}  // namespace lstmvid
