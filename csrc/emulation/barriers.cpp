// Meeting points: of a block, of some of its warps, of a cluster, and barriers in shared memory.
#include <cstdio>

#include "emulation/machine.h"
#include "emulation/sanitizers.h"

namespace lstmvid::emulation {
namespace {

constexpr uint64_t kMark = uint64_t{0x62a1} << 48;  // in the word of a barrier that has been initialised
constexpr int kMostArrivals = (1 << 20) - 1;

// All of a named barrier's threads, which count as one round.
void meet_at(int number, int threads, Waits waits) {
  Warp& warp = *running->warp;
  Block& block = *warp.block;
  NamedBarrier& barrier = block.named[number];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
  } else if (barrier.expected != threads) {
    fail("sync_warps(%d, %d), while others wait in sync_warps(%d, %d)", number, threads, number, barrier.expected);
  }
  const uint64_t round = barrier.round;
  release(barrier.order.of(round));
  if (++barrier.arrived < threads) {
    warp.at_named[number] |= 1u << running->lane;
    suspend(waits, nullptr, static_cast<uint32_t>(number));
  } else {
    barrier.arrived = 0;
    ++barrier.round;
    ++machine.progress;
    for (Warp& other : block.warps) {
      if (other.at_named[number] != 0) make_ready(&other, other.at_named[number]);
      other.at_named[number] = 0;
    }
    maybe_yield();
  }
  acquire(barrier.order.of(round));
}

void complete_phase_if_due(BarrierState& barrier, Block& block) {
  if (barrier.pending != 0 || barrier.bytes_missing != 0) return;
  if (!barrier.observed) {
    fail(
        "phase %llu of the barrier at %s has completed before anybody saw the one before complete: more arrivals than "
        "the %d expected of each phase, or a wait is missing",
        static_cast<unsigned long long>(barrier.phase), where_in_shared(block, barrier.word).text, barrier.expected);
  }
  ++barrier.phase;
  barrier.pending = barrier.expected;
  barrier.observed = false;
  wake_pollers(block, barrier.word);
}

}  // namespace

void sync_block() {
  const Block& block = *running->warp->block;
  if (block.ended != 0) fail("sync_block(), but %d threads of the block have ended", block.ended);
  meet_at(0, machine.grid.threads, Waits::kBlock);
}

void sync_warps(int barrier, int threads) {
  if (barrier < 1 || barrier > 15) fail("sync_warps(%d, %d): barriers are 1 to 15", barrier, threads);
  if (threads < 32 || threads % 32 != 0 || threads > machine.grid.threads) {
    fail("sync_warps(%d, %d): not whole warps of the block's %d threads", barrier, threads, machine.grid.threads);
  }
  meet_at(barrier, threads, Waits::kWarps);
}

void trap() { fail("trap()"); }

void sync_cluster() {
  Cluster& cluster = *running->warp->block->cluster;
  if (cluster.ended != 0)
    fail("sync_cluster(), but %d threads of the cluster have ended", static_cast<int>(cluster.ended));
  const uint64_t round = cluster.round;
  release(cluster.order.of(round));
  running->warp->at_cluster |= 1u << running->lane;
  if (++cluster.arrived < machine.grid.cluster * machine.grid.threads) {
    suspend(Waits::kCluster);
  } else {
    cluster.arrived = 0;
    ++cluster.round;
    ++machine.progress;
    running->warp->at_cluster &= ~(1u << running->lane);
    for (Block* block : cluster.blocks) {
      for (Warp& warp : block->warps) {
        if (warp.at_cluster != 0) make_ready(&warp, warp.at_cluster);
        warp.at_cluster = 0;
      }
    }
    maybe_yield();
  }
  acquire(cluster.order.of(round));
}

BarrierState& barrier_at(uint64_t* word, Block& block, const char* use) {
  if (reinterpret_cast<uintptr_t>(word) % 8 != 0 || !is_shared(block, word, 8)) {
    fail("%s of a barrier that isn't aligned to 8 bytes or not in the block's shared memory", use);
  }
  const uint64_t number = *word ^ kMark;
  if (number >= block.barriers.size() || block.barriers[number].word != word) {
    fail("%s of what isn't an initialised barrier, at %s", use, where_in_shared(block, word).text);
  }
  return block.barriers[number];
}

