// The recurrence of one LSTM layer on a CPU, forward and backward, compiled once for each instruction set.
//
// Forward:  z_t = projection_t + W_hh h_{t-1}, then cell_math.h.        FLOP a step: 8 B H^2.
// Backward: dh_{t-1} = W_hh^T dz_t, with dz_t from cell_math.h.         FLOP a step: 8 B H^2.
// Threads own blocks of units for the whole sequence: their packed weights stay in their own caches as far as these
// reach, the gate arithmetic follows the product while it is in the first-level cache, and one barrier a step
// publishes h_t (or dz_t) through a workspace of two slots. Floor: 4 H^2 elements of weights a step from where they
// lie (nothing if in cache), and the FLOP above; small batches are bound by the first, large ones by the second.
//
// Dense products over all steps (W_ih x, weight gradients) are a library's work, before and after.
#include "lstm_sequence_kernels.h"

#include <type_traits>

#include "lstmvid/cell_math.h"
#include "panel.h"
#include "thread_team.h"

namespace lstmvid {
namespace LSTMVID_ISA {
namespace {

template <class Stored>
using Compute = typename Product<Stored>::Scalar;  // of gates and states
template <class Stored>
using Operand = typename Product<Stored>::Operand;  // of the recurrent product

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t first_of(int64_t items, int rank, int size) { return items * rank / size; }

// Rows of the exchanged workspace are padded to a whole register and one more, so that a power of two does not put
// every row on the same cache set.
template <class Scalar>
constexpr int64_t padded(int64_t width) {
  return (ceil_div(width, kLanes<Scalar>) + 1) * kLanes<Scalar>;
}

// Below this many FLOP a step, a barrier costs more than a second thread saves.
constexpr int64_t kFlopsWorthAThread = 400'000;

int team_size(int threads, int64_t batch, int64_t hidden, int64_t blocks) {
  const int64_t useful = 8 * batch * hidden * hidden / kFlopsWorthAThread + 1;
  const int64_t most = useful < blocks ? useful : blocks;
  return static_cast<int>(threads < most ? threads : (most < 1 ? 1 : most));
}

template <class Scalar>
inline Peephole<Vec<Scalar>> no_peephole() {
  return {Vec<Scalar>{}, Vec<Scalar>{}, Vec<Scalar>{}};
}

template <class Stored>
inline Peephole<Vec<Compute<Stored>>> load_peephole(const Stored* weights, int64_t hidden, int64_t unit, int count) {
  if (weights == nullptr) return no_peephole<Compute<Stored>>();
  return {load(weights + unit, count), load(weights + hidden + unit, count), load(weights + 2 * hidden + unit, count)};
}

template <class Stored>
inline Gates<Vec<Compute<Stored>>> load_gates(const Stored* row, int64_t hidden, int64_t unit, int count) {
  return {load(row + unit, count), load(row + hidden + unit, count), load(row + 2 * hidden + unit, count),
          load(row + 3 * hidden + unit, count)};
}

template <class Vector>
inline Gates<Vector> operator+(const Gates<Vector>& a, const Gates<Vector>& b) {
  return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o};
}

template <class Stored, class Vector>
inline void store_gates(Stored* row, int64_t hidden, int64_t unit, int count, const Gates<Vector>& gates) {
  store(row + unit, gates.i, count);
  store(row + hidden + unit, gates.f, count);
  store(row + 2 * hidden + unit, gates.g, count);
  store(row + 3 * hidden + unit, gates.o, count);
}

// ---- Forward. A block is V units with their four gates; the workspace is [packed weights | h of two steps]. ----

template <class Stored>
struct Forward {
  using Scalar = Compute<Stored>;
  using Vector = Vec<Scalar>;
  static constexpr int kV = kLanes<Scalar>;

