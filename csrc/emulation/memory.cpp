// Shared memory: poison, guard zones, and reaching another block's.
#include <cstdio>
#include <cstdlib>

#include "emulation/machine.h"
#include "emulation/sanitizers.h"

namespace lstmvid::emulation {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr uint8_t kGuard = 0xa5, kPoison = 0xff;  // poison is NaN in every type

size_t shared_bytes() { return static_cast<size_t>(machine.grid.shared_bytes); }

}  // namespace

void allocate_shared(Block& block) {
  const size_t bytes = (shared_bytes() + 2 * kGuardBytes + 127) / 128 * 128;
  block.memory = static_cast<uint8_t*>(std::aligned_alloc(128, bytes));
  block.shared = block.memory + kGuardBytes;
  fill_quietly(block.memory, kGuard, bytes);
  fill_quietly(block.shared, kPoison, shared_bytes());
  forbid_access(block.memory, kGuardBytes);
  forbid_access(block.shared + shared_bytes(), kGuardBytes);
}

void end_shared(Block& block) {
  allow_access(block.memory, 2 * kGuardBytes + shared_bytes());
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (block.memory[i] != kGuard) {
      fail("the block has written %zu bytes before the start of its shared memory", kGuardBytes - i);
    }
    if (block.shared[shared_bytes() + i] != kGuard) {
      fail("the block has written %zu bytes after the end of its %zu bytes of shared memory", i, shared_bytes());
    }
  }
  fill_quietly(block.shared, kPoison, shared_bytes());
}

void free_shared(Block& block) {
  allow_access(block.memory, 2 * kGuardBytes + shared_bytes());
  std::free(block.memory);
  block.memory = block.shared = nullptr;
}

bool is_shared(const Block& block, const void* from, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(from), start = reinterpret_cast<uintptr_t>(block.shared);
  return at >= start && at - start <= shared_bytes() && bytes <= shared_bytes() - (at - start);
}

Where where_in_shared(const Block& block, const void* at) {
  Where where;
  std::snprintf(where.text, sizeof(where.text), "shared memory + %td of block %lld",
                static_cast<const uint8_t*>(at) - block.shared, static_cast<long long>(block.index));
  return where;
}

void* remote_place(const void* shared, int rank, size_t bytes, const char* use) {
  Block& block = *running->warp->block;
  Cluster& cluster = *block.cluster;
  if (rank < 0 || rank >= machine.grid.cluster)
    fail("%s to rank %d of a cluster of %d", use, rank, machine.grid.cluster);
  if (!is_shared(block, shared, bytes)) fail("%s to an address outside of the block's shared memory", use);
  Block& other = *cluster.blocks[static_cast<size_t>(rank)];
  if (&other != &block) {
    if (cluster.round == 0) {
      fail("%s to rank %d before the cluster's first sync_cluster(): that block may not have begun", use, rank);
    }
    if (other.ended == machine.grid.threads) {
      fail("%s to rank %d, which has ended: use of an exited block's memory", use, rank);
    }
    other.touched_at = static_cast<int64_t>(cluster.round);
  }
  return other.shared + (static_cast<const uint8_t*>(shared) - block.shared);
}

void* remote_store(const void* shared, int rank) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0)
    fail("store_remote() to an address that isn't aligned to 16 bytes");
  void* to = remote_place(shared, rank, 16, "store_remote()");
  ++statistics().remote_stores;
  maybe_yield();
  Warp& warp = *running->warp;
  const int lane = running->lane;
  if (warp.stores == nullptr) warp.stores = std::make_unique<RemoteStores>();
  const uint64_t number = warp.stores->issued[lane]++;
  RemoteStores::Together& together = warp.stores->together[number % RemoteStores::kDepth][lane / 8];
  if (together.number != number) together = {};  // the lanes are further apart than what is kept, or diverged
  together.number = number;
  uint64_t same = 0;
  for (int i = 0; i < together.count; ++i) {
    const auto at = reinterpret_cast<uintptr_t>(to);
    same += at % 128 == together.addresses[i] % 128 && at != together.addresses[i];
  }
  if (same > together.conflicts) {
    together.conflicts = same;
    ++statistics().remote_store_conflicts;
  }
  together.addresses[together.count++ % 8] = reinterpret_cast<uintptr_t>(to);
  if (together.count == 8) together = {};
  return to;
}

}  // namespace lstmvid::emulation
