// Emulated: barriers in shared memory. The word holds the number of the barrier's state, which the runtime keeps.
#pragma once

#include "emulation/runtime.h"

namespace lstmvid {

LSTMVID_DEVICE void init(Barrier* barrier, int arrivals) { emulation::init_barrier(&barrier->word, arrivals); }
LSTMVID_DEVICE void fence_init() { emulation::fence_init(); }
LSTMVID_DEVICE void arrive(Barrier* barrier) { emulation::arrive(&barrier->word); }
LSTMVID_DEVICE bool has_completed(Barrier* barrier, uint32_t parity) {
  return emulation::has_completed(&barrier->word, parity);
}

LSTMVID_DEVICE bool has_completed_in_cluster(Barrier* barrier, uint32_t parity) {
  return has_completed(barrier, parity);
}

}  // namespace lstmvid