  const LstmSequenceFwd& p;
  const int64_t blocks = ceil_div(p.hidden, kV);
  const int64_t panel = p.weight_hh != nullptr ? panel_size<Product<Stored>>(p.hidden) : 0;
  const int64_t stride = padded<Scalar>(p.hidden);
  Operand<Stored>* const packed = static_cast<Operand<Stored>*>(p.workspace);

  Operand<Stored>* slot(int64_t step) const { return packed + blocks * panel + (step % 2) * p.batch * stride; }
  int64_t bytes() const { return (blocks * panel + 2 * p.batch * stride) * sizeof(Operand<Stored>); }
  int lanes(int64_t unit) const { return static_cast<int>(p.hidden - unit < kV ? p.hidden - unit : kV); }

  void prepare(int64_t block) const {
    const int64_t unit = block * kV, hidden = p.hidden;
    const int count = lanes(unit);
    if (p.weight_hh != nullptr) {
      const Stored* rows = static_cast<const Stored*>(p.weight_hh) + unit * hidden;
      const int64_t gate = hidden * hidden;
      const Stored* const from[4] = {rows, rows + gate, rows + 2 * gate, rows + 3 * gate};
      const int counts[4] = {count, count, count, count};
      pack_panel<Product<Stored>>(from, counts, 1, hidden, hidden, packed + block * panel);
    }
    for (int64_t b = 0; b < p.batch; ++b) {
      const int64_t at = b * hidden + unit;
      store(slot(0) + b * stride + unit, load(static_cast<const Stored*>(p.h_0) + at, count), kV);
      store(static_cast<Scalar*>(p.c_n) + at, load(static_cast<const Scalar*>(p.c_0) + at, count), count);
    }
  }

  // One row of one block: `sum` [4, V] is the recurrent product; c_n holds the running cell state.
  void cell(int64_t step, int64_t time, int64_t b, int64_t unit, int count, const Peephole<Vector>& peephole,
            const Scalar* sum) const {
    const int64_t hidden = p.hidden, row = time * p.batch + b;
    Scalar* state = static_cast<Scalar*>(p.c_n) + b * hidden + unit;
    Operand<Stored>* h_next = slot(step + 1) + b * stride + unit;
    Stored* output = static_cast<Stored*>(p.output) + row * hidden + unit;
    Stored* gates = p.gates != nullptr ? static_cast<Stored*>(p.gates) + row * 4 * hidden : nullptr;
    Vector c = load(state, count);
    if (p.lengths != nullptr && time >= p.lengths[b]) {
      store(output, Vector{}, count);
      store(h_next, load(slot(step) + b * stride + unit, kV), kV);
      if (gates != nullptr) store_gates(gates, hidden, unit, count, Gates<Vector>{});
    } else {
      Gates<Vector> z = {load(sum, kV), load(sum + kV, kV), load(sum + 2 * kV, kV), load(sum + 3 * kV, kV)};
      const Stored* projection = static_cast<const Stored*>(p.projection);
      if (projection != nullptr) z = z + load_gates(projection + row * 4 * hidden, hidden, unit, count);
      if (p.bias != nullptr) z = z + load_gates(static_cast<const Stored*>(p.bias), hidden, unit, count);
      const Cell<Vector> next = cell_forward<VectorMath>(z, peephole, c);
      c = next.c;
      store(output, next.h, count);
      store(h_next, load(output, count), kV);  // as rounded to the operand's dtype
      store(state, c, count);
      if (gates != nullptr) store_gates(gates, hidden, unit, count, next.gates);
    }
    if (p.cells != nullptr) store(static_cast<Scalar*>(p.cells) + row * hidden + unit, c, count);
  }

