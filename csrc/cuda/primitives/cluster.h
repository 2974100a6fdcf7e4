// Thread block clusters and distributed shared memory. Below sm_90 a cluster is one block and "remote" is its own memory.
//
// A block's shared memory may be reached by others only while it runs: sync_cluster() after its barriers are initialised,
// before the first access, and once more before any of the blocks ends.
#pragma once

#include "cuda/primitives/barrier.h"
#include "cuda/primitives/platform.h"

#if LSTMVID_EMULATED
#include "emulation/cluster.h"
#else

namespace lstmvid {

LSTMVID_DEVICE int cluster_rank() {
  uint32_t rank = 0;
  if constexpr (kHasClusters) asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// All threads of all blocks of the cluster; what they wrote to shared memory before can be read after.
LSTMVID_DEVICE void sync_cluster() {
  if constexpr (kHasClusters) {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
  } else {
    sync_block();
  }
}

// The address, in block `rank`'s shared memory, of what lies at `shared` in this block's.
LSTMVID_DEVICE uint32_t remote_address(const void* shared, int rank) {
  uint32_t address = shared_address(shared);
  if constexpr (kHasClusters) asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
  return address;
}

// Stores into block `rank`'s shared memory, at the place of `shared` in this block's, aligned to 16 bytes, and counts the 16
// bytes at that block's `barrier` when they are there (PTX: st.async). Nothing else has to order them.
LSTMVID_DEVICE void store_remote(float4* shared, int rank, float4 value, Barrier* barrier) {
  if constexpr (kHasClusters) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     remote_address(shared, rank)),
                 "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(remote_address(barrier, rank))
                 : "memory");
  } else {
    *shared = value;
  }
}

// By all lanes of a warp after its last store_remote() to that block in a phase of the barrier.
LSTMVID_DEVICE void finish_remote_stores(Barrier* barrier, int /*rank*/) {
  if constexpr (!kHasClusters) {
    __syncwarp();
    if (lane_idx() == 0) arrive(barrier);
  }
}

// One thread of the block that is stored into, once a phase: how many bytes are to come.
LSTMVID_DEVICE void expect_remote_stores(Barrier* barrier, uint32_t bytes) {
  if constexpr (kHasClusters) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
  }
}

// Arrivals that a barrier of remote stores by `warps` warps expects in each phase.
LSTMVID_DEVICE int remote_store_arrivals(int warps) { return kHasClusters ? 1 : warps; }

// arrive() at block `rank`'s barrier. Orders this block's own accesses only: that a slot has been read, not what was written.
LSTMVID_DEVICE void arrive_remote(Barrier* barrier, int rank) {
  if constexpr (kHasClusters) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote_address(barrier, rank)) : "memory");
  } else {
    arrive(barrier);
  }
}

}  // namespace lstmvid
#endif
