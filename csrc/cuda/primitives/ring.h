// A ring of slots in shared memory: some warps fill them, others use them and free them, both in the same order.
#pragma once

#include "cuda/primitives/barrier.h"
#include "cuda/primitives/platform.h"

namespace lstmvid {

// Each warp, or thread, has its own copy, which is its place in the ring. Offsets, not pointers: they come from the kernel's
// parameters and need no registers.
struct Ring {
  int barriers;  // of shared memory's first words: full [slots], then empty [slots]
  int slots;
  int64_t data, slot_bytes;
  int slot = 0;
  uint32_t phase = 0;

  LSTMVID_DEVICE Ring(int barriers, int slots, int64_t data, int64_t slot_bytes)
      : barriers(barriers), slots(slots), data(data), slot_bytes(slot_bytes) {}
  LSTMVID_DEVICE Barrier* full() const { return reinterpret_cast<Barrier*>(shared_memory()) + barriers + slot; }
  LSTMVID_DEVICE Barrier* empty() const { return full() + slots; }
  LSTMVID_DEVICE uint8_t* here() const { return shared_memory() + data + slot * slot_bytes; }
  LSTMVID_DEVICE void init(int arrivals_full, int arrivals_empty) const {
    for (int i = 0; i < slots; ++i) {
      lstmvid::init(full() + i, arrivals_full);
      lstmvid::init(empty() + i, arrivals_empty);
    }
  }
  LSTMVID_DEVICE void advance() {
    if (++slot < slots) return;
    slot = 0;
    phase ^= 1;
  }
  // All lanes: one that lagged behind by a whole turn of the ring would wait for a phase long gone.
  LSTMVID_DEVICE void wait_empty(uint64_t polls) const {
    wait(empty(), phase ^ 1, polls);
    sync_lanes();
  }
  LSTMVID_DEVICE void wait_full(uint64_t polls) const { wait(full(), phase, polls); }
  // By all lanes of a warp that has read the slot.
  LSTMVID_DEVICE void release() {
    sync_lanes();
    if (lane_idx() == 0) arrive(empty());
    advance();
  }
  // The same of the slot before this one, where the cursor has gone ahead of what is still being read.
  LSTMVID_DEVICE void release_before() const {
    sync_lanes();
    if (lane_idx() == 0) arrive(slot > 0 ? empty() - 1 : empty() + slots - 1);
  }
};

}  // namespace lstmvid
