// Kernels with a fault each, which must be found, and the same kernels without.
//
// `sound_*` must pass in every build. `wrong_*` must be found by a report or by wrong numbers; under ThreadSanitizer those
// named `wrong_order_*` end in its report of a data race, and the ones named `race_*` are found by nothing else.
#include "check.h"

namespace lstmvid {
namespace {

struct Fault {
  bool planted;
  float* out = nullptr;
  float* exchange = nullptr;
  uint32_t* flag = nullptr;
};

// A missing sync_block() between writing and reading.
void no_sync_block(const Fault p) {
  auto* x = reinterpret_cast<float*>(shared_memory());
  x[thread_idx()] = 1.0f;
  if (!p.planted) sync_block();
  p.out[thread_idx()] = x[(thread_idx() + 32) % 64];
}

bool right_without_sync_block(bool planted) {
  std::vector<float> out(64);
  check::launch(no_sync_block, 1, 64, 1, 256, Fault{planted, out.data()});
  for (float x : out) {
    if (!(x == 1.0f)) return false;
  }
  return true;
}

CASE(sound_sync_block) { check::expect(right_without_sync_block(false), "wrong"); }
CASE(wrong_order_no_sync_block) {
  check::expect_wrong([] { return right_without_sync_block(true); });
}

enum class Publishing { kSound, kBeforeOthers, kRelaxed };

// 64 threads of block 0 store, one publishes, block 1 reads.
template <Publishing publishing>
void publish_kernel(const Fault p) {
  if (block_idx() == 0) {
    if (publishing == Publishing::kBeforeOthers && thread_idx() == 0) publish(p.flag, 1);
    store_exchanged(p.exchange + thread_idx(), 1.0f);
    sync_warps(1, 64);
    if (publishing == Publishing::kRelaxed && thread_idx() == 0) __atomic_store_n(p.flag, 1, __ATOMIC_RELAXED);
    if (publishing == Publishing::kSound && thread_idx() == 0) publish(p.flag, 1);
  } else {
    while (observe(p.flag) == 0) {
    }
    p.out[thread_idx()] = load_exchanged(p.exchange + thread_idx());
  }
}

template <Publishing publishing>
bool publishes_right() {
  std::vector<float> out(64), exchange(64);
  uint32_t flag = 0;
  check::launch(publish_kernel<publishing>, 2, 64, 1, 0, Fault{true, out.data(), exchange.data(), &flag});
  for (float x : out) {
    if (!(x == 1.0f)) return false;
  }
  return true;
}

CASE(sound_publish) { check::expect(publishes_right<Publishing::kSound>(), "wrong"); }
CASE(wrong_order_publish_before_the_others) { check::expect_wrong(publishes_right<Publishing::kBeforeOthers>); }
CASE(race_publish_without_release) { check::expect(publishes_right<Publishing::kRelaxed>(), "wrong"); }

// A copy of what a flag announced, with a fence after the flag or only before it.
void fence_kernel(const Fault p) {
  auto* barrier = reinterpret_cast<Barrier*>(shared_memory());
  auto* stage = reinterpret_cast<float*>(shared_memory() + 128);
  if (thread_idx() == 0) {
    init(barrier, kCopyArrivals);
    fence_init();
  }
  sync_block();
  if (block_idx() == 0) {
    store_exchanged(p.exchange + thread_idx(), 1.0f);
    sync_block();
    if (thread_idx() == 0) publish(p.flag, 1);
  } else {
    while (observe(p.flag) == 0) {
    }
    const FenceToken token = p.planted ? FenceToken{} : fence_async_copies();
    copy_block(token, stage, p.exchange, 128, barrier);
    wait(barrier, 0, 0);
    p.out[thread_idx()] = stage[thread_idx()];
  }
}

void run_fence_kernel(bool planted) {
  std::vector<float> out(32), exchange(32);
  uint32_t flag = 0;
  check::launch(fence_kernel, 2, 32, 1, 256, Fault{planted, out.data(), exchange.data(), &flag});
  for (float x : out) check::expect_equal(x, 1.0f, "copied");
}

CASE(sound_fence) { run_fence_kernel(false); }
CASE(wrong_no_proxy_fence) {
  if (kHasClusters) {
    check::expect_report({"after this thread's last fence_async_copies()"}, [] { run_fence_kernel(true); });
  } else {
    run_fence_kernel(true);  // without bulk copies there is no proxy
  }
}

// What a copy brings is read without waiting for it.
void impatient_kernel(const Fault p) {
  auto* barrier = reinterpret_cast<Barrier*>(shared_memory());
  auto* stage = reinterpret_cast<float*>(shared_memory() + 128);
  if (thread_idx() == 0) {
    init(barrier, kCopyArrivals);
    fence_init();
  }
  sync_block();
  if (warp_idx() == 0) copy_block(fence_async_copies(), stage, p.exchange, 256, barrier);
  sync_block();
  if (!p.planted) wait(barrier, 0, 0);
  p.out[thread_idx()] = stage[thread_idx()];
  wait(barrier, 0, 0);
}

bool waits_right(bool planted) {
  std::vector<float> out(64), exchange(64, 1.0f);
  check::launch(impatient_kernel, 1, 64, 1, 128 + 256, Fault{planted, out.data(), exchange.data()});
  for (float x : out) {
    if (!(x == 1.0f)) return false;
  }
  return true;
}

CASE(sound_wait_for_copy) { check::expect(waits_right(false), "wrong"); }
CASE(wrong_order_no_wait_for_copy) {
  check::expect_wrong([] { return waits_right(true); });
}

// One lane waits for the others; the lanes then read without having met.
void one_lane_waits(const Fault p) {
  auto* barrier = reinterpret_cast<Barrier*>(shared_memory());
  auto* x = reinterpret_cast<float*>(shared_memory() + 128);
  if (thread_idx() == 0) {
    init(barrier, 1);
    fence_init();
  }
  sync_block();
  if (warp_idx() == 0) {
    x[lane_idx()] = 1.0f;
    sync_lanes();
    if (lane_idx() == 0) arrive(barrier);
  } else {
    if (lane_idx() == 0) wait(barrier, 0, 0);
    if (p.planted) {
      all_lanes(true);  // the lanes meet, but that orders nothing
    } else {
      sync_lanes();
    }
    p.out[lane_idx()] = x[lane_idx()];
  }
}

void run_one_lane_waits(bool planted) {
  std::vector<float> out(32);
  check::launch(one_lane_waits, 1, 64, 1, 256, Fault{planted, out.data()});
  for (float x : out) check::expect_equal(x, 1.0f, "read");
}

CASE(sound_one_lane_waits) { run_one_lane_waits(false); }
CASE(race_one_lane_waits_without_sync_lanes) { run_one_lane_waits(true); }

// A slot is overwritten by the next copy while the reader may still be at it.
void overwriting_kernel(const Fault p) {
  auto* barriers = reinterpret_cast<Barrier*>(shared_memory());  // full, empty
  auto* slot = reinterpret_cast<float*>(shared_memory() + 128);
  if (thread_idx() == 0) {
    init(barriers, kCopyArrivals);
    init(barriers + 1, kWarpSize);
    fence_init();
  }
  sync_block();
  for (int i = 0; i < 4; ++i) {
    if (warp_idx() == 0) {
      if (p.planted) {
        if (i > 0) wait(barriers, (i - 1) & 1, 0);
      } else {
        wait(barriers + 1, (i & 1) ^ 1, 0);
      }
      sync_lanes();  // lane 0 alone may make the copy: the others must have seen the phase before it lets the next begin
      copy_block(fence_async_copies(), slot, p.exchange + 32 * i, 128, barriers);
    } else {
      wait(barriers, i & 1, 0);
      p.out[32 * i + lane_idx()] = slot[lane_idx()];
      arrive(barriers + 1);
    }
  }
  wait(barriers, 1, 0);
}

CASE(sound_ring_slot) {
  std::vector<float> out(128), exchange(128, 1.0f);
  check::launch(overwriting_kernel, 1, 64, 1, 256, Fault{false, out.data(), exchange.data()});
  for (float x : out) check::expect_equal(x, 1.0f, "copied");
}
CASE(race_ring_slot_overwritten) {
  std::vector<float> out(128), exchange(128, 1.0f);
  try {
    check::launch(overwriting_kernel, 1, 64, 1, 256, Fault{true, out.data(), exchange.data()});
  } catch (const std::runtime_error& error) {  // some schedules let the reader miss a phase
    check::expect(std::string(error.what()).find("barrier") != std::string::npos, error.what());
  }
}

void shared_write(const Fault p) { shared_memory()[p.planted ? 64 + thread_idx() : thread_idx()] = 1; }

CASE(sound_shared_write) { check::launch(shared_write, 1, 32, 1, 64, Fault{false}); }
CASE(wrong_shared_write_out_of_bounds) {  // AddressSanitizer ends the process at the first
  check::expect_report({"after the end of its 64 bytes of shared memory"},
                       [] { check::launch(shared_write, 1, 32, 1, 64, Fault{true}); });
}

void exited_kernel(const Fault p) {
  sync_cluster();
  if (cluster_rank() == 1) {
    store_remote(reinterpret_cast<float4*>(shared_memory()) + thread_idx(), 0, make_float4(1, 2, 3, 4), nullptr);
  }
  if (!p.planted) sync_cluster();
}

void early_kernel(const Fault p) {
  if (!p.planted) sync_cluster();
  store_remote(reinterpret_cast<float4*>(shared_memory()), (cluster_rank() + 1) % 2, make_float4(1, 2, 3, 4), nullptr);
  if (p.planted) sync_cluster();
  sync_cluster();
}

void unfenced_barrier_kernel(const Fault p) {
  auto* barrier = reinterpret_cast<Barrier*>(shared_memory());
  if (thread_idx() == 0) {
    init(barrier, 32);
    if (!p.planted) fence_init();
  }
  sync_cluster();
  arrive_remote(barrier, (cluster_rank() + 1) % 2);
  wait(barrier, 0, 0);
  sync_cluster();
}

CASE(sound_cluster) {
  if (!kHasClusters) return;
  check::launch(exited_kernel, 4, 32, 2, 512, Fault{false});
  check::launch(unfenced_barrier_kernel, 4, 32, 2, 64, Fault{false});
}
CASE(wrong_use_of_an_exited_block) {
  if (!kHasClusters) return;
  check::expect_report({"ended"}, [] { check::launch(exited_kernel, 4, 32, 2, 512, Fault{true}); });
}
CASE(wrong_use_of_a_block_that_has_not_begun) {
  if (!kHasClusters) return;
  check::expect_report({"may not have begun"}, [] { check::launch(early_kernel, 4, 32, 2, 512, Fault{true}); });
}
CASE(wrong_no_fence_init) {
  if (!kHasClusters) return;
  check::expect_report({"called fence_init()"},
                       [] { check::launch(unfenced_barrier_kernel, 4, 32, 2, 64, Fault{true}); });
}

void endless_kernel(const Fault p) {
  if (block_idx() == 0 && !p.planted) publish(p.flag, 1);
  bool seen;
  do {
    seen = all_lanes(observe(p.flag) == 1);
  } while (!seen);
}

CASE(sound_flag_wait) {
  uint32_t flag = 0;
  check::launch(endless_kernel, 3, 64, 1, 0, Fault{false, nullptr, nullptr, &flag});
}
CASE(wrong_deadlock_on_a_flag) {
  uint32_t flag = 0;
  check::expect_report({"deadlock"},
                       [&flag] { check::launch(endless_kernel, 3, 64, 1, 0, Fault{true, nullptr, nullptr, &flag}); });
  check::expect_report({"looks at the flag at"},
                       [&flag] { check::launch(endless_kernel, 3, 64, 1, 0, Fault{true, nullptr, nullptr, &flag}); });
}

// Runs a few lines as a kernel of one block of 64 threads.
using Lines = void (*)(Barrier* barriers, float* floats);
struct LinesParameters {
  Lines lines;
  float* global;
};

void lines_kernel(const LinesParameters p) {
  auto* barriers = reinterpret_cast<Barrier*>(shared_memory());
  if (thread_idx() == 0) {
    init(barriers, 2);
    init(barriers + 1, kCopyArrivals);
    fence_init();
  }
  sync_block();
  p.lines(barriers, p.global);
}

void expect_lines(const std::vector<std::string>& reports, Lines lines) {
  alignas(16) float global[64] = {};
  check::expect_report(reports, [&] { check::launch(lines_kernel, 1, 64, 1, 1024, LinesParameters{lines, global}); });
}

CASE(wrong_deadlock_on_a_barrier) {
  expect_lines(
      {"waits for parity 0 of the barrier at shared memory + 0 of block 0 (in phase 0: 1 of 2 arrivals missing"},
      [](Barrier* barriers, float*) {
        if (thread_idx() == 0) arrive(barriers);
        wait(barriers, 0, 0);
      });
}
CASE(wrong_poll_limit) {
  expect_lines({"trap()"}, [](Barrier* barriers, float*) { wait(barriers, 0, 20); });
}
CASE(wrong_more_arrivals_than_expected) {
  expect_lines({"more arrivals than the 2 expected"}, [](Barrier* barriers, float*) { arrive(barriers); });
}
CASE(wrong_phase_missed) {
  expect_lines({"others don't wait for this thread", "before anybody saw"}, [](Barrier* barriers, float*) {
    for (uint32_t i = 0; i < 6; ++i) {
      if (lane_idx() == 0) arrive(barriers);
      if (lane_idx() < 2) wait(barriers, i & 1, 0);  // lane 1's wait holds nobody up
    }
  });
}
CASE(wrong_init_twice) {
  expect_lines({"has been initialised before"}, [](Barrier* barriers, float*) {
    if (thread_idx() == 5) init(barriers, 3);
  });
}
CASE(wrong_barrier_not_initialised) {
  expect_lines({"what isn't an initialised barrier, at shared memory + 56"},
               [](Barrier* barriers, float*) { arrive(barriers + 7); });
}
CASE(wrong_sync_block_by_some) {
  expect_lines({"sync_block()"}, [](Barrier*, float*) {
    if (thread_idx() != 40) sync_block();
  });
}
CASE(wrong_sync_warps_by_too_few) {
  expect_lines({"waits in sync_warps(1, 64) (32 threads there)"}, [](Barrier*, float*) {
    if (warp_idx() == 0) sync_warps(1, 64);
  });
}
CASE(wrong_sync_warps_numbers) {
  expect_lines({"while others wait in sync_warps(1,", "waits in sync_warps(1, 64) (32 threads there)"},
               [](Barrier*, float*) { sync_warps(1, warp_idx() == 0 ? 64 : 32); });
}
CASE(wrong_collective_by_some_lanes) {
  expect_lines({"have ended", "other lanes of its warp"}, [](Barrier*, float*) {
    if (lane_idx() < 16) all_lanes(true);
  });
  expect_lines({"have ended", "other lanes of its warp"}, [](Barrier*, float*) {
    if (lane_idx() < 16) {
      sync_lanes();
    } else if (lane_idx() == 16) {
      sync_warps(1, 64);
    }
  });
}
CASE(wrong_collectives_mixed) {
  expect_lines({"of the warp wait in"}, [](Barrier*, float*) {
    if (lane_idx() < 16) {
      all_lanes(true);
    } else {
      sync_lanes();
    }
  });
}
CASE(wrong_alignment) {
  expect_lines({"aligned to 16 bytes"}, [](Barrier* barriers, float*) {
    uint32_t x[4];
    load_matrices(x, reinterpret_cast<uint8_t*>(barriers) + 8);
  });
  expect_lines({"aligned to 16 bytes"}, [](Barrier* barriers, float* global) {
    if (warp_idx() == 0) copy_block(fence_async_copies(), barriers + 2, global + 1, 32, barriers + 1);
  });
  if (!kHasClusters) return;  // there the block is copied in pieces of 16 bytes
  expect_lines({"not a multiple of 16"}, [](Barrier* barriers, float* global) {
    if (warp_idx() == 0) copy_block(fence_async_copies(), barriers + 2, global, 24, barriers + 1);
  });
}
CASE(wrong_copy_out_of_bounds) {
  expect_lines({"outside of the block's shared memory"}, [](Barrier* barriers, float* global) {
    auto* end = reinterpret_cast<uint8_t*>(barriers) + 1008;
    if (warp_idx() == 0) copy_block(fence_async_copies(), end, global, 32, barriers + 1);
  });
}
CASE(wrong_copy_nobody_waits_for) {
  expect_lines({"nobody waited for"}, [](Barrier* barriers, float* global) {
    if (warp_idx() == 0) copy_block(fence_async_copies(), barriers + 2, global, 32, barriers + 1);
  });
}

}  // namespace
}  // namespace lstmvid
