// Asynchronous copies, and what was exchanged through global memory without a fence for them.
#include <unordered_map>

#include "emulation/machine.h"
#include "emulation/sanitizers.h"

namespace lstmvid::emulation {
namespace {

// For each 16 bytes of global memory, the number of the last store_exchanged() there; by pages.
constexpr uintptr_t kPage = 4096;
struct Page {
  uint64_t last[kPage / 16];
};
std::unordered_map<uintptr_t, Page> pages;
uintptr_t recent_number = 0;
Page* recent = nullptr;

uint64_t* last_store(uintptr_t address, bool create) {
  const uintptr_t number = address / kPage;
  if (recent == nullptr || number != recent_number) {
    const auto found = pages.find(number);
    if (found == pages.end() && !create) return nullptr;
    recent = found == pages.end() ? &(pages[number] = Page{}) : &found->second;
    recent_number = number;
  }
  return &recent->last[address % kPage / 16];
}

Copy* spare_copies = nullptr;
Piece* spare_pieces = nullptr;
CopyFlow* spare_flows = nullptr;

template <class T>
T* take(T*& spare) {
  if (spare == nullptr) {
    constexpr int kMany = 1024;
    T* many = new T[kMany]();
    for (int i = 0; i < kMany; ++i) many[i].next = i + 1 < kMany ? &many[i + 1] : nullptr;
    spare = many;
  }
  T* taken = spare;
  spare = taken->next;
  return taken;
}

template <class T>
void give_back(T*& spare, T* item) {
  item->next = spare;
  spare = item;
}

void add_piece(Piece*& pieces, void* to, const void* from) {
  Piece* piece = take(spare_pieces);
  *piece = {static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), pieces};
  pieces = piece;
}

void drop(Copy* copy) {
  give_back(copy->issuer->copy_flows, copy->flow);
  while (copy->pieces != nullptr) {
    Piece* next = copy->pieces->next;
    give_back(spare_pieces, copy->pieces);
    copy->pieces = next;
  }
  give_back(spare_copies, copy);
}

void check_copy(const void* shared, const void* global, uint32_t bytes, const char* use) {
  const auto to = reinterpret_cast<uintptr_t>(shared), from = reinterpret_cast<uintptr_t>(global);
  if (to % 16 != 0 || from % 16 != 0) fail("%s between addresses that aren't aligned to 16 bytes", use);
  if (bytes == 0 || bytes % 16 != 0) fail("%s of %u bytes, not a multiple of 16", use, bytes);
  if (!is_shared(*running->warp->block, shared, bytes)) fail("%s to outside of the block's shared memory", use);
}

void check_no_overlap(const uint8_t* shared, uint32_t bytes) {
  for (const Copy* other : machine.in_flight) {
    if (!other->bulk || other->issuer->warp->block != running->warp->block) continue;
    const uint8_t* start = other->pieces->to;
    if (shared < start + other->bytes && start < shared + bytes) {
      fail("copy_bulk() to shared memory where another copy hasn't landed yet");
    }
  }
}

void check_fenced(const void* global, uint32_t bytes) {
  const auto from = reinterpret_cast<uintptr_t>(global);
  for (uintptr_t at = from; at < from + bytes; at += 16) {
    const uint64_t* last = last_store(at, false);
    if (last != nullptr && *last > running->fenced_at) {
      fail(
          "copy_bulk() of %u bytes, of which the ones from %zu on were written by store_exchanged() after this "
          "thread's "
          "last fence_async_copies()",
          bytes, static_cast<size_t>(at - from));
    }
  }
}

void send(Copy* copy, uint64_t* word) {
  copy->barrier = word;
  copy->issuer = running;
  if (running->copy_flows == nullptr) {
    copy->flow = take(spare_flows);
    copy->flow->flow = create_flow();
  } else {
    copy->flow = take(running->copy_flows);
  }
  release(&copy->flow->issued);
  ++running->warp->block->copies;
  ++statistics().copies;
  for (const Piece* piece = copy->pieces; piece != nullptr; piece = piece->next) {
    statistics().copied_bytes += copy->bytes;
  }
  machine.in_flight.push_back(copy);
  maybe_yield();
}

}  // namespace

void drop_copies() {
  for (Copy* copy : machine.in_flight) drop(copy);
  machine.in_flight.clear();
}

