// What becomes of the partial sums, the same whoever multiplies: their way to the block that finalises them, and its cells.
#pragma once

#include "cuda/primitives/cluster.h"
#include "cuda/primitives/flags.h"
#include "cuda/primitives/platform.h"
#include "cuda/recurrence_block.cuh"

namespace lstmvid {

// A multiplying warp's view of the block: what both kinds of multipliers are made of.
template <class Config>
struct Sums {
  static constexpr int kTileBlocks = Config::kTileBlocks;

  const Recurrence& r;
  const Place& place;
  BlockMemory memory;   // cursors of its own
  uint32_t parity = 0;  // of the item, for the partial sums' barriers

  LSTMVID_DEVICE Sums(const Recurrence& r, const Place& place, const BlockMemory& memory)
      : r(r), place(place), memory(memory) {}

  // The partial sums [own][tile block][source][upper, lower rows][lane] of the first source.
  LSTMVID_DEVICE float4* partial(int own, int n) const {
    const int sources = r.plan.cluster * r.g.k_warps;
    return reinterpret_cast<float4*>(shared_memory() + r.g.partials) + (own * kTileBlocks + n) * sources * 64 +
           lane_idx();
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