void wake_pollers(Block& block, const uint64_t* word) {
  for (Warp& warp : block.warps) {
    uint32_t woken = 0;
    for (uint32_t left = warp.polling; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      if (warp.lanes[lane]->waits_for == word) woken |= 1u << lane;
    }
    if (woken != 0) make_ready(&warp, woken);
  }
}

void init_barrier(uint64_t* word, int arrivals) {
  Block& block = *running->warp->block;
  if (reinterpret_cast<uintptr_t>(word) % 8 != 0 || !is_shared(block, word, 8)) {
    fail("init() of a barrier that isn't aligned to 8 bytes or not in the block's shared memory");
  }
  if (arrivals < 1 || arrivals > kMostArrivals) fail("init() of a barrier for %d arrivals", arrivals);
  for (const BarrierState& barrier : block.barriers) {
    if (barrier.word != word) continue;
    fail("init() of a barrier that has been initialised before, at %s", where_in_shared(block, word).text);
  }
  report_write(word, 8);
  *word = kMark ^ block.barriers.size();
  block.barriers.push_back({word, arrivals, arrivals, 0, 0, true, false, running, {}});
}

void fence_init() {
  for (BarrierState& barrier : running->warp->block->barriers) barrier.fenced |= barrier.initialiser == running;
}

void arrive_at(BarrierState& barrier, Block& block) {
  release(barrier.order.of(barrier.phase));
  ++machine.progress;
  if (barrier.pending == 0) {
    fail("an arrival beyond the %d expected, at the barrier at %s whose copies haven't landed", barrier.expected,
         where_in_shared(block, barrier.word).text);
  }
  --barrier.pending;
  complete_phase_if_due(barrier, block);
}

void announce_copy(BarrierState& barrier, int64_t bytes) { barrier.bytes_missing += bytes; }

void complete_copy(BarrierState& barrier, Block& block, int64_t bytes) {
  release(barrier.order.of(barrier.phase));
  ++machine.progress;
  barrier.bytes_missing -= bytes;
  complete_phase_if_due(barrier, block);
}

void arrive(uint64_t* word) {
  Block& block = *running->warp->block;
  report_read(word, 8);
  arrive_at(barrier_at(word, block, "arrive()"), block);
  maybe_yield();
}

void arrive_remote(uint64_t* word, int rank) {
  auto* remote = reinterpret_cast<uint64_t*>(remote_place(word, rank, 8, "arrive_remote()"));
  Block& block = *running->warp->block->cluster->blocks[static_cast<size_t>(rank)];
  report_read(remote, 8);
  BarrierState& barrier = barrier_at(remote, block, "arrive_remote()");
  if (machine.grid.arch >= 90 && &block != running->warp->block && !barrier.fenced) {
    fail("arrive_remote() at the barrier at %s, after whose init() nobody called fence_init()",
         where_in_shared(block, remote).text);
  }
  arrive_at(barrier, block);
  maybe_yield();
}

bool has_completed(uint64_t* word, uint32_t parity) {
  Block& block = *running->warp->block;
  report_read(word, 8);
  BarrierState& barrier = barrier_at(word, block, "has_completed()");
  if (parity > 1) fail("has_completed() of parity %u", parity);
  Fiber& self = *running;
  if (self.polled == word && barrier.phase > self.polled_phase + 1) {
    fail(
        "waited for phase %llu of the barrier at %s, which is in phase %llu already: others don't wait for this thread",
        static_cast<unsigned long long>(self.polled_phase), where_in_shared(block, word).text,
        static_cast<unsigned long long>(barrier.phase));
  }
  if ((barrier.phase & 1) != parity) {
    self.polled = nullptr;
    barrier.observed = true;
    acquire(barrier.order.of(parity));
    return true;
  }
  self.polled = word;
  self.polled_phase = barrier.phase;
  poll(Waits::kBarrier, word, parity);
  return false;
}

}  // namespace lstmvid::emulation
