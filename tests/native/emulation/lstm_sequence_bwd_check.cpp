// The backward recurrence's kernels, emulated, against the equations in double precision.
//
//   lstm_sequence_bwd_check hidden=40 batch=5 steps=3 dtype=bf16 cluster=2 clusters=2 ... [seed=N]
//
// Arguments as of lstm_sequence_check; `input=0` leaves the output's gradient out, `save=0` those of the final states, and
// `all_cells=1` adds one of every cell state. Saved gates and cell states are drawn at random: the equations hold for any.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "lstm_sequence_call.h"
#include "lstmvid/cell_math.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {
namespace {

struct DoubleMath {
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
  static double tanh(double x) { return std::tanh(x); }
};

struct Call {
  Arguments a;
  int64_t T, B, H, G;
  DType dtype;
  std::vector<Operands> weight_hh, peephole;
  Operands gates, grad_output, grad_h_n;
  std::vector<float> c_0, cells, grad_c_n, grad_cells;
  std::vector<int64_t> lengths;

  explicit Call(const Arguments& arguments)
      : a(arguments),
        T(a["steps"]),
        B(a["batch"]),
        H(a["hidden"]),
        G(a["groups"]),
        dtype(static_cast<DType>(a["dtype"])),
        gates(dtype, G * T * B * 4 * H),
        grad_output(dtype, G * T * B * H),
        grad_h_n(dtype, G * B * H),
        c_0(G * B * H),
        cells(G * T * B * H),
        grad_c_n(G * B * H),
        grad_cells(G * T * B * H) {
    std::mt19937_64 random(a["seed"] + 1);
    std::normal_distribution<double> normal;
    const auto fill = [&](Operands& x, double scale) {
      for (int64_t i = 0; i < x.elements(); ++i) x.set(i, scale * normal(random));
    };
    for (int64_t g = 0; g < G; ++g) {
      weight_hh.emplace_back(dtype, 4 * H * H);
      peephole.emplace_back(dtype, 3 * H);
      fill(weight_hh[g], 1 / std::sqrt(static_cast<double>(H)));
      fill(peephole[g], a["peephole"] != 0 ? 0.3 : 0.0);
    }
    for (int64_t i = 0; i < gates.elements(); ++i) {
      const double z = normal(random);
      gates.set(i, i / H % 4 == 2 ? std::tanh(z) : DoubleMath::sigmoid(z));
    }
    fill(grad_output, 1.0);
    fill(grad_h_n, 1.0);
    for (auto* x : {&c_0, &cells, &grad_c_n, &grad_cells}) {
      for (float& value : *x) value = static_cast<float>(0.5 * normal(random));
    }
    for (int64_t b = 0; b < B; ++b) lengths.push_back(static_cast<int64_t>(random() % (T + 1)));
  }
};

struct Results {
  Operands grad_gates, grad_h_0;
  std::vector<float> grad_c_0;

