// The emulated machine: what the emulated primitives, launches and tests ask of it.
//
// Every CUDA thread is a fiber; all run on the thread that launches. A seeded random scheduler decides who runs next, and
// fibers change only at primitives. What the primitives' contracts forbid ends the launch with a std::runtime_error that
// names the kernel, the block, warp and lane, and what happened.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lstmvid::emulation {

// The chip a launch is checked against. The defaults are an H100's.
struct Device {
  int multiprocessors = 132;
  int threads_per_block = 1024;
  int threads_per_multiprocessor = 2048;
  int64_t shared_bytes_per_block = 227 * 1024;
  int64_t shared_bytes_per_multiprocessor = 228 * 1024;  // of which each block takes 1 KB more than it asks for
  int clusters_of_2 = 66;                                // resident at once, of blocks that fill a multiprocessor each
  int clusters_of_4 = 30;
  int clusters_of_8 = 15;
};

// Counted over all launches since the last `statistics() = {}`.
struct Statistics {
  uint64_t products = 0;                // matrix products of a warp
  uint64_t matrix_loads = 0;            // load_matrices() of a warp
  uint64_t matrix_load_conflicts = 0;   // phases that it took beyond its 4, one for each 8 rows
  uint64_t remote_stores = 0;           // store_remote() of a thread
  uint64_t remote_store_conflicts = 0;  // phases beyond one for each 8 lanes; their n-th stores count as simultaneous
  uint64_t copies = 0;                  // asynchronous: bulk ones, and batches of 16-byte ones of a thread
  uint64_t copied_bytes = 0;
  uint64_t polls = 0;     // of barriers and flags, that failed or might have
  uint64_t switches = 0;  // between fibers
};

Device& device();
Statistics& statistics();
void set_seed(uint64_t seed);  // of the schedules from now on

struct Grid {
  int arch;
  int64_t blocks;
  int threads, cluster;
  int64_t shared_bytes;
  bool cooperative;
  const void* kernel;      // for its name,
  const char* parameters;  // or, where that isn't known, its parameters' type
  void (*run_thread)(const void* call);
  const void* call;
};

int64_t active_clusters(const Grid& grid);
void run(const Grid& grid);

// Where the running fiber stands.
struct Place {
  int thread;
  int64_t block, blocks;
  int rank;
  uint8_t* shared;
};
extern Place* place;

void sync_block();
void sync_warps(int barrier, int threads);
void sync_lanes();
bool all_lanes(bool predicate);
[[noreturn]] void trap();

void init_barrier(uint64_t* word, int arrivals);
void fence_init();
void arrive(uint64_t* word);
bool has_completed(uint64_t* word, uint32_t parity);

void sync_cluster();
void* remote_store(const void* shared, int rank);  // where the float4 goes
void arrive_remote(uint64_t* word, int rank);

void before_publish(const uint32_t* flag);
void after_observe(const uint32_t* flag, uint32_t value);
void before_exchanged_store(const void* global, size_t bytes);
void before_exchanged_load(const void* global, size_t bytes);

void fence_async_copies();
void copy_16_bytes(void* shared, const void* global);
void arrive_when_copied(uint64_t* word);
void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* word);

enum class Operands { kBFloat16, kFloat16, kTf32 };
void load_matrices(uint32_t* x, const void* shared_row);
void multiply(Operands operands, float* d, const uint32_t* a, uint32_t b0, uint32_t b1);

uint32_t shared_address(const void* shared);
void before_operand_store(const void* shared);
void fence_operands();
void fence_products();
void commit_products();
void wait_products(int pending);
void take_sums(float* d, int tile_blocks);
void multiply_group(Operands operands, float* d, int tile_blocks, const uint32_t* a_registers, uint64_t a, uint64_t b);

}  // namespace lstmvid::emulation
