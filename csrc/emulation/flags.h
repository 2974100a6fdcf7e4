// Emulated: flags are real atomics, so that ThreadSanitizer knows their order; what they order is stored and loaded plainly.
#pragma once

#include "emulation/runtime.h"

namespace lstmvid {

LSTMVID_DEVICE void publish(uint32_t* flag, uint32_t value) {
  emulation::before_publish(flag);
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

LSTMVID_DEVICE uint32_t observe(const uint32_t* flag) {
  const uint32_t value = __atomic_load_n(flag, __ATOMIC_ACQUIRE);
  emulation::after_observe(flag, value);
  return value;
}

template <class T>
LSTMVID_DEVICE void store_exchanged(T* global, T value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "an element of 2 or 4 bytes");
  emulation::before_exchanged_store(global, sizeof(T));
  *global = value;
}

template <class T>
LSTMVID_DEVICE T load_exchanged(const T* global) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "an element of 2 or 4 bytes");
  emulation::before_exchanged_load(global, sizeof(T));
  return *global;
}

}  // namespace lstmvid