  explicit Results(const Call& call)
      : grad_gates(call.dtype, call.G * call.T * call.B * 4 * call.H),
        grad_h_0(call.dtype, call.G * call.B * call.H),
        grad_c_0(call.G * call.B * call.H, std::numeric_limits<float>::quiet_NaN()) {}
  bool operator==(const Results& other) const {
    return grad_gates.bytes == other.grad_gates.bytes && grad_h_0.bytes == other.grad_h_0.bytes &&
           std::memcmp(grad_c_0.data(), other.grad_c_0.data(), grad_c_0.size() * 4) == 0;
  }
};

Results run(Call& call) {
  Arguments& a = call.a;
  Results results(call);
  LstmSequenceBwdCuda p{};
  p.steps = call.T;
  p.batch = call.B;
  p.hidden = call.H;
  p.groups = static_cast<int>(call.G);
  p.dtype = call.dtype;
  p.allow_tf32 = a["tf32"] != 0;
  p.reverse = static_cast<uint32_t>(a["reverse"]);
  p.max_polls = static_cast<uint64_t>(a["max_polls"]);
  for (int64_t g = 0; g < call.G; ++g) {
    p.weight_hh[g] = call.weight_hh[g].bytes.data();
    if (a["peephole"] != 0) p.peephole[g] = call.peephole[g].bytes.data();
  }
  const int64_t state = call.B * call.H, sequence = call.T * state;
  p.lengths = a["ragged"] != 0 ? call.lengths.data() : nullptr;
  point(p.c_0, call.c_0, state);
  point(p.cells, call.cells, sequence);
  point(p.gates, call.gates, 4 * sequence);
  if (a["input"] != 0) point(p.grad_output, call.grad_output, sequence);
  if (a["save"] != 0) {
    point(p.grad_h_n, call.grad_h_n, state);
    point(p.grad_c_n, call.grad_c_n, state);
  }
  if (a["all_cells"] != 0) point(p.grad_cells, call.grad_cells, sequence);
  point(p.grad_gates, results.grad_gates, 4 * sequence);
  point(p.grad_h_0, results.grad_h_0, state);
  point(p.grad_c_0, results.grad_c_0, state);

  const LstmSequencePlan plan = plan_of(a);
  p.end_step = call.T + 1;
  const int64_t chunk = a["chunk"] != 0 ? a["chunk"] : call.T + 1;
  Guarded workspace(lstm_sequence_bwd_cuda_workspace(p, plan));
  p.workspace = workspace.data();
  for (int64_t first = 0; first < call.T + 1; first += chunk) {
    p.first_step = first;
    p.end_step = std::min(call.T + 1, first + chunk);
    lstm_sequence_bwd_cuda(p, plan, nullptr);
  }
  workspace.check();
  return results;
}

// The equations, operands rounded as the kernel's are. Errors are to be seen against the largest gradient.
Worst check(Call& call, const Results& actual) {
  Arguments& a = call.a;
  Worst worst;
  const int64_t T = call.T, B = call.B, H = call.H;
  Operands rounded(call.dtype, 1);
  for (int64_t g = 0; g < call.G; ++g) {
    const bool reverse = (a["reverse"] >> g & 1) != 0;
    for (int64_t b = 0; b < B; ++b) {
      const int64_t length = a["ragged"] != 0 ? call.lengths[b] : T;
      std::vector<double> grad_h(H), grad_c(H);
      for (int64_t u = 0; u < H && a["save"] != 0; ++u) {
        grad_h[u] = call.grad_h_n.get((g * B + b) * H + u);
        grad_c[u] = call.grad_c_n[(g * B + b) * H + u];
      }
      for (int64_t step = T - 1; step >= 0; --step) {
        const int64_t t = reverse ? T - 1 - step : step, before = reverse ? t + 1 : t - 1;
        const int64_t at = ((g * T + t) * B + b) * H;
        std::vector<double> dz(4 * H);
        for (int64_t u = 0; u < H; ++u) {
          if (a["all_cells"] != 0) grad_c[u] += call.grad_cells[at + u];
          if (t < length) {
            const auto gate = [&](int64_t k) { return call.gates.get(4 * at + k * H + u); };
            const auto peephole = [&](int64_t k) { return call.peephole[g].get(k * H + u); };
            const double c_before =
                step > 0 ? call.cells[((g * T + before) * B + b) * H + u] : call.c_0[(g * B + b) * H + u];
            const double dh = grad_h[u] + (a["input"] != 0 ? call.grad_output.get(at + u) : 0.0);
            const CellGradient<double> of =
                cell_backward<DoubleMath>(Gates<double>{gate(0), gate(1), gate(2), gate(3)},
                                          Peephole<double>{peephole(0), peephole(1), peephole(2)}, c_before,
                                          static_cast<double>(call.cells[at + u]), dh, grad_c[u]);
            const double z[4] = {of.z.i, of.z.f, of.z.g, of.z.o};
            for (int64_t k = 0; k < 4; ++k) {
              rounded.set(0, z[k]);
              dz[k * H + u] = rounded.get(0);
            }
            grad_c[u] = of.c_prev;
          }
          for (int64_t k = 0; k < 4; ++k) {
            worst.compare("grad_gates", actual.grad_gates.get(4 * at + k * H + u), dz[k * H + u]);
            worst.magnitude = std::max(worst.magnitude, std::abs(dz[k * H + u]));
          }
        }
        for (int64_t v = 0; v < H && t < length; ++v) {
          grad_h[v] = 0;
          for (int64_t k = 0; k < 4 * H; ++k) grad_h[v] += dz[k] * call.weight_hh[g].get(k * H + v);
        }
      }
      for (int64_t u = 0; u < H; ++u) {
        worst.compare("grad_h_0", actual.grad_h_0.get((g * B + b) * H + u), grad_h[u]);
        worst.compare("grad_c_0", actual.grad_c_0[(g * B + b) * H + u], grad_c[u]);
        worst.magnitude = std::max({worst.magnitude, std::abs(grad_h[u]), std::abs(grad_c[u])});
      }
    }
  }
  return worst;
}

}  // namespace
}  // namespace lstmvid

int main(int count, char** words) {
  using namespace lstmvid;
  return run_check<Call>(count, words, &run, &check);
}
