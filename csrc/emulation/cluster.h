// Emulated: clusters and distributed shared memory.
#pragma once

#include "emulation/runtime.h"

namespace lstmvid {

LSTMVID_DEVICE int cluster_rank() { return kHasClusters ? emulation::place->rank : 0; }

LSTMVID_DEVICE void sync_cluster() {
  if constexpr (kHasClusters) {
    emulation::sync_cluster();
  } else {
    sync_block();
  }
}

LSTMVID_DEVICE void arrive_remote(Barrier* barrier, int rank) {
  emulation::arrive_remote(&barrier->word, kHasClusters ? rank : 0);
}

// The store is done at once; that it counts bytes becomes that its warp arrives after the last one.
LSTMVID_DEVICE void store_remote(float4* shared, int rank, float4 value, Barrier*) {
  *static_cast<float4*>(emulation::remote_store(shared, kHasClusters ? rank : 0)) = value;
}

LSTMVID_DEVICE void finish_remote_stores(Barrier* barrier, int rank) {
  sync_lanes();
  if (lane_idx() == 0) arrive_remote(barrier, rank);
}

LSTMVID_DEVICE void expect_remote_stores(Barrier*, uint32_t) {}
LSTMVID_DEVICE int remote_store_arrivals(int warps) { return warps; }

}  // namespace lstmvid
