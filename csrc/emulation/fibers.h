// Stacks, and changing between them.
#pragma once

#include <cstddef>
#include <vector>

#if defined(__x86_64__) && !defined(LSTMVID_UCONTEXT)
#define LSTMVID_OWN_SWITCH 1
#else
#define LSTMVID_OWN_SWITCH 0
#endif

#if !LSTMVID_OWN_SWITCH
#include <ucontext.h>
#endif

namespace lstmvid::emulation {

// What a fiber is while it doesn't run. A default-constructed one belongs to whoever changes away from it first.
struct Context {
#if LSTMVID_OWN_SWITCH
  void* stack_pointer = nullptr;
#else
  ucontext_t registers{};
#endif
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* flow = nullptr;        // ThreadSanitizer's
};

// Stacks for many fibers, each with a guard page below while the system grants that many.
class StackPool {
 public:
  StackPool() = default;
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool();

  // Makes `context` begin with `entry`, which never returns, on the stack `index`. Who was on it before is abandoned.
  void prepare(Context* context, size_t index, void (*entry)());

 private:
  std::vector<char*> chunks_;
};

void change(Context* from, Context* to);
void begin_on_stack();  // the first thing that `entry` calls

}  // namespace lstmvid::emulation
