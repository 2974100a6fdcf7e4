// Barriers in shared memory on which copies and warps of one block, or of a whole cluster, meet (PTX: mbarrier).
//
// A barrier's phase completes when its expected number of arrivals has come and every copy announced to it has landed;
// then the next phase begins. Whoever waits names the parity of the phase: 0 for the first, 1 for the second, and so on.
#pragma once

#include "cuda/primitives/platform.h"

namespace lstmvid {

struct alignas(8) Barrier {
  uint64_t word;
};

}  // namespace lstmvid

#if LSTMVID_EMULATED
#include "emulation/barrier.h"
#else

namespace lstmvid {

LSTMVID_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// One thread, before anybody else touches the barrier. `arrivals`: of each phase.
LSTMVID_DEVICE void init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// By the thread that called init, after its last; sync_block() or sync_cluster() makes the barriers known to the others.
LSTMVID_DEVICE void fence_init() {
  if constexpr (kHasClusters) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Releases what this thread (and those it has synchronised with) wrote before, to whoever waits for the phase.
LSTMVID_DEVICE void arrive(Barrier* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier))
               : "memory");
}

// Whether the phase of that parity has completed; if so, what this block's threads and copies released to it can be read.
// Not blocking for long: the hardware may suspend the thread for a moment.
LSTMVID_DEVICE bool has_completed(Barrier* barrier, uint32_t parity) {
  uint32_t done;
  if constexpr (kHasClusters) {
    asm volatile(
        "{ .reg .pred p;\n"
        "  mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } else {
    asm volatile(
        "{ .reg .pred p;\n"
        "  mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
  return done != 0;
}

// The same for what any block of the cluster released. Dearer: the L1 cache is emptied.
LSTMVID_DEVICE bool has_completed_in_cluster(Barrier* barrier, uint32_t parity) {
  if constexpr (!kHasClusters) return has_completed(barrier, parity);
  uint32_t done;
  asm volatile(
      "{ .reg .pred p;\n"
      "  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "  selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

}  // namespace lstmvid
#endif

namespace lstmvid {

// Counts the polls of a wait, so that one for what never comes ends in an error and not in a hang. By polls, not by the
// clock: a debugger or a sanitizer may stop it. `limit` 0: without end.
struct PollBudget {
  uint64_t limit, left;

  LSTMVID_DEVICE explicit PollBudget(uint64_t polls) : limit(polls), left(polls) {}
  LSTMVID_DEVICE void reset() { left = limit; }
  LSTMVID_DEVICE void spend() {
    if (limit != 0 && --left == 0) trap();
  }
};

LSTMVID_DEVICE void wait(Barrier* barrier, uint32_t parity, uint64_t polls) {
  PollBudget budget(polls);
  while (!has_completed(barrier, parity)) budget.spend();
}

LSTMVID_DEVICE void wait_in_cluster(Barrier* barrier, uint32_t parity, uint64_t polls) {
  PollBudget budget(polls);
  while (!has_completed_in_cluster(barrier, parity)) budget.spend();
}

}  // namespace lstmvid
