// Gates and cells computed again, emulated, against the equations in double precision.
//
//   lstm_gates_check hidden=40 batch=5 steps=7 dtype=bf16 chunk=3 groups=2 reverse=2 ragged=1 ... [seed=N]
//
// Arguments as of lstm_sequence_check; of its plan's there is none.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
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
  std::vector<Operands> peephole;
  Operands z;
  std::vector<float> c_0;
  std::vector<int64_t> lengths;

  explicit Call(const Arguments& arguments)
      : a(arguments),
        T(a["steps"]),
        B(a["batch"]),
        H(a["hidden"]),
        G(a["groups"]),
        dtype(static_cast<DType>(a["dtype"])),
        z(dtype, G * T * B * 4 * H),
        c_0(G * B * H) {
    std::mt19937_64 random(a["seed"] + 1);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < z.elements(); ++i) z.set(i, 1.5 * normal(random));
    for (float& value : c_0) value = static_cast<float>(0.5 * normal(random));
    for (int64_t g = 0; g < G; ++g) {
      peephole.emplace_back(dtype, 3 * H);
      for (int64_t i = 0; i < 3 * H; ++i) peephole[g].set(i, a["peephole"] != 0 ? 0.3 * normal(random) : 0.0);
    }
    for (int64_t b = 0; b < B; ++b) lengths.push_back(static_cast<int64_t>(random() % (T + 1)));
  }
};

struct Results {
  Operands gates;
  std::vector<float> cells;

  bool operator==(const Results& other) const {
    return gates.bytes == other.gates.bytes && std::memcmp(cells.data(), other.cells.data(), cells.size() * 4) == 0;
  }
};

Results run(Call& call) {
  Arguments& a = call.a;
  const int64_t state = call.B * call.H, sequence = call.T * state;
  Results results{call.z, std::vector<float>(call.G * sequence, std::numeric_limits<float>::quiet_NaN())};
  LstmGatesCuda p{};
  p.steps = call.T;
  p.batch = call.B;
  p.hidden = call.H;
  p.groups = static_cast<int>(call.G);
  p.dtype = call.dtype;
  p.reverse = static_cast<uint32_t>(a["reverse"]);
  for (int64_t g = 0; g < call.G && a["peephole"] != 0; ++g) p.peephole[g] = call.peephole[g].bytes.data();
  p.lengths = a["ragged"] != 0 ? call.lengths.data() : nullptr;
  point(p.cells, results.cells, sequence);
  point(p.gates, results.gates, 4 * sequence);
  const int64_t chunk = a["chunk"] != 0 ? a["chunk"] : call.T;
  std::vector<float> c = call.c_0;
  for (int64_t first = 0; first < call.T; first += chunk) {
    p.first_step = first;
    p.end_step = std::min(call.T, first + chunk);
    point(p.c_0, c, state);
    lstm_gates_cuda(p, nullptr);
    for (int64_t g = 0; g < call.G; ++g) {
      const int64_t time = (a["reverse"] >> g & 1) != 0 ? call.T - p.end_step : p.end_step - 1;
      std::copy_n(results.cells.data() + (g * call.T + time) * state, state, c.data() + g * state);
    }
  }
  return results;
}

Worst check(Call& call, const Results& actual) {
  Arguments& a = call.a;
  Worst worst;
  for (int64_t g = 0; g < call.G; ++g) {
    const bool reverse = (a["reverse"] >> g & 1) != 0;
    for (int64_t b = 0; b < call.B; ++b) {
      for (int64_t u = 0; u < call.H; ++u) {
        const auto peephole = [&](int64_t k) { return call.peephole[g].get(k * call.H + u); };
        double c = call.c_0[(g * call.B + b) * call.H + u];
        for (int64_t step = 0; step < call.T; ++step) {
          const int64_t t = reverse ? call.T - 1 - step : step, at = ((g * call.T + t) * call.B + b) * call.H;
          const auto of = [&](const Operands& x, int64_t k) { return x.get(4 * at + k * call.H + u); };
          const Cell<double> cell =
              cell_forward<DoubleMath>(Gates<double>{of(call.z, 0), of(call.z, 1), of(call.z, 2), of(call.z, 3)},
                                       Peephole<double>{peephole(0), peephole(1), peephole(2)}, c);
          if (a["ragged"] == 0 || t < call.lengths[b]) c = cell.c;
          const double gates[4] = {cell.gates.i, cell.gates.f, cell.gates.g, cell.gates.o};
          for (int64_t k = 0; k < 4; ++k) worst.compare("gates", of(actual.gates, k), gates[k]);
          worst.compare("cells", actual.cells[at + u], c);
          worst.magnitude = std::max(worst.magnitude, std::abs(c));
        }
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
