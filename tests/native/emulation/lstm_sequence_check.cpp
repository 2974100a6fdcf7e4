// The forward recurrence's kernels, emulated, against the equations in double precision.
//
//   lstm_sequence_check hidden=40 batch=5 steps=3 dtype=bf16 cluster=2 clusters=2 ... [seed=N]
//
// Arguments: sizes and plan fields by their names in lstm_sequence_cuda.h, with the defaults below; `input`, `peephole`,
// `save`, `ragged`, `tf32` (0 or 1), `reverse` (bits), `chunk` (steps a launch), `repeat` (the same bits again, under another
// schedule). Prints the largest error; exits with 1 where it is too large, where memory beside the results was written, or
// where the machine reports a fault.
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
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {
namespace {

struct Call {
  Arguments a;
  int64_t T, B, H, G;
  DType dtype;
  std::vector<Operands> weight_hh, bias, peephole;
  Operands projection, h_0;
  std::vector<float> c_0;
  std::vector<int64_t> lengths;

  explicit Call(const Arguments& arguments)
      : a(arguments),
        T(a["steps"]),
        B(a["batch"]),
        H(a["hidden"]),
        G(a["groups"]),
        dtype(static_cast<DType>(a["dtype"])),
        projection(dtype, a["input"] != 0 ? G * T * B * 4 * H : 0),
        h_0(dtype, G * B * H),
        c_0(G * B * H) {
    std::mt19937_64 random(a["seed"] + 1);
    std::normal_distribution<double> normal;
    const auto fill = [&](Operands& x, double scale) {
      for (int64_t i = 0; i < x.elements(); ++i) x.set(i, scale * normal(random));
    };
    for (int64_t g = 0; g < G; ++g) {
      weight_hh.emplace_back(dtype, 4 * H * H);
      bias.emplace_back(dtype, 4 * H);
      peephole.emplace_back(dtype, 3 * H);
      fill(weight_hh[g], 1 / std::sqrt(static_cast<double>(H)));
      fill(bias[g], 0.5);
      fill(peephole[g], a["peephole"] != 0 ? 0.3 : 0.0);
    }
    fill(projection, 1.0);
    fill(h_0, 0.5);
    for (float& c : c_0) c = static_cast<float>(0.5 * normal(random));
    for (int64_t b = 0; b < B; ++b) lengths.push_back(static_cast<int64_t>(random() % (T + 1)));
  }
};

struct Results {
  Operands output, h_n, gates;
  std::vector<float> c_n, cells;

  explicit Results(const Call& call)
      : output(call.dtype, call.G * call.T * call.B * call.H),
        h_n(call.dtype, call.G * call.B * call.H),
        gates(call.dtype, call.G * call.T * call.B * 4 * call.H),
        c_n(call.G * call.B * call.H, std::numeric_limits<float>::quiet_NaN()),
        cells(call.G * call.T * call.B * call.H, std::numeric_limits<float>::quiet_NaN()) {}
  bool operator==(const Results& other) const {
    const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
      return std::memcmp(x.data(), y.data(), x.size() * 4) == 0;
    };
    return output.bytes == other.output.bytes && h_n.bytes == other.h_n.bytes && gates.bytes == other.gates.bytes &&
           same(c_n, other.c_n) && same(cells, other.cells);
  }
};

Results run(Call& call) {
  Arguments& a = call.a;
  Results results(call);
  LstmSequenceFwdCuda p{};
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
    if (a["input"] == 0) p.bias[g] = call.bias[g].bytes.data();
    if (a["peephole"] != 0) p.peephole[g] = call.peephole[g].bytes.data();
  }
  const int64_t state = call.B * call.H, sequence = call.T * state;
  if (a["input"] != 0) point(p.projection, call.projection, 4 * sequence);
  point(p.h_0, call.h_0, state);
  point(p.c_0, call.c_0, state);
  p.lengths = a["ragged"] != 0 ? call.lengths.data() : nullptr;
  point(p.output, results.output, sequence);
  point(p.h_n, results.h_n, state);
  point(p.c_n, results.c_n, state);
  if (a["save"] != 0) {
    point(p.cells, results.cells, sequence);
    point(p.gates, results.gates, 4 * sequence);
  }
  const LstmSequencePlan plan = plan_of(a);
  p.end_step = call.T;
  const int64_t bytes = lstm_sequence_fwd_cuda_workspace(p, plan);
  Guarded workspace(bytes);
  p.workspace = workspace.data();
  const int64_t chunk = a["chunk"] != 0 ? a["chunk"] : call.T;
  for (int64_t first = 0; first < call.T; first += chunk) {
    p.first_step = first;
    p.end_step = std::min(call.T, first + chunk);
    lstm_sequence_fwd_cuda(p, plan, nullptr);
  }
  workspace.check();
  return results;
}

// The equations, operands rounded as the kernel's are.
Worst check(Call& call, const Results& actual) {
  Arguments& a = call.a;
  Worst worst;
  const int64_t T = call.T, B = call.B, H = call.H;
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  for (int64_t g = 0; g < call.G; ++g) {
    const bool reverse = (a["reverse"] >> g & 1) != 0;
    for (int64_t b = 0; b < B; ++b) {
      const int64_t length = a["ragged"] != 0 ? call.lengths[b] : T;
      std::vector<double> h(H), c(H);
      for (int64_t u = 0; u < H; ++u) {
        h[u] = call.h_0.get((g * B + b) * H + u);
        c[u] = call.c_0[(g * B + b) * H + u];
      }
      for (int64_t step = 0; step < T; ++step) {
        const int64_t t = reverse ? T - 1 - step : step, at = ((g * T + t) * B + b) * H;
        std::vector<double> next = h;
        for (int64_t u = 0; u < H; ++u) {
          double z[4];
          for (int64_t k = 0; k < 4; ++k) {
            z[k] = a["input"] != 0 ? call.projection.get(4 * at + k * H + u) : call.bias[g].get(k * H + u);
            for (int64_t v = 0; v < H; ++v) z[k] += call.weight_hh[g].get((k * H + u) * H + v) * h[v];
          }
          if (t < length) {
            const auto peephole = [&](int64_t k) { return call.peephole[g].get(k * H + u); };
            const double i = sigmoid(z[0] + peephole(0) * c[u]), f = sigmoid(z[1] + peephole(1) * c[u]);
            const double gate = std::tanh(z[2]);
            c[u] = f * c[u] + i * gate;
            const double o = sigmoid(z[3] + peephole(2) * c[u]);
            next[u] = o * std::tanh(c[u]);
            if (a["save"] != 0) {
              const double expected[4] = {i, f, gate, o};
              for (int64_t k = 0; k < 4; ++k) {
                worst.compare("gates", actual.gates.get(4 * at + k * H + u), expected[k]);
              }
            }
          }
          worst.compare("output", actual.output.get(at + u), t < length ? next[u] : 0.0);
          if (a["save"] != 0) worst.compare("cells", actual.cells[at + u], c[u]);
        }
        Operands rounded(call.dtype, 1);
        for (int64_t u = 0; u < H; ++u) {
          rounded.set(0, next[u]);
          h[u] = rounded.get(0);
        }
      }
      for (int64_t u = 0; u < H; ++u) {
        worst.compare("h_n", actual.h_n.get((g * B + b) * H + u), h[u]);
        worst.compare("c_n", actual.c_n[(g * B + b) * H + u], c[u]);
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
