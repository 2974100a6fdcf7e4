// primitives_check --list | NAME... [--seed N]: runs the named cases, or all of them.
#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"

namespace check {
namespace {

uint64_t the_seed = 1;

}  // namespace

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

std::mt19937_64& random() {
  static std::mt19937_64 generator;
  return generator;
}

uint64_t seed() { return the_seed; }

}  // namespace check

int main(int count, char** arguments) {
  std::vector<const char*> names;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--list") == 0) {
      for (const check::Case& one : check::cases()) std::puts(one.name);
      return 0;
    }
    if (std::strcmp(arguments[i], "--seed") == 0 && i + 1 < count) {
      check::the_seed = std::stoull(arguments[++i]);
    } else {
      names.push_back(arguments[i]);
    }
  }
  int failures = 0;
  const auto run = [&failures](const check::Case& one) {
    check::random().seed(check::seed());
    lstmvid::emulation::set_seed(check::seed());
    lstmvid::emulation::statistics() = {};
    try {
      one.body();
      std::printf("%s: passed\n", one.name);
    } catch (const std::exception& error) {
      std::printf("%s: FAILED: %s\n", one.name, error.what());
      ++failures;
    }
    std::fflush(stdout);
  };
  for (const char* name : names) {
    bool found = false;
    for (const check::Case& one : check::cases()) {
      if (std::strcmp(one.name, name) != 0) continue;
      found = true;
      run(one);
    }
    if (!found) {
      std::printf("%s: no such case\n", name);
      ++failures;
    }
  }
  if (names.empty()) {
    for (const check::Case& one : check::cases()) run(one);
  }
  return failures == 0 ? 0 : 1;
}
