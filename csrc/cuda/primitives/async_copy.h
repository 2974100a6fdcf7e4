// Asynchronous copies from global into shared memory, whose arrival a Barrier counts.
//
// A bulk copy (sm_90 and up) is done by the copy engine, outside the order of ordinary loads and stores ("async proxy"):
// between observing a flag and a bulk copy of what it published there must be a fence. `fence_async_copies` returns a
// token that the copy asks for, so that the fence can't be forgotten.
#pragma once

#include "cuda/primitives/barrier.h"
#include "cuda/primitives/platform.h"

namespace lstmvid {

struct FenceToken {};

// Of memory that nobody writes while the kernel runs, copies need no fence.
LSTMVID_DEVICE FenceToken read_only_memory() { return {}; }

}  // namespace lstmvid

#if LSTMVID_EMULATED
#include "emulation/async_copy.h"
#else

namespace lstmvid {

// Orders what this thread knows of (by flags and barriers) before its bulk copies from here on.
LSTMVID_DEVICE FenceToken fence_async_copies() {
  if constexpr (kHasClusters) asm volatile("fence.proxy.async.global;" ::: "memory");
  return {};
}

// 16 bytes, both addresses aligned to 16; past the L1 cache, which doesn't see other blocks' stores.
LSTMVID_DEVICE void copy_16_bytes(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

// Arrives at the barrier, once, when all copy_16_bytes() that this thread has issued so far have landed.
LSTMVID_DEVICE void arrive_when_copied(Barrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// One thread: announces `bytes` to the barrier, arrives there, and starts the copy. 16-byte aligned, a multiple of 16.
LSTMVID_DEVICE void copy_bulk(FenceToken, void* shared, const void* global, uint32_t bytes, Barrier* barrier) {
  const uint32_t destination = shared_address(shared), mbarrier = shared_address(barrier);
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(mbarrier), "r"(bytes) : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
      "l"(global), "r"(bytes), "r"(mbarrier)
      : "memory");
}

}  // namespace lstmvid
#endif

namespace lstmvid {

// Arrivals that the barrier of a copy_block() expects in each phase.
constexpr int kCopyArrivals = kHasClusters ? 1 : kWarpSize;

// One warp copies a contiguous block, 16-byte aligned and a multiple of 16 long, by the best means the chip has.
LSTMVID_DEVICE void copy_block(FenceToken fence, void* shared, const void* global, uint32_t bytes, Barrier* barrier) {
  if constexpr (kHasClusters) {
    if (lane_idx() == 0) copy_bulk(fence, shared, global, bytes, barrier);
  } else {
    for (uint32_t at = 16 * lane_idx(); at < bytes; at += 16 * kWarpSize) {
      copy_16_bytes(static_cast<uint8_t*>(shared) + at, static_cast<const uint8_t*>(global) + at);
    }
    arrive_when_copied(barrier);
  }
}

}  // namespace lstmvid