void drop_copy_flows(Fiber& fiber) {
  while (fiber.copy_flows != nullptr) {
    CopyFlow* flow = take(fiber.copy_flows);
    destroy_flow(flow->flow);
    give_back(spare_flows, flow);
  }
}

void forget_exchanged_stores() {
  pages.clear();
  pages.reserve(1 << 14);  // growing would move the table in the middle of a fiber
  recent = nullptr;
}

void before_exchanged_store(const void* global, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(global) % bytes != 0) fail("store_exchanged() to an unaligned address");
  *last_store(reinterpret_cast<uintptr_t>(global), true) = ++machine.exchanged_stores;
  maybe_yield();
}

void before_exchanged_load(const void* global, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(global) % bytes != 0) fail("load_exchanged() from an unaligned address");
}

void before_publish(const uint32_t*) {
  ++machine.progress;
  maybe_yield();
}

void after_observe(const uint32_t* flag, uint32_t value) {
  constexpr int kFreeLooks = 256;
  Fiber& self = *running;
  if (self.observed_at != machine.progress) self.looks = 0;
  self.observed_at = machine.progress;
  // The same answer again, or many flags while nothing happened: a loop around it would go on for ever.
  const bool in_vain = (self.observed == flag && self.observed_value == value) || ++self.looks > kFreeLooks;
  self.observed = flag;
  self.observed_value = value;
  if (in_vain) {
    poll(Waits::kFlag, flag, value);
  } else {
    maybe_yield();
  }
}

void fence_async_copies() { running->fenced_at = machine.exchanged_stores; }

void copy_16_bytes(void* shared, const void* global) {
  check_copy(shared, global, 16, "copy_16_bytes()");
  fill_quietly(static_cast<uint8_t*>(shared), 0xff, 16);
  add_piece(running->pieces, shared, global);
}

void arrive_when_copied(uint64_t* word) {
  barrier_at(word, *running->warp->block, "arrive_when_copied()");
  report_read(word, 8);
  Copy* copy = take(spare_copies);
  copy->pieces = running->pieces;
  running->pieces = nullptr;
  copy->bytes = 16;
  copy->bulk = false;
  send(copy, word);
}

void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* word) {
  if (machine.grid.arch < 90) fail("copy_bulk() on a chip that has no bulk copies");
  Block& block = *running->warp->block;
  check_copy(shared, global, bytes, "copy_bulk()");
  auto* to = static_cast<uint8_t*>(shared);
  check_no_overlap(to, bytes);
  check_fenced(global, bytes);
  report_read(word, 8);
  BarrierState& barrier = barrier_at(word, block, "copy_bulk()");
  if (!barrier.fenced) {
    fail("copy_bulk() on the barrier at %s, after whose init() nobody called fence_init()",
         where_in_shared(block, word).text);
  }
  fill_quietly(to, 0xff, bytes);
  set_pieces(block, shared, bytes, OperandPiece::kUnknown);
  Copy* copy = take(spare_copies);
  copy->pieces = nullptr;
  add_piece(copy->pieces, shared, global);
  copy->bytes = bytes;
  copy->bulk = true;
  announce_copy(barrier, bytes);
  arrive_at(barrier, block);
  send(copy, word);
}

void land(size_t which) {
  Copy* copy = machine.in_flight[which];
  machine.in_flight[which] = machine.in_flight.back();
  machine.in_flight.pop_back();
  Block& block = *copy->issuer->warp->block;
  Fiber* self = running;
  running = copy->issuer;  // for reports
  switch_flow(copy->flow->flow);
  acquire(&copy->flow->issued);
  for (const Piece* piece = copy->pieces; piece != nullptr; piece = piece->next) {
    report_read(piece->from, copy->bytes);
    report_write(piece->to, copy->bytes);
    copy_quietly(piece->to, piece->from, copy->bytes);
  }
  BarrierState& barrier = barrier_at(copy->barrier, block, "landing of a copy");
  --block.copies;
  if (copy->bulk) {
    set_pieces(block, copy->pieces->to, copy->bytes, OperandPiece::kCopied);
    complete_copy(barrier, block, copy->bytes);
  } else {
    arrive_at(barrier, block);
  }
  release_to_host();
  running = self;
  switch_flow(self->context.flow);
  drop(copy);
}

}  // namespace lstmvid::emulation