  void step(int64_t step, int64_t block) const {
    alignas(64) Scalar sums[kPanelRows * kAccWidth<Scalar>];
    const int64_t time = p.reverse ? p.steps - 1 - step : step, unit = block * kV;
    const int count = lanes(unit);
    const auto peephole = load_peephole(static_cast<const Stored*>(p.peephole), p.hidden, unit, count);
    for (int64_t b = 0; b < p.batch; b += kPanelRows) {
      const int64_t rows = p.batch - b < kPanelRows ? p.batch - b : kPanelRows;
      if (p.weight_hh != nullptr) {
        multiply_panel<Product<Stored>>(slot(step) + b * stride, stride, rows, packed + block * panel, p.hidden, sums);
      } else {
        std::memset(sums, 0, rows * kAccWidth<Scalar> * sizeof(Scalar));
      }
      for (int64_t r = 0; r < rows; ++r) {
        cell(step, time, b + r, unit, count, peephole, sums + r * kAccWidth<Scalar>);
      }
    }
  }

  void finish(int64_t block) const {
    const int64_t unit = block * kV;
    const int count = lanes(unit);
    for (int64_t b = 0; b < p.batch; ++b) {
      store(static_cast<Stored*>(p.h_n) + b * p.hidden + unit, load(slot(p.steps) + b * stride + unit, kV), count);
    }
  }

  static void body(const void* context, ThreadTeam& team, int rank) {
    const Forward& self = *static_cast<const Forward*>(context);
    const int64_t begin = first_of(self.blocks, rank, team.size()), end = first_of(self.blocks, rank + 1, team.size());
    for (int64_t block = begin; block < end; ++block) self.prepare(block);
    for (int64_t step = 0; step < self.p.steps; ++step) {
      team.barrier();
      for (int64_t block = begin; block < end; ++block) self.step(step, block);
    }
    for (int64_t block = begin; block < end; ++block) self.finish(block);
  }
};

// ---- Backward. A block is 4V units. Workspace: [packed weights | dz of two steps | dh carried through padding]. ----

template <class Stored>
struct Backward {
  using Scalar = Compute<Stored>;
  using Vector = Vec<Scalar>;
  static constexpr int kV = kLanes<Scalar>;

  const LstmSequenceBwd& p;
  const int64_t blocks = ceil_div(p.hidden, 4 * kV);
  const int64_t panel = panel_size<Product<Stored>>(4 * p.hidden);
  const int64_t stride = padded<Scalar>(4 * p.hidden);
  const int64_t before_carried = (blocks * panel + 2 * p.batch * stride) * sizeof(Operand<Stored>);
  const int64_t before_sums = before_carried + ceil_div(p.batch * p.hidden, kV) * kVectorBytes;
  char* const memory = static_cast<char*>(p.workspace);
  Operand<Stored>* const packed = reinterpret_cast<Operand<Stored>*>(memory);
  Scalar* const carried = reinterpret_cast<Scalar*>(memory + before_carried);     // [B, H]
  double* const peephole_sums = reinterpret_cast<double*>(memory + before_sums);  // [3, H]: double, T * B terms

  Operand<Stored>* slot(int64_t step) const { return packed + blocks * panel + (step % 2) * p.batch * stride; }
  int64_t bytes() const { return before_sums + 3 * p.hidden * sizeof(double); }
  int lanes(int64_t unit) const {
    const int64_t left = p.hidden - unit;
    return static_cast<int>(left < 0 ? 0 : (left < kV ? left : kV));
  }
  int64_t time_of(int64_t step) const { return p.reverse ? p.steps - 1 - step : step; }

