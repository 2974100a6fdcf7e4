// Words in global memory by which blocks of a running grid tell each other how far they are.
//
// What is exchanged so must be written by store_exchanged(), or be read by an asynchronous copy: a plain load of memory
// that others write may become a non-coherent one (LDG.CONSTANT), which the flags don't order.
#pragma once

#include "cuda/primitives/platform.h"

#if LSTMVID_EMULATED
#include "emulation/flags.h"
#else

namespace lstmvid {

// Makes all that this thread, and those it has synchronised with by a block barrier, wrote before known on the device.
LSTMVID_DEVICE void publish(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// The flag's value; what was published with it can be read from now on.
LSTMVID_DEVICE uint32_t observe(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// A store of 2 or 4 bytes to memory that other blocks will read.
template <class T>
LSTMVID_DEVICE void store_exchanged(T* global, T value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "an element of 2 or 4 bytes");
  if constexpr (sizeof(T) == 2) {
    asm volatile("st.global.b16 [%0], %1;" ::"l"(global), "h"(reinterpret_cast<const uint16_t&>(value)) : "memory");
  } else {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(global), "r"(reinterpret_cast<const uint32_t&>(value)) : "memory");
  }
}

// A load of 2 or 4 bytes from memory that this kernel writes: coherent.
template <class T>
LSTMVID_DEVICE T load_exchanged(const T* global) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "an element of 2 or 4 bytes");
  T value;
  if constexpr (sizeof(T) == 2) {
    asm volatile("ld.global.b16 %0, [%1];" : "=h"(reinterpret_cast<uint16_t&>(value)) : "l"(global) : "memory");
  } else {
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(reinterpret_cast<uint32_t&>(value)) : "l"(global) : "memory");
  }
  return value;
}

}  // namespace lstmvid
#endif
