// Stacks, changing between them, and telling the sanitizers.
#include "emulation/fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "emulation/sanitizers.h"

#if LSTMVID_OWN_SWITCH
// Saves what a called function must preserve, then goes on where `to` was saved. ucontext's own switch makes a system
// call for the signal mask each time.
extern "C" void lstmvid_emulation_change(void** from, void* to);
asm(R"(
.text
.globl lstmvid_emulation_change
.hidden lstmvid_emulation_change
.type lstmvid_emulation_change, @function
lstmvid_emulation_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lstmvid_emulation_change, .-lstmvid_emulation_change
)");
#endif

namespace lstmvid::emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(LSTMVID_TSAN)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kPage = 4096;
constexpr size_t kStacksPerChunk = 64;
constexpr size_t kGuardedChunks = 320;  // a guard costs two of the 65530 mappings that Linux grants a process

}  // namespace

void StackPool::prepare(Context* context, size_t index, void (*entry)()) {
  const size_t chunk = index / kStacksPerChunk;
  while (chunks_.size() <= chunk) {
    void* memory = mmap(nullptr, kStacksPerChunk * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_NOHUGEPAGE)
    madvise(memory, kStacksPerChunk * kStackBytes, MADV_NOHUGEPAGE);  // a few KB of each stack are ever touched
#endif
    char* base = static_cast<char*>(memory);
    if (chunks_.size() < kGuardedChunks) {
      for (size_t i = 0; i < kStacksPerChunk; ++i) mprotect(base + i * kStackBytes, kPage, PROT_NONE);
    }
    chunks_.push_back(base);
  }
  char* stack = chunks_[chunk] + index % kStacksPerChunk * kStackBytes;
  allow_access(stack + kPage, kStackBytes - kPage);
  context->stack_bottom = stack + kPage;
  context->stack_bytes = kStackBytes - kPage;
  context->fake_stack = nullptr;
#if LSTMVID_OWN_SWITCH
  // Tops at different offsets in their pages: at the same one, all would compete for a few lines of the cache.
  auto* top = reinterpret_cast<uint64_t*>(stack + kStackBytes - index % 32 * 128);
  *--top = 0;  // where the entry would return to; it also aligns the stack as after a call
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  context->stack_pointer = top;
#else
  getcontext(&context->registers);
  context->registers.uc_stack.ss_sp = stack + kPage;
  context->registers.uc_stack.ss_size = kStackBytes - kPage;
  context->registers.uc_link = nullptr;
  makecontext(&context->registers, entry, 0);
#endif
}

StackPool::~StackPool() {
  for (char* chunk : chunks_) munmap(chunk, kStacksPerChunk * kStackBytes);
}

namespace {

Context* left = nullptr;  // the context that was changed away from last

void arrived([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
  if (left->stack_bottom == nullptr) {  // the thread's own stack, whose bounds nobody knew before
    left->stack_bottom = bottom;
    left->stack_bytes = bytes;
  }
#endif
}

}  // namespace

void change(Context* from, Context* to) {
  left = from;
  switch_flow(to->flow);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->fake_stack, to->stack_bottom, to->stack_bytes);
#endif
#if LSTMVID_OWN_SWITCH
  lstmvid_emulation_change(&from->stack_pointer, to->stack_pointer);
#else
  swapcontext(&from->registers, &to->registers);
#endif
  arrived(from->fake_stack);
}

void begin_on_stack() { arrived(nullptr); }

}  // namespace lstmvid::emulation
