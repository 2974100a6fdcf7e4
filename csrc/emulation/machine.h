// The emulated machine's state, for the runtime's own files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulation/fibers.h"
#include "emulation/runtime.h"

namespace lstmvid::emulation {

struct Block;
struct Fiber;
struct Warp;

// Strings without memory of their own: a fiber that fails is abandoned, and nothing on its stack is destroyed.
template <int kBytes>
struct Text {
  char text[kBytes];
};
using Sentence = Text<512>;
using Where = Text<96>;

// What ThreadSanitizer orders by. Two of them, used in turns: whoever leaves one round must not learn of the next one's.
struct alignas(8) Order {
  uint64_t unused[2];
  void* of(uint64_t round) { return &unused[round & 1]; }
};

enum class Waits { kNothing, kLanes, kBlock, kWarps, kCluster, kBarrier, kFlag, kProducts };

enum class Meeting {
  kSyncLanes,
  kAllLanes,
  kLoadMatrices,
  kMultiply,
  kFenceProducts,
  kMultiplyGroup,
  kCommitProducts,
  kWaitProducts
};

// What one piece of an asynchronous copy takes where; a list. Pieces are reused and never given back: memory that one
// fiber allocates and another frees would look like a race to ThreadSanitizer.
struct Piece {
  uint8_t* to;
  const uint8_t* from;
  Piece* next;
};

// ThreadSanitizer's flow of a copy's events. Reused by copies of one thread alone, whose past it then knows anyway.
struct CopyFlow {
  void* flow;
  uint64_t issued;  // orders the copy after its issue
  CopyFlow* next;
};

struct Copy {
  Piece* pieces;
  uint32_t bytes;  // of each piece
  bool bulk;
  uint64_t* barrier;
  Fiber* issuer;
  CopyFlow* flow;
  Copy* next;  // of the spare ones
};

struct Fiber : Place {
  Context context;
  Warp* warp = nullptr;
  int lane = 0;

  Waits waits = Waits::kNothing;
  const void* waits_for = nullptr;   // the barrier's word or the flag
  uint32_t seen = 0;                 // the flag's value, the parity asked for, or the number of sync_warps()
  const uint64_t* polled = nullptr;  // the barrier that it found incomplete last, and the phase it was in
  uint64_t polled_phase = 0;
  uint64_t observed_at = 0;  // `progress` when a flag was observed last
  int looks = 0;             // at flags since then
  const uint32_t* observed = nullptr;
  uint32_t observed_value = 0;
  uint64_t fenced_at = 0;           // number of exchanged stores that its last fence_async_copies() covers
  CopyFlow* copy_flows = nullptr;   // that no copy uses now
  Piece* pieces = nullptr;          // copy_16_bytes() that no arrive_when_copied() has followed yet
  uint64_t operands_fenced_at = 0;  // number of operands' stores that its last fence_operands() covers
};

struct Operand {
  void* out;
  const void* in;
  uint32_t b0, b1;
};

// The last store_remote()s of a warp's lanes, to see which fall together.
struct RemoteStores {
  static constexpr int kDepth = 32;
  struct Together {
    uint64_t number = 0;
    int count = 0;
    uint64_t conflicts = 0;
    uintptr_t addresses[8] = {};
  };
  uint64_t issued[32] = {};           // of each lane
  Together together[kDepth][4] = {};  // of the n-th stores, one for each quarter of the warp
};

// One multiply_group() of a warp.
struct IssuedProduct {
  Operands operands;
  int tile_blocks;
  bool a_in_registers;
  uint64_t a, b;  // descriptors
  const uint32_t* a_registers[32];
  uint64_t order;  // its start after its issue
};

// Those of a warp, which are done in their order.
struct WarpProducts {
  static constexpr int kMost = 32, kMostBatches = 16;  // that are remembered
  static constexpr int kMostColumns = 48;
  IssuedProduct asked[32] = {};  // by each lane, before they meet
  IssuedProduct remembered[kMost] = {};
  uint64_t issued = 0, done = 0, batches = 0;
  uint64_t batch_end[kMostBatches] = {};       // products issued until then
  bool is_fenced = false, is_running = false;  // D is the products'
  int tile_blocks = 0;
  float* d[32] = {};
  float sums[16][kMostColumns] = {};
  void* flow = nullptr;  // ThreadSanitizer's
  uint64_t order = 0;    // the waits after what is done

