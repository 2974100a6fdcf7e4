// The cases of primitives_check: functions that throw when something isn't as it should be.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/primitives/async_copy.h"
#include "cuda/primitives/barrier.h"
#include "cuda/primitives/cluster.h"
#include "cuda/primitives/flags.h"
#include "cuda/primitives/launch.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"

namespace check {

struct Case {
  const char* name;
  void (*body)();
};

std::vector<Case>& cases();
std::mt19937_64& random();  // seeded for each case
uint64_t seed();

struct Registration {
  Registration(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

#define CASE(name)                                         \
  static void name();                                      \
  static const check::Registration name##_of(#name, name); \
  static void name()

inline void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

template <class A, class B>
void expect_equal(const A& got, const B& expected, const std::string& what) {
  if (!(got == expected)) {
    throw std::runtime_error(what + ": " + std::to_string(got) + ", expected " + std::to_string(expected));
  }
}

#if defined(__SANITIZE_THREAD__)
constexpr uint64_t kSchedules = 4;  // for each launch that fails, it must make all fibers anew
#else
constexpr uint64_t kSchedules = 20;
#endif

// Runs `launch` under several schedules; one of them at least must end in a report that contains one of `parts`, and none
// in another report.
inline void expect_report(const std::vector<std::string>& parts, const std::function<void()>& launch) {
  int found = 0;
  for (uint64_t schedule = 0; schedule < kSchedules; ++schedule) {
    lstmvid::emulation::set_seed(1000 * seed() + schedule);
    try {
      launch();
    } catch (const std::runtime_error& error) {
      const std::string report = error.what();
      bool expected = false;
      for (const std::string& part : parts) expected = expected || report.find(part) != std::string::npos;
      expect(expected, "expected a report with '" + parts[0] + "', got: " + report);
      ++found;
    }
  }
  expect(found > 0, "no report with '" + parts[0] + "'");
}

// Runs `is_right` under several schedules; one of them at least must come out wrong.
inline void expect_wrong(const std::function<bool()>& is_right) {
  bool wrong = false;
  for (uint64_t schedule = 0; schedule < kSchedules; ++schedule) {
    lstmvid::emulation::set_seed(1000 * seed() + schedule);
    wrong = wrong || !is_right();
  }
  expect(wrong, "right under every schedule");
}

template <class Parameters>
void launch(void (*kernel)(Parameters), int64_t blocks, int threads, int cluster, int64_t shared_bytes,
            const Parameters& parameters, bool cooperative = true) {
  lstmvid::launch_kernel(kernel, lstmvid::Launch{blocks, threads, cluster, shared_bytes, cooperative, nullptr},
                         parameters);
}

}  // namespace check
