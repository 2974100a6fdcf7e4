// What the runtime tells AddressSanitizer and ThreadSanitizer.
//
// Under ThreadSanitizer the runtime itself is not instrumented (LSTMVID_TSAN marks that build): it reports the memory
// accesses of the emulated hardware, and the order that CUDA's synchronisation gives, by the calls below and by nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(LSTMVID_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif

namespace lstmvid::emulation {

#if defined(LSTMVID_TSAN)
inline void acquire(void* object) { __tsan_acquire(object); }
inline void release(void* object) { __tsan_release(object); }
inline void report_read(const void* from, size_t bytes) { __tsan_read_range(const_cast<void*>(from), bytes); }
inline void report_write(void* to, size_t bytes) { __tsan_write_range(to, bytes); }
constexpr int64_t kMostFlows = 6000;  // of 8128, which copies need some of
// A flow of events of its own, ordered after what the caller has done so far.
inline void* create_flow() { return __tsan_create_fiber(0); }
inline void destroy_flow(void* flow) { __tsan_destroy_fiber(flow); }
inline void* current_flow() { return __tsan_get_current_fiber(); }
inline void switch_flow(void* flow) { __tsan_switch_to_fiber(flow, __tsan_switch_to_fiber_no_sync); }
#else
inline void acquire(void*) {}
inline void release(void*) {}
inline void report_read(const void*, size_t) {}
inline void report_write(void*, size_t) {}
constexpr int64_t kMostFlows = INT64_MAX;
inline void* create_flow() { return nullptr; }
inline void destroy_flow(void*) {}
inline void* current_flow() { return nullptr; }
inline void switch_flow(void*) {}
#endif

inline void forbid_access([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(from, bytes);
#endif
}

inline void allow_access([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(from, bytes);
#endif
}

// Loops that the compiler can't turn into memset() and memcpy(): those are reported to ThreadSanitizer even from here.
inline void fill_quietly(uint8_t* to, uint8_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    if (bytes - i >= 8 && reinterpret_cast<uintptr_t>(to + i) % 8 == 0) {
      *reinterpret_cast<uint64_t*>(to + i) = 0x0101010101010101u * value;
      i += 7;
    } else {
      to[i] = value;
    }
    asm volatile("" ::: "memory");
  }
}

// Both aligned to 4 bytes.
inline void copy_quietly(void* to, const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes / 4; ++i) {
    static_cast<uint32_t*>(to)[i] = static_cast<const uint32_t*>(from)[i];
    asm volatile("" ::: "memory");
  }
}

}  // namespace lstmvid::emulation
