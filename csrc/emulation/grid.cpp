// Running a grid: its fibers, blocks and waves of blocks.
#include <algorithm>
#include <deque>
#include <mutex>
#include <stdexcept>

#include "emulation/machine.h"
#include "emulation/sanitizers.h"

namespace lstmvid::emulation {

Machine machine;

namespace {

StackPool stacks;
std::deque<Fiber> fibers;  // reused from launch to launch
Order launched, done;

void end_block(Block& block) {
  if (block.copies != 0) fail("the block has ended with asynchronous copies in flight that nobody waited for");
  Cluster& cluster = *block.cluster;
  if (block.touched_at >= 0 && cluster.round <= static_cast<uint64_t>(block.touched_at)) {
    fail("the block has ended after another block has used its shared memory, without a sync_cluster() in between");
  }
  end_shared(block);
}

void end_thread() {
  Fiber& self = *running;
  Warp& warp = *self.warp;
  Block& block = *warp.block;
  if (self.pieces != nullptr) fail("the thread has ended with copy_16_bytes() that no arrive_when_copied() followed");
  if (warp.products != nullptr && warp.products->is_running) fail("the thread has ended with D still waited for");
  if (warp.arrived != 0) {
    fail("the thread has ended while other lanes of its warp (mask %08x) wait for it in a collective", warp.arrived);
  }
  if (block.named[0].arrived != 0) {
    fail("the thread has ended while %d threads of its block wait in sync_block()", block.named[0].arrived);
  }
  if (block.cluster->arrived != 0) {
    fail("the thread has ended while %d threads of its cluster wait in sync_cluster()",
         static_cast<int>(block.cluster->arrived));
  }
  warp.ended |= 1u << self.lane;
  ++block.cluster->ended;
  ++machine.progress;
  if (++block.ended == machine.grid.threads) end_block(block);
  --machine.fibers_left;
}

void fiber_main() {
  begin_on_stack();
  for (;;) {  // once a launch
    acquire(launched.of(0));
    try {
      machine.grid.run_thread(machine.grid.call);
    } catch (const std::exception& error) {
      fail("threw: %s", error.what());
    }
    end_thread();
    release(done.of(0));
    run_others();
  }
}

Fiber* fiber_of(size_t index) {
  while (fibers.size() <= index) {
    Fiber& fiber = fibers.emplace_back();
    stacks.prepare(&fiber.context, fibers.size() - 1, fiber_main);
    fiber.context.flow = create_flow();
  }
  return &fibers[index];
}

// Makes known to the host what fibers have done that were left in the middle.
void acquire_abandoned() {
  for (Fiber& fiber : fibers) {
    switch_flow(fiber.context.flow);
    release(done.of(0));
  }
  switch_flow(host.context.flow);
}

void drop_fibers() {
  for (Fiber& fiber : fibers) {
    drop_copy_flows(fiber);
    destroy_flow(fiber.context.flow);
  }
  fibers.clear();
}

void add_cluster(int64_t first_block) {
  const Grid& grid = machine.grid;
  machine.clusters.push_back(std::make_unique<Cluster>());
  Cluster& cluster = *machine.clusters.back();
  for (int rank = 0; rank < grid.cluster; ++rank) {
    const size_t number = machine.blocks.size();
    machine.blocks.push_back(std::make_unique<Block>());
    Block& block = *machine.blocks.back();
    block.index = first_block + rank;
    block.rank = rank;
    block.cluster = &cluster;
    block.lazy = chance(256);
    block.barriers.reserve(256);
    allocate_shared(block);
    block.pieces.resize(static_cast<size_t>(grid.shared_bytes / 16));
    cluster.blocks.push_back(&block);
    block.warps = std::vector<Warp>(static_cast<size_t>(grid.threads / 32));
    for (int thread = 0; thread < grid.threads; ++thread) {
      Warp& warp = block.warps[static_cast<size_t>(thread / 32)];
      Fiber& fiber = *fiber_of(number * static_cast<size_t>(grid.threads) + static_cast<size_t>(thread));
      warp.block = &block;
      warp.index = thread / 32;
      warp.lanes[thread % 32] = &fiber;
      static_cast<Place&>(fiber) = {thread, block.index, grid.blocks, rank, block.shared};
      fiber.warp = &warp;
      fiber.lane = thread % 32;
      fiber.waits = Waits::kNothing;
      fiber.waits_for = nullptr;
      fiber.observed = nullptr;
      fiber.polled = nullptr;
      fiber.observed_at = ~uint64_t{0};
      fiber.fenced_at = 0;
      fiber.pieces = nullptr;
      fiber.operands_fenced_at = 0;
    }
    for (Warp& warp : block.warps) make_ready(&warp, ~0u);
  }
  machine.fibers_left += static_cast<int64_t>(grid.cluster) * grid.threads;
}

void clear_wave() {
  for (auto& block : machine.blocks) {
    for (Warp& warp : block->warps) end_products(warp);
  }
  machine.multiplying.clear();
  for (auto& block : machine.blocks) free_shared(*block);
  machine.blocks.clear();
  machine.clusters.clear();
  drop_copies();
  machine.fibers_left = 0;
}

// Blocks that are resident at the same time, until they have ended.
void run_wave(int64_t first_cluster, int64_t clusters) {
  const Grid& grid = machine.grid;
  const auto warps = static_cast<size_t>(clusters * grid.cluster * grid.threads / 32);
  clear_schedule(warps);
  machine.in_flight.reserve(1 << 16);
  machine.multiplying.reserve(warps);
  if (static_cast<int64_t>(warps) * 32 > kMostFlows) {
    throw std::runtime_error("more threads at once than ThreadSanitizer can follow: " + std::to_string(32 * warps));
  }
  for (int64_t i = 0; i < clusters; ++i) add_cluster((first_cluster + i) * grid.cluster);
  release(launched.of(0));
  running = &host;
  host.context.flow = current_flow();
  host.context.stack_bottom = nullptr;
  run_others();
  if (machine.failed) acquire_abandoned();
  acquire(done.of(0));
  running = nullptr;
  place = nullptr;
  clear_wave();
}

}  // namespace

void release_to_host() { release(done.of(0)); }

void leave_for_host() {
  machine.failed = true;
  if (running == &host || running == nullptr) throw std::runtime_error(machine.report);
  release(done.of(0));
  Fiber* self = running;
  running = &host;
  change(&self->context, &host.context);
  __builtin_unreachable();
}

Device& device() {
  static Device the_device;
  return the_device;
}

Statistics& statistics() {
  static Statistics the_statistics;
  return the_statistics;
}

int64_t active_clusters(const Grid& grid) {
  const Device& chip = device();
  const int64_t by_shared = chip.shared_bytes_per_multiprocessor / (grid.shared_bytes + 1024);
  const int64_t per_multiprocessor = std::min<int64_t>(by_shared, chip.threads_per_multiprocessor / grid.threads);
  if (grid.cluster == 1) return per_multiprocessor * chip.multiprocessors;
  return per_multiprocessor * (grid.cluster <= 2   ? chip.clusters_of_2
                               : grid.cluster <= 4 ? chip.clusters_of_4
                                                   : chip.clusters_of_8);
}

void run(const Grid& grid) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  machine.grid = grid;
  machine.failed = false;
  machine.progress = machine.exchanged_stores = machine.operand_stores = 0;
  forget_exchanged_stores();
  draw_schedule();
  const int64_t clusters = grid.blocks / grid.cluster;
  const int64_t resident = std::max<int64_t>(1, active_clusters(grid));
  for (int64_t first = 0; first < clusters && !machine.failed;) {
    // Without a cooperative launch no block may count on another cluster's running at the same time.
    const int64_t most =
        std::min<int64_t>({clusters - first, resident, std::max<int64_t>(1, 1024 / (grid.cluster * grid.threads))});
    const int64_t wave = grid.cooperative ? clusters : 1 + static_cast<int64_t>(random_below(most));
    run_wave(first, wave);
    first += wave;
  }
  if (machine.failed) {
    drop_fibers();
    throw std::runtime_error(machine.report);
  }
}

}  // namespace lstmvid::emulation