// Emulated: asynchronous copies land at a random moment; until then their destination is poison.
#pragma once

#include "emulation/runtime.h"

namespace lstmvid {

LSTMVID_DEVICE FenceToken fence_async_copies() {
  emulation::fence_async_copies();
  return {};
}

LSTMVID_DEVICE void copy_16_bytes(void* shared, const void* global) { emulation::copy_16_bytes(shared, global); }
LSTMVID_DEVICE void arrive_when_copied(Barrier* barrier) { emulation::arrive_when_copied(&barrier->word); }
LSTMVID_DEVICE void copy_bulk(FenceToken, void* shared, const void* global, uint32_t bytes, Barrier* barrier) {
  emulation::copy_bulk(shared, global, bytes, &barrier->word);
}

}  // namespace lstmvid
