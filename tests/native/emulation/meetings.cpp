// Meeting points: block, warps, cluster, barriers and their phases; launches.
#include "check.h"

namespace lstmvid {
namespace {

struct Output {
  float* out;
};

// Each thread reads what its neighbour in the block wrote, many times.
void block_kernel(const Output p) {
  auto* x = reinterpret_cast<float*>(shared_memory());
  float sum = 0;
  for (int i = 0; i < 10; ++i) {
    x[thread_idx()] = static_cast<float>(thread_idx() + i);
    sync_block();
    sum += x[(thread_idx() + 37) % 96];
    sync_block();
  }
  p.out[96 * block_idx() + thread_idx()] = sum;
}

CASE(sync_block_orders) {
  constexpr int kBlocks = 20;
  for (bool cooperative : {true, false}) {  // the latter in waves of a few blocks
    std::vector<float> out(96 * kBlocks);
    check::launch(block_kernel, kBlocks, 96, 1, 96 * 4, Output{out.data()}, cooperative);
    for (int i = 0; i < 96 * kBlocks; ++i) check::expect_equal(out[i], 10.0f * ((i + 37) % 96) + 45, "neighbours' sum");
  }
}

// Two pairs of warps with a barrier each, beside a warp that takes no part.
void warps_kernel(const Output p) {
  auto* x = reinterpret_cast<float*>(shared_memory());
  if (warp_idx() == 4) return;
  const int half = warp_idx() / 2, inside = thread_idx() % 64;
  float sum = 0;
  for (int i = 0; i < 10; ++i) {
    x[thread_idx()] = static_cast<float>(inside + i);
    sync_warps(1 + half, 64);
    sum += x[64 * half + (inside + 33) % 64];
    sync_warps(1 + half, 64);
  }
  p.out[thread_idx()] = sum;
}

CASE(sync_warps_orders) {
  std::vector<float> out(128);
  check::launch(warps_kernel, 1, 160, 1, 128 * 4, Output{out.data()});
  for (int i = 0; i < 128; ++i) check::expect_equal(out[i], 10.0f * ((i % 64 + 33) % 64) + 45, "neighbours' sum");
}

void lanes_kernel(const Output p) {
  auto* x = reinterpret_cast<float*>(shared_memory());
  float sum = 0;
  for (int i = 0; i < 10; ++i) {
    x[lane_idx()] = static_cast<float>(lane_idx() + i);
    sync_lanes();
    sum += x[(lane_idx() + 5) % 32];
    sync_lanes();
  }
  p.out[lane_idx()] = sum;
}

CASE(sync_lanes_orders) {
  std::vector<float> out(32);
  check::launch(lanes_kernel, 1, 32, 1, 128, Output{out.data()});
  for (int i = 0; i < 32; ++i) check::expect_equal(out[i], 10.0f * ((i + 5) % 32) + 45, "neighbours' sum");
}

constexpr int kSlots = 3, kRounds = 20;

// Warp 2 fills a ring of slots that warps 0 and 1 empty.
void ring_kernel(const Output p) {
  auto* barriers = reinterpret_cast<Barrier*>(shared_memory());  // full, then empty
  auto* slots = reinterpret_cast<float*>(shared_memory() + 64);  // [kSlots, 32]
  if (thread_idx() == 0) {
    for (int i = 0; i < kSlots; ++i) {
      init(barriers + i, kWarpSize);
      init(barriers + kSlots + i, 2);
    }
    fence_init();
  }
  sync_block();
  float sum = 0;
  for (int i = 0; i < kRounds; ++i) {
    const int slot = i % kSlots, round = i / kSlots;
    Barrier *full = barriers + slot, *empty = barriers + kSlots + slot;
    if (warp_idx() == 2) {
      wait(empty, (round & 1) ^ 1, 0);  // passes at once in the first round
      slots[32 * slot + lane_idx()] = static_cast<float>(i * lane_idx());
      arrive(full);
    } else {
      wait(full, round & 1, 0);
      sum += slots[32 * slot + 31 - lane_idx()];
      sync_lanes();
      if (lane_idx() == 0) arrive(empty);
    }
  }
  if (warp_idx() < 2) p.out[thread_idx()] = sum;
}

CASE(barriers_guard_a_ring) {
  std::vector<float> out(64);
  check::launch(ring_kernel, 1, 96, 1, 64 + kSlots * 128, Output{out.data()});
  for (int i = 0; i < 64; ++i) check::expect_equal(out[i], 190.0f * (31 - i % 32), "sum over the rounds");
}

struct Parities {
  bool* answers;  // [6]
};

void parity_kernel(const Parities p) {
  auto* barrier = reinterpret_cast<Barrier*>(shared_memory());
  if (lane_idx() == 0) {
    init(barrier, 2);
    p.answers[0] = has_completed(barrier, 0);
    p.answers[1] = has_completed(barrier, 1);  // of the phase before the first, as in hardware
    arrive(barrier);
    p.answers[2] = has_completed(barrier, 0);
    arrive(barrier);
    p.answers[3] = has_completed(barrier, 0);
    p.answers[4] = has_completed(barrier, 1);
    arrive(barrier);
    arrive(barrier);
    p.answers[5] = has_completed(barrier, 1);
  }
}

CASE(barrier_parities) {
  bool answers[6];
  check::launch(parity_kernel, 1, 32, 1, 8, Parities{answers});
  const bool expected[6] = {false, true, false, true, false, true};
  for (int i = 0; i < 6; ++i) check::expect_equal(answers[i], expected[i], "answer " + std::to_string(i));
}

struct Exchange {
  float* out;  // [blocks, 32]
  int cluster;
};

// Every block of a cluster sends to every other, which waits for as many bytes.
void cluster_kernel(const Exchange p) {
  auto* barrier = reinterpret_cast<Barrier*>(shared_memory());
  auto* inbox = reinterpret_cast<float4*>(shared_memory() + 128);  // [2, cluster, 32]
  if (thread_idx() == 0) {
    init(barrier, remote_store_arrivals(p.cluster));
    fence_init();
  }
  sync_cluster();
  float sum = 0;
  for (int i = 0; i < 6; ++i) {
    float4* slot = inbox + (i & 1) * p.cluster * 32;
    if (lane_idx() == 0) expect_remote_stores(barrier, p.cluster * 32 * 16);
    for (int rank = 0; rank < p.cluster; ++rank) {
      const auto value = static_cast<float>(100 * cluster_rank() + lane_idx() + i);
      store_remote(slot + cluster_rank() * 32 + lane_idx(), rank, make_float4(value, 0, 0, 1), barrier);
      finish_remote_stores(barrier, rank);
    }
    wait_in_cluster(barrier, i & 1, 0);
    for (int rank = 0; rank < p.cluster; ++rank) sum += slot[rank * 32 + 31 - lane_idx()].x;
    sync_cluster();
  }
  p.out[block_idx() * 32 + lane_idx()] = sum;
}

CASE(clusters_exchange_through_shared_memory) {
  for (int cluster : {1, 2, 4, 8}) {
    if (cluster > 1 && !kHasClusters) break;
    std::vector<float> out(16 * 32);
    emulation::statistics() = {};
    check::launch(cluster_kernel, 16, 32, cluster, 128 + 2 * cluster * 512, Exchange{out.data(), cluster});
    for (int i = 0; i < 16 * 32; ++i) {
      const float expected = 6.0f * (50 * cluster * (cluster - 1) + cluster * (31 - i % 32)) + 15 * cluster;
      check::expect_equal(out[i], expected, "sum over the cluster");
    }
    check::expect_equal(emulation::statistics().remote_stores, 16u * cluster * 32 * 6, "remote stores");
    check::expect_equal(emulation::statistics().remote_store_conflicts, 0u, "conflicts");
  }
}

void conflict_kernel(const Output) {
  store_remote(reinterpret_cast<float4*>(shared_memory() + 128 * lane_idx()), 0, make_float4(0, 0, 0, 0), nullptr);
}

CASE(remote_store_conflicts_are_counted) {
  check::launch(conflict_kernel, 1, 32, 1, 32 * 128, Output{nullptr});
  check::expect_equal(emulation::statistics().remote_store_conflicts, 4u * 7, "conflicts");
}

void empty_kernel(const Output) {}

CASE(launches_are_checked) {
  const auto refused = [](int64_t blocks, int threads, int cluster, int64_t shared, const char* part) {
    try {
      check::launch(empty_kernel, blocks, threads, cluster, shared, Output{nullptr});
    } catch (const std::invalid_argument& error) {
      check::expect(std::string(error.what()).find(part) != std::string::npos, error.what());
      return;
    }
    check::expect(false, std::string("not refused: ") + part);
  };
  refused(1, 33, 1, 0, "threads a block");
  refused(1, 2048, 1, 0, "threads a block");
  refused(1, 32, 1, 228 * 1024, "shared bytes");
  refused(133, 32, 1, 200 * 1024, "resident at once");
#if !defined(__SANITIZE_THREAD__)  // it takes a second and 4 GB for so many threads
  check::launch(empty_kernel, 132, 32, 1, 200 * 1024, Output{nullptr});
  check::launch(empty_kernel, 140, 32, 1, 100 * 1024, Output{nullptr});
#endif
  if (kHasClusters) {
    refused(3, 32, 2, 0, "fill no cluster");
    refused(16, 32, 16, 0, "blocks a cluster");
    refused(31 * 4, 32, 4, 200 * 1024, "resident at once");
  } else {
    refused(2, 32, 2, 0, "blocks a cluster");
  }
}

}  // namespace
}  // namespace lstmvid