  void prepare(int64_t block) const {
    const int64_t unit = block * 4 * kV, hidden = p.hidden;
    const Stored* const columns = static_cast<const Stored*>(p.weight_hh) + unit;
    const Stored* const from[4] = {columns, columns + kV, columns + 2 * kV, columns + 3 * kV};
    const int counts[4] = {lanes(unit), lanes(unit + kV), lanes(unit + 2 * kV), lanes(unit + 3 * kV)};
    pack_panel<Product<Stored>>(from, counts, hidden, 1, 4 * hidden, packed + block * panel);
    const int64_t end = unit + 4 * kV < hidden ? unit + 4 * kV : hidden;
    for (int64_t u = unit; u < end; u += kV) {
      const int count = lanes(u);
      for (int gate = 0; gate < 3; ++gate) std::memset(peephole_sums + gate * hidden + u, 0, count * sizeof(double));
      for (int64_t b = 0; b < p.batch; ++b) {
        const int64_t at = b * hidden + u;
        const Vector dh = p.grad_h_n ? load(static_cast<const Stored*>(p.grad_h_n) + at, count) : Vector{};
        const Vector dc = p.grad_c_n ? load(static_cast<const Scalar*>(p.grad_c_n) + at, count) : Vector{};
        store(carried + at, dh, count);
        store(static_cast<Scalar*>(p.grad_c_0) + at, dc, count);
      }
    }
  }

  // One row of V units: `sum` [V] is this step's part of dh; grad_c_0 holds the running dc. Returns the peepholes' part.
  Peephole<Vector> cell(int64_t step, int64_t b, int64_t unit, int count, const Peephole<Vector>& peephole,
                        Vector dh) const {
    const int64_t hidden = p.hidden, time = time_of(step), row = time * p.batch + b, at = b * hidden + unit;
    Scalar* dc_state = static_cast<Scalar*>(p.grad_c_0) + at;
    Stored* grad_gates = static_cast<Stored*>(p.grad_gates) + row * 4 * hidden;
    Operand<Stored>* exchanged = slot(step) + b * stride;
    Vector dc = load(dc_state, count);
    if (p.grad_cells != nullptr) dc += load(static_cast<const Scalar*>(p.grad_cells) + row * hidden + unit, count);
    dh += load(carried + at, count);
    if (p.lengths != nullptr && time >= p.lengths[b]) {
      store(dc_state, dc, count);
      store(carried + at, dh, count);
      store_gates(grad_gates, hidden, unit, count, Gates<Vector>{});
      store_gates(exchanged, hidden, unit, count, Gates<Vector>{});
      return no_peephole<Scalar>();
    }
    if (p.grad_output != nullptr) dh += load(static_cast<const Stored*>(p.grad_output) + row * hidden + unit, count);
    const Scalar* cells = static_cast<const Scalar*>(p.cells);
    const Scalar* before =
        step > 0 ? cells + (time_of(step - 1) * p.batch + b) * hidden : static_cast<const Scalar*>(p.c_0) + b * hidden;
    const Vector c_prev = load(before + unit, count), c = load(cells + row * hidden + unit, count);
    const auto gates = load_gates(static_cast<const Stored*>(p.gates) + row * 4 * hidden, hidden, unit, count);
    const CellGradient<Vector> grad = cell_backward<VectorMath>(gates, peephole, c_prev, c, dh, dc);
    store(dc_state, grad.c_prev, count);
    store(carried + at, Vector{}, count);
    store_gates(grad_gates, hidden, unit, count, grad.z);
    store_gates(exchanged, hidden, unit, count, load_gates(grad_gates, hidden, unit, count));
    return {grad.z.i * c_prev, grad.z.f * c_prev, grad.z.o * c};
  }

  void add_peepholes(int64_t unit, int count, const Peephole<Vector>& sum) const {
    for (int lane = 0; lane < count; ++lane) {
      peephole_sums[unit + lane] += sum.i[lane];
      peephole_sums[p.hidden + unit + lane] += sum.f[lane];
      peephole_sums[2 * p.hidden + unit + lane] += sum.o[lane];
    }
  }

