// Asynchronous copies, and flags between blocks.
#include <cmath>

#include "check.h"

namespace lstmvid {
namespace {

struct Copies {
  const float* from;  // [rounds, floats]
  float* to;
  int rounds, floats;
};

// A ring of two slots: warp 1 copies in, warp 0 copies out.
void copy_kernel(const Copies p) {
  auto* barriers = reinterpret_cast<Barrier*>(shared_memory());
  auto* slots = reinterpret_cast<float*>(shared_memory() + 128);
  if (thread_idx() == 0) {
    for (int i = 0; i < 2; ++i) {
      init(barriers + i, 2 * kCopyArrivals);  // each slot by two copies
      init(barriers + 2 + i, kWarpSize);
    }
    fence_init();
  }
  sync_block();
  for (int i = 0; i < p.rounds; ++i) {
    float* slot = slots + (i & 1) * p.floats;
    if (warp_idx() == 1) {
      wait(barriers + 2 + (i & 1), (i / 2 & 1) ^ 1, 0);
      const FenceToken fence = fence_async_copies();
      const uint32_t half = static_cast<uint32_t>(p.floats) * 2;
      sync_lanes();
      copy_block(fence, slot, p.from + i * p.floats, half, barriers + (i & 1));
      copy_block(fence, slot + p.floats / 2, p.from + i * p.floats + p.floats / 2, half, barriers + (i & 1));
    } else {
      wait(barriers + (i & 1), i / 2 & 1, 0);
      for (int j = lane_idx(); j < p.floats; j += kWarpSize) p.to[i * p.floats + j] = slot[j];
      arrive(barriers + 2 + (i & 1));
    }
  }
}

CASE(copies_arrive_whole) {
  for (int floats : {8, 128, 1000}) {
    std::vector<float> from(static_cast<size_t>(9 * floats)), to(from.size());
    for (float& x : from) x = static_cast<float>(check::random()() % 1000);
    check::launch(copy_kernel, 1, 64, 1, 128 + 8 * floats, Copies{from.data(), to.data(), 9, floats});
    check::expect(from == to, "what arrived isn't what was sent");
  }
  check::expect_equal(emulation::statistics().copied_bytes, 9u * 4 * (8 + 128 + 1000), "bytes");
}

struct Rounds {
  uint32_t* flags;  // [blocks]
  float* exchange;  // [2, blocks, 64]
  float* out;       // [blocks]
  int rounds;
};

// Each block sums what all blocks have published in the round before.
void flags_kernel(const Rounds p) {
  auto* barrier = reinterpret_cast<Barrier*>(shared_memory());
  auto* stage = reinterpret_cast<float*>(shared_memory() + 128);  // [blocks, 64]
  const auto blocks = static_cast<int>(grid_blocks()), block = static_cast<int>(block_idx());
  if (thread_idx() == 0) {
    init(barrier, kCopyArrivals);
    fence_init();
  }
  sync_block();
  float value = static_cast<float>(block);
  for (int i = 0; i < p.rounds; ++i) {
    float* exchange = p.exchange + (i & 1) * blocks * 64;
    if (warp_idx() < 2) {
      store_exchanged(exchange + block * 64 + thread_idx(), value);
      sync_warps(1, 64);
      if (thread_idx() == 0) publish(p.flags + block, static_cast<uint32_t>(i + 1));
    } else {
      bool all;
      do {
        bool mine = true;
        for (int j = lane_idx(); j < blocks; j += kWarpSize) mine &= observe(p.flags + j) > static_cast<uint32_t>(i);
        all = all_lanes(mine);
      } while (!all);
      sync_lanes();
      copy_block(fence_async_copies(), stage, exchange, static_cast<uint32_t>(blocks) * 256, barrier);
    }
    wait(barrier, i & 1, 0);
    float sum = 0;
    for (int j = 0; j < blocks; ++j) sum += stage[j * 64 + thread_idx() % 64];
    value = sum / static_cast<float>(blocks) + static_cast<float>(block);
    sync_block();
  }
  if (thread_idx() == 0) p.out[block] = value;
}

CASE(flags_order_blocks) {
  constexpr int kBlocks = 12;
  std::vector<uint32_t> flags(kBlocks);
  std::vector<float> exchange(2 * kBlocks * 64), out(kBlocks);
  check::launch(flags_kernel, kBlocks, 96, 1, 128 + kBlocks * 256,
                Rounds{flags.data(), exchange.data(), out.data(), 7});
  for (int i = 0; i < kBlocks; ++i)
    check::expect_equal(out[i], 5.5f * 7 + static_cast<float>(i), "sum over the blocks");
}

CASE(a_seed_gives_one_schedule) {
  constexpr int kBlocks = 4;
  const auto switches = [](uint64_t seed) {
    std::vector<uint32_t> flags(kBlocks);
    std::vector<float> exchange(2 * kBlocks * 64), out(kBlocks);
    emulation::set_seed(seed);
    emulation::statistics() = {};
    check::launch(flags_kernel, kBlocks, 96, 1, 128 + kBlocks * 256,
                  Rounds{flags.data(), exchange.data(), out.data(), 3});
    return emulation::statistics().switches;
  };
  check::expect_equal(switches(1), switches(1), "switches with the same seed");
  check::expect(switches(1) != switches(2) || switches(1) != switches(3), "all seeds give one schedule");
}

void shared_kernel(float* const out) {
  const auto* shared = reinterpret_cast<const float*>(shared_memory());
  check::expect(reinterpret_cast<uintptr_t>(shared) % 128 == 0, "shared memory isn't aligned");
  out[32 * block_idx() + lane_idx()] = shared[lane_idx()];
}

CASE(shared_memory_is_poisoned) {
  std::vector<float> out(3 * 32);
  check::launch<float*>(shared_kernel, 3, 32, 1, 128, out.data());
  for (float x : out) check::expect(std::isnan(x), "shared memory that nobody wrote isn't NaN");
}

}  // namespace
}  // namespace lstmvid
