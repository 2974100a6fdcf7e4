// What went wrong, in words.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "emulation/machine.h"

namespace lstmvid::emulation {
namespace {

std::string demangled(const char* name) {
  int status = 0;
  char* readable = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string result = status == 0 ? readable : name;
  std::free(readable);
  return result;
}

std::string kernel_name() {
  Dl_info info{};
  if (dladdr(machine.grid.kernel, &info) != 0 && info.dli_sname != nullptr) return demangled(info.dli_sname);
  return "of " + demangled(machine.grid.parameters);
}

Sentence waits_for(const Fiber& fiber) {
  Block& block = *fiber.warp->block;
  Sentence of{};
  const auto say = [&of](const char* format, auto... arguments) {
    std::snprintf(of.text, sizeof(of.text), format, arguments...);
  };
  switch (fiber.waits) {
    case Waits::kNothing: say("%s", "has not begun or is about to go on"); break;
    case Waits::kLanes:
      say("waits in %s (lanes there: %08x)", name_of(fiber.warp->meeting), fiber.warp->arrived);
      break;
    case Waits::kProducts: say("%s", "waits in wait_products() for products that its group hasn't issued"); break;
    case Waits::kBlock:
      say("waits in sync_block() (%d of %d threads there)", block.named[0].arrived, machine.grid.threads);
      break;
    case Waits::kWarps: {
      const NamedBarrier& barrier = block.named[fiber.seen];
      say("waits in sync_warps(%u, %d) (%d threads there)", fiber.seen, barrier.expected, barrier.arrived);
      break;
    }
    case Waits::kCluster:
      say("waits in sync_cluster() (%d of %d threads there)", static_cast<int>(block.cluster->arrived),
          machine.grid.cluster * machine.grid.threads);
      break;
    case Waits::kBarrier:
      for (const BarrierState& barrier : block.barriers) {
        if (barrier.word != fiber.waits_for) continue;
        say("waits for parity %u of the barrier at %s (in phase %llu: %d of %d arrivals missing, %lld bytes)",
            fiber.seen, where_in_shared(block, fiber.waits_for).text, static_cast<unsigned long long>(barrier.phase),
            barrier.pending, barrier.expected, static_cast<long long>(barrier.bytes_missing));
      }
      break;
    case Waits::kFlag: say("looks at the flag at %p, which stays %u", fiber.waits_for, fiber.seen); break;
  }
  return of;
}

// These have returned, and freed what they took, before the fiber is left.

void report(const Fiber* fiber, const char* what) {
  machine.report = "kernel " + kernel_name() + ": ";
  if (fiber != nullptr && fiber->warp != nullptr) {
    machine.report += "block " + std::to_string(fiber->block) + ", warp " + std::to_string(fiber->warp->index) +
                      ", lane " + std::to_string(fiber->lane) + ": ";
  }
  machine.report += what;
}

void report_deadlock() {
  constexpr int kMostLines = 40;
  report(nullptr, "deadlock: nobody can go on");
  int lines = 0;
  for (const auto& block : machine.blocks) {
    for (const Warp& warp : block->warps) {
      std::map<std::string, uint32_t> lanes_of;
      for (const Fiber* fiber : warp.lanes) {
        if ((warp.ended >> fiber->lane & 1) == 0) lanes_of[waits_for(*fiber).text] |= 1u << fiber->lane;
      }
      for (const auto& [what, lanes] : lanes_of) {
        if (++lines > kMostLines) continue;
        char who[96];
        std::snprintf(who, sizeof(who), "\n  block %lld, warp %d, lanes %08x: ", static_cast<long long>(block->index),
                      warp.index, lanes);
        machine.report += who + what;
      }
    }
  }
  if (lines > kMostLines) machine.report += "\n  and " + std::to_string(lines - kMostLines) + " more";
}

}  // namespace

void fail(const char* format, ...) {
  Sentence what;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what.text, sizeof(what.text), format, arguments);
  va_end(arguments);
  report(running, what.text);
  leave_for_host();
}

void fail_deadlocked() {
  report_deadlock();
  leave_for_host();
}

}  // namespace lstmvid::emulation