  // dh of step `step` from dz of the step after it (none for the last); step -1 leaves the gradient of h_0.
  void step(int64_t step, int64_t block) const {
    alignas(64) Scalar sums[kPanelRows * kAccWidth<Scalar>];
    for (int64_t b = 0; b < p.batch; b += kPanelRows) {
      const int64_t rows = p.batch - b < kPanelRows ? p.batch - b : kPanelRows;
      if (step < p.steps - 1) {
        multiply_panel<Product<Stored>>(slot(step + 1) + b * stride, stride, rows, packed + block * panel, 4 * p.hidden,
                                        sums);
      } else {
        std::memset(sums, 0, rows * kAccWidth<Scalar> * sizeof(Scalar));
      }
      for (int j = 0; j < 4; ++j) {
        const int64_t unit = (block * 4 + j) * kV;
        const int count = lanes(unit);
        if (count == 0) break;
        const Scalar* sum = sums + j * kV;
        if (step < 0) {
          for (int64_t r = 0; r < rows; ++r, sum += kAccWidth<Scalar>) {
            const int64_t at = (b + r) * p.hidden + unit;
            store(static_cast<Stored*>(p.grad_h_0) + at, load(sum, kV) + load(carried + at, count), count);
          }
          continue;
        }
        const auto peephole = load_peephole(static_cast<const Stored*>(p.peephole), p.hidden, unit, count);
        Peephole<Vector> total = no_peephole<Scalar>();
        for (int64_t r = 0; r < rows; ++r, sum += kAccWidth<Scalar>) {
          const Peephole<Vector> part = cell(step, b + r, unit, count, peephole, load(sum, kV));
          total = {total.i + part.i, total.f + part.f, total.o + part.o};
        }
        if (p.grad_peephole != nullptr) add_peepholes(unit, count, total);
      }
    }
  }

  void finish(int64_t block) const {
    if (p.grad_peephole == nullptr) return;
    const int64_t begin = block * 4 * kV, end = begin + 4 * kV < p.hidden ? begin + 4 * kV : p.hidden;
    for (int gate = 0; gate < 3; ++gate) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const Vector value = Vector{} + static_cast<Scalar>(peephole_sums[gate * p.hidden + unit]);
        store(static_cast<Stored*>(p.grad_peephole) + gate * p.hidden + unit, value, 1);
      }
    }
  }

  static void body(const void* context, ThreadTeam& team, int rank) {
    const Backward& self = *static_cast<const Backward*>(context);
    const int64_t begin = first_of(self.blocks, rank, team.size()), end = first_of(self.blocks, rank + 1, team.size());
    for (int64_t block = begin; block < end; ++block) self.prepare(block);
    for (int64_t step = self.p.steps - 1; step >= -1; --step) {
      team.barrier();
      for (int64_t block = begin; block < end; ++block) self.step(step, block);
    }
    for (int64_t block = begin; block < end; ++block) self.finish(block);
  }
};

template <template <class> class Kernel, class Parameters>
void run(const Parameters& p) {
  const auto launch = [&](const auto& kernel) {
    using Type = std::remove_cv_t<std::remove_reference_t<decltype(kernel)>>;
    ThreadTeam::run(team_size(p.threads, p.batch, p.hidden, kernel.blocks), &Type::body, &kernel);
  };
  switch (p.dtype) {
    case DType::kFloat32: return launch(Kernel<float>{p});
    case DType::kFloat64: return launch(Kernel<double>{p});
    case DType::kBFloat16: return launch(Kernel<bfloat16>{p});
    case DType::kFloat16: return;  // not computed here: backends/cpu refuses it
  }
}

template <template <class> class Kernel, class Parameters>
int64_t workspace(const Parameters& p) {
  switch (p.dtype) {
    case DType::kFloat32: return Kernel<float>{p}.bytes();
    case DType::kFloat64: return Kernel<double>{p}.bytes();
    case DType::kBFloat16: return Kernel<bfloat16>{p}.bytes();
    case DType::kFloat16: break;
  }
  return 0;
}

}  // namespace

extern const CpuKernels kKernels = {&run<Forward, LstmSequenceFwd>, &run<Backward, LstmSequenceBwd>,
                                    &workspace<Forward, LstmSequenceFwd>, &workspace<Backward, LstmSequenceBwd>};

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
