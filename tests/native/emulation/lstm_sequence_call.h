// What the checks of the recurrent kernels share: a call's arguments, tensors of the operands' type, guarded memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/primitives/numeric.h"
#include "emulation/runtime.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {

using Arguments = std::map<std::string, int64_t>;

inline Arguments parse(int count, char** words) {
  Arguments a{{"steps", 3},           {"batch", 5},
              {"hidden", 40},         {"groups", 1},
              {"cluster", 1},         {"clusters", 1},
              {"replicas", 1},        {"unit_blocks", 8},
              {"tile_columns", 8},    {"register_rounds", 0},
              {"resident_rounds", 0}, {"hidden_stage_rounds", 1},
              {"hidden_stages", 2},   {"weight_stages", 2},
              {"cells_in_shared", 1}, {"input", 1},
              {"peephole", 1},        {"save", 1},
              {"ragged", 0},          {"reverse", 0},
              {"chunk", 0},           {"seed", 0},
              {"dtype", 2},           {"tf32", 0},
              {"repeat", 0},          {"all_cells", 0},
              {"max_polls", 0},       {"warp_groups", 0}};
  const std::map<std::string, int64_t> dtypes{{"fp32", 0}, {"bf16", 2}, {"fp16", 3}};
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto equals = word.find('=');
    const std::string name = word.substr(0, equals), value = equals == std::string::npos ? "" : word.substr(equals + 1);
    if (a.count(name) == 0 || value.empty()) throw std::invalid_argument("what is '" + word + "'?");
    a[name] = name == "dtype" ? dtypes.at(value) : std::stoll(value);
  }
  return a;
}

// Tensors of the operands' type, and what they are as doubles. Unset elements are NaN.
struct Operands {
  DType dtype;
  std::vector<uint8_t> bytes;

  Operands(DType dtype, int64_t elements) : dtype(dtype), bytes(elements * size(), 0xff) {}
  int64_t size() const { return dtype == DType::kFloat32 ? 4 : 2; }
  int64_t elements() const { return static_cast<int64_t>(bytes.size()) / size(); }
  double get(int64_t i) const {
    if (dtype == DType::kFloat32) return reinterpret_cast<const float*>(bytes.data())[i];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(bytes.data())[i];
    return dtype == DType::kBFloat16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
  }
  void set(int64_t i, double x) {
    const auto y = static_cast<float>(x);
    if (dtype == DType::kFloat32) {
      reinterpret_cast<float*>(bytes.data())[i] = y;
    } else {
      reinterpret_cast<uint16_t*>(bytes.data())[i] =
          dtype == DType::kBFloat16 ? from_float<BFloat16>(y).bits : from_float<Float16>(y).bits;
    }
  }
};

// Of each group that there may be, where its part of a tensor begins; `size` elements a group.
template <class T>
void point(T* (&pointers)[kMaxGroups], Operands& tensor, int64_t size) {
  for (int64_t g = 0; g < kMaxGroups && (g + 1) * size <= tensor.elements(); ++g) {
    pointers[g] = tensor.bytes.data() + g * size * tensor.size();
  }
}
template <class T>
void point(T* (&pointers)[kMaxGroups], std::vector<float>& tensor, int64_t size) {
  for (int64_t g = 0; g < kMaxGroups && (g + 1) * size <= static_cast<int64_t>(tensor.size()); ++g) {
    pointers[g] = tensor.data() + g * size;
  }
}

inline LstmSequencePlan plan_of(Arguments& a) {
  LstmSequencePlan plan{};
  plan.cluster = static_cast<int>(a["cluster"]);
  plan.clusters = static_cast<int>(a["clusters"]);
  plan.replicas = static_cast<int>(a["replicas"]);
  plan.unit_blocks = static_cast<int>(a["unit_blocks"]);
  plan.tile_columns = static_cast<int>(a["tile_columns"]);
  plan.register_rounds = static_cast<int>(a["register_rounds"]);
  plan.resident_rounds = static_cast<int>(a["resident_rounds"]);
  plan.hidden_stage_rounds = static_cast<int>(a["hidden_stage_rounds"]);
  plan.hidden_stages = static_cast<int>(a["hidden_stages"]);
  plan.weight_stages = static_cast<int>(a["weight_stages"]);
  plan.cells_in_shared = a["cells_in_shared"] != 0;
  plan.warp_groups = a["warp_groups"] != 0;
  return plan;
}

// Memory full of NaN, with a margin on both sides that must stay as it is.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) : bytes_(bytes), memory_(bytes + 2 * kMargin + 256, 0xff) {}
  uint8_t* data() {
    const auto at = reinterpret_cast<uintptr_t>(memory_.data()) + kMargin;
    return reinterpret_cast<uint8_t*>((at + 255) / 256 * 256);
  }
  void check() {
    for (int64_t i = 0; i < kMargin; ++i) {
      if (data()[bytes_ + i] != 0xff || data()[-1 - i] != 0xff) {
        throw std::runtime_error("memory beside the workspace was written");
      }
    }
  }

 private:
  static constexpr int64_t kMargin = 256;
  int64_t bytes_;
  std::vector<uint8_t> memory_;
};

inline double bound_of(Arguments& a) {
  const auto dtype = static_cast<DType>(a["dtype"]);
  return dtype == DType::kBFloat16 ? 0.02 : dtype == DType::kFloat16 || a["tf32"] != 0 ? 0.004 : 2e-5;
}

// The largest error of a call's results, where it is, and the size of what it is an error of.
struct Worst {
  double error = 0, magnitude = 1;
  std::string where;

  void compare(const char* name, double actual, double expected) {
    const double difference = std::abs(actual - expected);
    if (difference <= error) return;
    error = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
    where = name;
  }
};

// Runs the call that the words describe, compares, and runs it again under other schedules. The program's exit code.
//
// run(call): its results, comparable; check(call, results): a Worst.
template <class Call, class Run, class Check>
int run_check(int count, char** words, const Run& run, const Check& check) try {
  Call call(parse(count, words));
  Arguments& a = call.a;
  emulation::set_seed(static_cast<uint64_t>(a["seed"]));
  const auto actual = run(call);
  const Worst worst = check(call, actual);
  const double bound = bound_of(a) * worst.magnitude;
  const emulation::Statistics s = emulation::statistics();
  std::printf(
      "error %.3g in %s, bound %.3g; %llu products, %llu of %llu matrix loads and %llu remote stores conflict\n",
      worst.error, worst.where.c_str(), bound, static_cast<unsigned long long>(s.products),
      static_cast<unsigned long long>(s.matrix_load_conflicts), static_cast<unsigned long long>(s.matrix_loads),
      static_cast<unsigned long long>(s.remote_store_conflicts));
  if (!(worst.error <= bound) || s.matrix_load_conflicts != 0) return 1;
  for (int64_t i = 1; i <= a["repeat"]; ++i) {
    emulation::set_seed(static_cast<uint64_t>(a["seed"] + 1000 * i));
    if (!(run(call) == actual)) {
      std::printf("not the same bits under schedule %lld\n", static_cast<long long>(i));
      return 1;
    }
  }
  return 0;
} catch (const std::exception& error) {
  std::printf("%s\n", error.what());
  return 1;
}

}  // namespace lstmvid
