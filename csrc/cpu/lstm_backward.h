// One layer's recurrence backward.
#pragma once

#include "lstmvid/lstm_sequence.h"
#include "recurrence.h"

namespace lstmvid {
namespace LSTMVID_ISA {

// ---- Backward. A block is 4V units. Workspace: [packed weights | dz of two steps | dh carried through padding]. ----

template <class Stored>
struct Backward {
  using Scalar = Compute<Stored>;
  using Vector = Vec<Scalar>;
  static constexpr int kV = kLanes<Scalar>;

  const LstmSequenceBwd& p;
  const int64_t blocks = ceil_div(p.hidden, 4 * kV);
  const int64_t panel = panel_size<Product<Stored>>(4 * p.hidden);
  const int64_t stride = padded<Operand<Stored>>(4 * p.hidden), slot_rows = p.batch + Product<Stored>::kRowsBeyond;
  const int64_t before_carried = (blocks * panel + 2 * slot_rows * stride) * sizeof(Operand<Stored>);
  const int64_t before_sums = before_carried + ceil_div(p.batch * p.hidden, kV) * kVectorBytes;
  char* const memory = static_cast<char*>(p.workspace);
  Operand<Stored>* const packed = reinterpret_cast<Operand<Stored>*>(memory);
  Scalar* const carried = reinterpret_cast<Scalar*>(memory + before_carried);     // [B, H]
  double* const peephole_sums = reinterpret_cast<double*>(memory + before_sums);  // [3, H]: double, T * B terms

  Operand<Stored>* slot(int64_t step) const { return packed + blocks * panel + (step % 2) * slot_rows * stride; }
  int64_t bytes() const { return before_sums + 3 * p.hidden * sizeof(double); }
  int lanes(int64_t unit) const {
    const int64_t left = p.hidden - unit;
    return static_cast<int>(left < 0 ? 0 : (left < kV ? left : kV));
  }
  int64_t time_of(int64_t step) const { return p.reverse ? p.steps - 1 - step : step; }

  // A block's panel of the columns of a weight [depth, H].
  void pack_columns(const void* weight, int64_t depth, int64_t block, Operand<Stored>* panels) const {
    const int64_t unit = block * 4 * kV;
    const Stored* const columns = static_cast<const Stored*>(weight) + unit;
    const Stored* const from[4] = {columns, columns + kV, columns + 2 * kV, columns + 3 * kV};
    const int counts[4] = {lanes(unit), lanes(unit + kV), lanes(unit + 2 * kV), lanes(unit + 3 * kV)};
    pack_panel<Product<Stored>>(from, counts, p.hidden, 1, depth, panels + block * panel_size<Product<Stored>>(depth));
  }

  void prepare(int64_t block) const {
    const int64_t unit = block * 4 * kV, hidden = p.hidden;
    if (block == 0) clear_padding(slot(0), 2 * slot_rows, 4 * hidden, stride);
    if (!p.packed) pack_columns(p.weight_hh, 4 * hidden, block, packed);
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
  // `above`: where what comes from above is not in memory yet, its two factors.
  void step(int64_t step, Block block, const Factor<Operand<Stored>>& above = {}) const {
    alignas(64) Scalar sums[kPanelRows * kAccWidth<Scalar>];
    const Factor<Operand<Stored>> recurrent = {step < p.steps - 1 ? slot(step + 1) : nullptr, stride, packed, panel,
                                               4 * p.hidden};
    for (int64_t b = 0; b < p.batch; b += kPanelRows) {
      const int64_t rows = p.batch - b < kPanelRows ? p.batch - b : kPanelRows;
      multiply_factors<Stored>(above, recurrent, block, b, rows, sums);
      for (int j = 0; j < 4; ++j) {
        const int64_t unit = (block.at * 4 + j) * kV;
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

  void body(ThreadTeam& team, int rank) const {
    const Share share(blocks, rank, team.size());
    share.each([&](int64_t block) { prepare(block); });
    for (int64_t step = p.steps - 1; step >= -1; --step) {
      team.barrier();
      share.each_of_step(step, [&](Block block) { this->step(step, block); });
    }
    share.each([&](int64_t block) { finish(block); });
  }
};

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