  IssuedProduct& of(uint64_t number) { return remembered[number % kMost]; }
};

struct Warp {
  Block* block = nullptr;
  int index = 0;
  Fiber* lanes[32] = {};
  uint32_t ready = 0, polling = 0, ended = 0;  // lanes
  int64_t at_ready = -1, at_polling = -1;      // places in the scheduler's lists

  Meeting meeting{};
  uint32_t arrived = 0;
  uint64_t syncs = 0;  // completed sync_lanes()
  Operand operands[32] = {};
  Order order{};

  uint32_t at_named[16] = {};  // lanes that wait at the block's barriers
  uint32_t at_cluster = 0;     // and in sync_cluster()

  std::unique_ptr<RemoteStores> stores{};
  std::unique_ptr<WarpProducts> products{};
  uint32_t at_products = 0;  // lanes that wait until the other warps of the group have issued theirs
};

// Who wrote 16 bytes of shared memory, as far as products of warp groups must know.
struct OperandPiece {
  static constexpr uint64_t kUnknown = 0, kCopied = ~uint64_t{0};
  uint64_t stored = kUnknown;  // or the number of the store_operand()
  int thread = 0;              // whose it was
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  uint64_t round = 0;
  Order order{};
};

struct BarrierState {
  uint64_t* word;
  int expected, pending;
  int64_t bytes_missing;
  uint64_t phase;  // completed phases
  bool observed;   // that the last of them has completed
  bool fenced;     // fence_init() followed
  Fiber* initialiser;
  Order order;
};

struct Cluster {
  std::vector<Block*> blocks;
  int64_t arrived = 0, ended = 0;
  uint64_t round = 0;  // completed sync_cluster()s
  Order order{};
};

struct Block {
  int64_t index = 0;
  int rank = 0;
  Cluster* cluster = nullptr;
  std::vector<Warp> warps;
  int ended = 0;
  NamedBarrier named[16];
  std::vector<BarrierState> barriers;
  int copies = 0;             // in flight
  int64_t touched_at = -1;    // the cluster's round in which another block last used this one's shared memory
  bool lazy = false;          // the schedule prefers other blocks
  uint8_t* memory = nullptr;  // `shared` with guard zones around it
  uint8_t* shared = nullptr;
  std::vector<OperandPiece> pieces;
};

struct Machine {
  Grid grid{};
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Cluster>> clusters;
  int64_t fibers_left = 0;
  uint64_t progress = 0;  // events that may end somebody's wait
  uint64_t exchanged_stores = 0;
  std::vector<Copy*> in_flight;
  uint64_t operand_stores = 0;
  std::vector<Warp*> multiplying;  // with products that aren't done
  bool failed = false;
  std::string report;
};

extern Machine machine;
extern Fiber* running;
extern Fiber host;  // who launches

// scheduler.cpp
uint64_t random_below(uint64_t n);
bool chance(uint32_t of_1024);
void make_ready(Warp* warp, uint32_t lanes);
void run_others();  // until this fiber has been made ready and is chosen
void suspend(Waits waits, const void* waits_for = nullptr, uint32_t seen = 0);
void poll(Waits waits, const void* waits_for, uint32_t seen);  // goes on when something has happened or nobody else can
void maybe_yield();
void draw_schedule();
void clear_schedule(size_t warps);

// grid.cpp
void release_to_host();  // what the current flow has done, at the launch's end
[[noreturn]] void leave_for_host();

// reports.cpp
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail_deadlocked();

// barriers.cpp
BarrierState& barrier_at(uint64_t* word, Block& block, const char* use);
void wake_pollers(Block& block, const uint64_t* word);
void complete_copy(BarrierState& barrier, Block& block, int64_t bytes);
void announce_copy(BarrierState& barrier, int64_t bytes);
void arrive_at(BarrierState& barrier, Block& block);

// collectives.cpp
const char* name_of(Meeting meeting);
void meet(Meeting meeting, void (*work)(Warp&));  // of all lanes of a warp; the last to come works

// copies.cpp
void land(size_t which);
void drop_copies();
void drop_copy_flows(Fiber& fiber);
void forget_exchanged_stores();

// products.cpp
void perform_one();  // of all warps' oldest products
void set_pieces(Block& block, const void* shared, size_t bytes, uint64_t stored);
void end_products(Warp& warp);

// memory.cpp
void allocate_shared(Block& block);
void end_shared(Block& block);  // checks and poisons it
void free_shared(Block& block);
void* remote_place(const void* shared, int rank, size_t bytes, const char* use);
bool is_shared(const Block& block, const void* from, size_t bytes);
Where where_in_shared(const Block& block, const void* at);

}  // namespace lstmvid::emulation
