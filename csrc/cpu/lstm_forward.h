// One layer's recurrence forward.
#pragma once

#include "lstmvid/lstm_sequence.h"
#include "recurrence.h"

namespace lstmvid {
namespace LSTMVID_ISA {

// ---- Forward. A block is V units with their four gates; the workspace is [packed weights | h of two steps]. ----

template <class Stored>
struct Forward {
  using Scalar = Compute<Stored>;
  using Vector = Vec<Scalar>;
  static constexpr int kV = kLanes<Scalar>;

  const LstmSequenceFwd& p;
  const int64_t blocks = ceil_div(p.hidden, kV);
  const int64_t panel = p.weight_hh != nullptr ? panel_size<Product<Stored>>(p.hidden) : 0;
  const int64_t stride = padded<Operand<Stored>>(p.hidden), slot_rows = p.batch + Product<Stored>::kRowsBeyond;
  Operand<Stored>* const packed = static_cast<Operand<Stored>*>(p.workspace);

  Operand<Stored>* slot(int64_t step) const { return packed + blocks * panel + (step % 2) * slot_rows * stride; }
  int64_t bytes() const { return (blocks * panel + 2 * slot_rows * stride) * sizeof(Operand<Stored>); }
  int lanes(int64_t unit) const { return static_cast<int>(p.hidden - unit < kV ? p.hidden - unit : kV); }

  // A block's panel of the four gates' rows of a weight [4H, depth].
  void pack_rows(const void* weight, int64_t depth, int64_t block, Operand<Stored>* panels) const {
    const int64_t unit = block * kV;
    const int count = lanes(unit);
    const Stored* rows = static_cast<const Stored*>(weight) + unit * depth;
    const int64_t gate = p.hidden * depth;
    const Stored* const from[4] = {rows, rows + gate, rows + 2 * gate, rows + 3 * gate};
    const int counts[4] = {count, count, count, count};
    pack_panel<Product<Stored>>(from, counts, 1, depth, depth, panels + block * panel_size<Product<Stored>>(depth));
  }

  void prepare(int64_t block) const {
    const int64_t unit = block * kV, hidden = p.hidden;
    if (block == 0) clear_padding(slot(0), 2 * slot_rows, blocks * kV, stride);
    const int count = lanes(unit);
    if (p.weight_hh != nullptr && !p.packed) pack_rows(p.weight_hh, hidden, block, packed);
    for (int64_t b = 0; b < p.batch; ++b) {
      const int64_t at = b * hidden + unit;
      store(slot(0) + b * stride + unit, load(static_cast<const Stored*>(p.h_0) + at, count), kV);
      store(static_cast<Scalar*>(p.c_n) + at, load(static_cast<const Scalar*>(p.c_0) + at, count), count);
    }
  }

  // One row of one block: `sum` [4, V] is the recurrent product; c_n holds the running cell state.
  void cell(int64_t step, int64_t time, int64_t b, int64_t unit, int count, const Gates<Vector>& bias,
            const Peephole<Vector>& peephole, const Scalar* sum) const {
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
      Gates<Vector> z = bias + load_gates(sum, kV, 0, kV);
      const Stored* projection = static_cast<const Stored*>(p.projection);
      if (projection != nullptr && !(p.blind && step == 0)) {
        const int64_t at = p.blind && !p.reverse ? row - p.batch : row;
        z = z + load_gates(projection + at * 4 * hidden, hidden, unit, count);
      }
      const Cell<Vector> next = cell_forward<VectorMath>(z, peephole, c);
      c = next.c;
      store(output, next.h, count);
      store(h_next, load(output, count), kV);  // as rounded to the operand's dtype
      store(state, c, count);
      if (gates != nullptr) store_gates(gates, hidden, unit, count, next.gates);
    }
    if (p.cells != nullptr) store(static_cast<Scalar*>(p.cells) + row * hidden + unit, c, count);
  }

  // `input`: where the input's projection is not in memory yet, its two factors.
  void step(int64_t step, Block block, const Factor<Operand<Stored>>& input = {}) const {
    alignas(64) Scalar sums[kPanelRows * kAccWidth<Scalar>];
    const int64_t time = p.reverse ? p.steps - 1 - step : step, unit = block.at * kV;
    const int count = lanes(unit);
    const auto peephole = load_peephole(static_cast<const Stored*>(p.peephole), p.hidden, unit, count);
    const auto bias =
        p.bias != nullptr ? load_gates(static_cast<const Stored*>(p.bias), p.hidden, unit, count) : Gates<Vector>{};
    const Factor<Operand<Stored>> recurrent = {p.weight_hh != nullptr ? slot(step) : nullptr, stride, packed, panel,
                                               p.hidden};
    for (int64_t b = 0; b < p.batch; b += kPanelRows) {
      const int64_t rows = p.batch - b < kPanelRows ? p.batch - b : kPanelRows;
      multiply_factors<Stored>(input, recurrent, block, b, rows, sums);
      for (int64_t r = 0; r < rows; ++r) {
        cell(step, time, b + r, unit, count, bias, peephole, sums + r * kAccWidth<Scalar>);
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

  void body(ThreadTeam& team, int rank) const {
    const Share share(blocks, rank, team.size());
    share.each([&](int64_t block) { prepare(block); });
    for (int64_t step = 0; step < p.steps; ++step) {
      team.barrier();
      share.each_of_step(step, [&](Block block) { this->step(step, block); });
    }
    share.each([&](int64_t block) { finish(block); });
  }
};

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
