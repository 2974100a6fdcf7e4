// Backward through the recurrence of an LSTM layer as one persistent kernel.
//
//   dh_t = W_hh^T dz_{t+1} + grad_output_t,   (dz_t, dc_{t-1}) = cell's gradient(dh_t, dc_t)    csrc/include/lstmvid/cell_math.h
//
// dz_t are the gradients of the four gates' pre-activations. The block that owns a unit computes its dz once; that is what
// crosses to the step before, and what the dense products outside (weights, biases, inputs) read.
//
// Parallel as forward (lstm_sequence_fwd.cuh), with M and K swapped: a unit block is 32 units, and K the 4H gradients, ordered
// by unit and then gate, so that a block's slice of K is the work of a few other blocks. With four times the operands to read
// a step, larger clusters pay. c and the gradients of c and h are float32; what a lane carries from step to step is dc and,
// where a sequence isn't running, dh.
//
// Floor of a step (KERNELS.md): max(8 B H^2 FLOP, 4 B H elements of dz to every cluster from L2) + one exchange through L2.
#pragma once

#include <type_traits>

#include "cuda/lstm_sequence_bwd_launch.h"
#include "cuda/primitives/flags.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"
#include "cuda/recurrence_feed.cuh"
#include "cuda/recurrence_launch.cuh"
#include "cuda/recurrence_prepare.cuh"
#include "cuda/recurrence_sums.cuh"
#include "lstmvid/cell_math.h"

namespace lstmvid {

constexpr int kBwdUnitBlock = 32;

struct BwdParameters {
  Recurrence r;
  LstmSequenceBwdCuda p;

  // W_hh transposed; operand k is gate k % 4 of unit k / 4.
  template <class Operand>
  LSTMVID_DEVICE const Operand* weight(int64_t group, int64_t unit_block, int row, int64_t k) const {
    const int64_t unit = unit_block * kBwdUnitBlock + row;
    if (unit >= p.hidden || k >= 4 * p.hidden) return nullptr;
    return static_cast<const Operand*>(p.weight_hh[group]) + (k % 4 * p.hidden + k / 4) * p.hidden + unit;
  }

  // Behind the last step there is none.
  template <class Operand>
  LSTMVID_DEVICE const Operand* first_operand(int64_t, int64_t, int64_t) const {
    return nullptr;
  }

  // The forward pass's step that a step of this one goes back through; -1 for the one behind the first.
  LSTMVID_DEVICE int64_t forward_step(int64_t step) const { return p.steps - 1 - step; }
};

// A row of a slot of inputs: what is read for a tile's row and the block's own units.
struct BwdInputs {
  int gate, grad_output, cell, before, grad_cell;  // bytes: between gates, and where the others begin

  LSTMVID_DEVICE explicit BwdInputs(const Recurrence& r) {
    const int units = r.g.own * kBwdUnitBlock;
    gate = units * r.g.element_bytes;
    grad_output = 4 * gate;
    cell = 5 * gate;
    before = cell + 4 * units;
    grad_cell = before + 4 * units;
  }
};

template <class Operand>
LSTMVID_DEVICE void feed_saved(const BwdParameters& parameters, const Place& place, Ring ring) {
  const Recurrence& r = parameters.r;
  const LstmSequenceBwdCuda& p = parameters.p;
  const BwdInputs at(r);
  const int64_t H = p.hidden, group = place.group;
  const auto* gates = static_cast<const Operand*>(p.gates[group]);
  const auto* grad_output = static_cast<const Operand*>(p.grad_output[group]);
  const float* cells = p.cells[group];
  const float* c_0 = p.c_0[group];
  const float* grad_cells = p.grad_cells[group];
  const bool is_async = are_pieces(H) && is_aligned(gates) && is_aligned(grad_output) && is_aligned(cells) &&
                        is_aligned(c_0) && is_aligned(grad_cells);
  for (Item item(r, place); !item.done(); item.advance()) {
    const int64_t step = parameters.forward_step(item.step);
    if (step < 0) continue;
    const OwnUnits units(r, place, item);
    const int64_t first_row = place.first_row + static_cast<int64_t>(item.tile) * r.plan.tile_columns;
    const int64_t row = time_of(r, place, step) * r.batch + first_row;
    const float* before =
        step > 0 ? cells + (time_of(r, place, step - 1) * r.batch + first_row) * H : c_0 + first_row * H;
    const int rows = place.tile_rows(r, item.tile);
    ring.wait_empty(r.max_polls);
    const auto copy = [&](const auto* tensor, int to) {  // [rows, H]
      using T = std::remove_cv_t<std::remove_pointer_t<decltype(tensor)>>;
      InputRows<T>{tensor + units.first, H, 0, 1, units.count, to, 0}.copy(ring.here(), r.g.input_row_bytes, rows,
                                                                           is_async);
    };
    InputRows<Operand>{gates + row * 4 * H + units.first, 4 * H, H, 4, units.count, 0, at.gate}.copy(
        ring.here(), r.g.input_row_bytes, rows, is_async);
    copy(cells + row * H, at.cell);
    copy(before, at.before);
    if (grad_output != nullptr) copy(grad_output + row * H, at.grad_output);
    if (grad_cells != nullptr) copy(grad_cells + row * H, at.grad_cell);
    finish_inputs(ring, is_async);
  }
}

// Four operands side by side, to and from the exchange.
template <class Operand>
LSTMVID_DEVICE void store_four(uint8_t* to, const Operand (&x)[4]) {
  auto* words = reinterpret_cast<uint32_t*>(to);
  if constexpr (sizeof(Operand) == 2) {
    store_exchanged(words, x[0].bits | static_cast<uint32_t>(x[1].bits) << 16);
    store_exchanged(words + 1, x[2].bits | static_cast<uint32_t>(x[3].bits) << 16);
  } else {
    for (int i = 0; i < 4; ++i) store_exchanged(words + i, as_bits(x[i]));
  }
}

template <class Operand>
LSTMVID_DEVICE void load_four(Operand (&x)[4], const uint8_t* from) {
  const auto* words = reinterpret_cast<const uint32_t*>(from);
  if constexpr (sizeof(Operand) == 2) {
    for (int i = 0; i < 2; ++i) {
      const uint32_t word = load_exchanged(words + i);
      x[2 * i].bits = static_cast<uint16_t>(word);
      x[2 * i + 1].bits = static_cast<uint16_t>(word >> 16);
    }
  } else {
    for (int i = 0; i < 4; ++i) x[i] = as_float(load_exchanged(words + i));
  }
}

// A warp's share of the cells, once their sums are there.
template <class Config>
struct BwdCells {
  using Operand = Element<Config::kPrecision>;
  static constexpr int kWorkerRegisters = 216;
  static constexpr int kStateWords = 16;  // of eight cells: the gradients of c and, where it is carried along, of h

  const BwdParameters& parameters;
  Sums<Config>& sums;

  static LSTMVID_DEVICE void feed(const BwdParameters& parameters, const Place& place, const Ring& ring) {
    feed_saved<Operand>(parameters, place, ring);
  }

  // One of this lane's eight cells: four units, eight apart, and two neighbouring rows of a tile.
  struct Cell {
    const float* product;  // W_hh^T dz of the step behind, once the partial sums have been added
    int64_t unit, row;     // of the layer, of the batch
    int unit_in_own, row_in_tile;
    int32_t steps;  // of its sequence
    const float* constants;
    float *grad_c, *grad_h;
  };

  // visit(cell) for those that exist.
  template <class Visit>
  LSTMVID_DEVICE void for_each(const Item& item, int own, int n, const Visit& visit) const {
    const Recurrence& r = parameters.r;
    float* state = sums.template state<kStateWords>(item, own, n);
#pragma unroll 2
    for (int i = 0; i < 8; ++i) {
      Cell cell;
      cell.product = reinterpret_cast<const float*>(sums.partial(own, n) + i / 4 * kWarpSize) + i % 4;
      cell.unit_in_own = own * kBwdUnitBlock + lane_idx() / 4 + i / 2 * 8;
      cell.unit = sums.place.own_unit_block(r, item.pass) * static_cast<int64_t>(kBwdUnitBlock) + cell.unit_in_own;
      if (cell.unit >= parameters.p.hidden) break;
      cell.row_in_tile = n * 8 + lane_idx() % 4 * 2 + i % 2;
      cell.steps = sums.length(item, cell.row_in_tile);
      if (cell.steps < 0) continue;
      cell.row = sums.place.first_row + static_cast<int64_t>(item.tile) * r.plan.tile_columns + cell.row_in_tile;
      cell.constants = shared_constants(r) + (item.pass * r.g.own * kBwdUnitBlock + cell.unit_in_own) * kConstants;
      cell.grad_c = state + 2 * i * kWarpSize;
      cell.grad_h = cell.grad_c + kWarpSize;
      visit(cell);
    }
  }

  LSTMVID_DEVICE uint8_t* exchanged(const Item& item, const Cell& cell) const {
    return exchange_tile(parameters.r, sums.place, item.step + 1, item.tile) + as_bits(cell.constants[7]) +
           static_cast<int64_t>(cell.row_in_tile) * parameters.r.g.stage_row_bytes;
  }

  LSTMVID_DEVICE CellGradient<float> gradient(const BwdInputs& at, const Cell& cell, float grad_h, float grad_c) const {
    const uint8_t* inputs = sums.memory.inputs.here() + cell.row_in_tile * parameters.r.g.input_row_bytes;
    const auto gate = [&](int k) {
      return to_float(reinterpret_cast<const Operand*>(inputs + k * at.gate)[cell.unit_in_own]);
    };
    const Gates<float> gates{gate(0), gate(1), gate(2), gate(3)};
    const float c = reinterpret_cast<const float*>(inputs + at.cell)[cell.unit_in_own];
    const float before = reinterpret_cast<const float*>(inputs + at.before)[cell.unit_in_own];
    const float* k = cell.constants;
    return cell_backward<DeviceMath>(gates, Peephole<float>{k[4], k[5], k[6]}, before, c, grad_h, grad_c);
  }

  LSTMVID_DEVICE void add_products(int own, int n) const {
    float4* slot = sums.partial(own, n);
    float4 upper, lower;
    sums.add_partials(slot, upper, lower);
    slot[0] = upper;
    slot[kWarpSize] = lower;
  }

  // dz_t into the exchange, and what is carried on.
  LSTMVID_DEVICE void compute(const Item& item, int own, int n) {
    const Recurrence& r = parameters.r;
    const LstmSequenceBwdCuda& p = parameters.p;
    const BwdInputs at(r);
    const int64_t time = time_of(r, sums.place, parameters.forward_step(item.step));
    const int group = sums.place.group;
    add_products(own, n);
    for_each(item, own, n, [&](const Cell& cell) {
      const uint8_t* inputs = sums.memory.inputs.here() + cell.row_in_tile * r.g.input_row_bytes;
      float grad_h = *cell.grad_h + *cell.product, grad_c = *cell.grad_c;
      if (p.grad_cells[group] != nullptr)
        grad_c += reinterpret_cast<const float*>(inputs + at.grad_cell)[cell.unit_in_own];
      Operand dz[4];
      if (time < cell.steps) {
        if (p.grad_output[group] != nullptr) {
          grad_h += to_float(reinterpret_cast<const Operand*>(inputs + at.grad_output)[cell.unit_in_own]);
        }
        const CellGradient<float> of = gradient(at, cell, grad_h, grad_c);
        const float z[4] = {of.z.i, of.z.f, of.z.g, of.z.o};
#pragma unroll
        for (int k = 0; k < 4; ++k) dz[k] = as_operand<Config::kPrecision>(from_float<Operand>(z[k]));
        grad_h = 0.0f;
        grad_c = of.c_prev;
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) dz[k] = from_float<Operand>(0.0f);
      }
      *cell.grad_h = grad_h;
      *cell.grad_c = grad_c;
      store_four(exchanged(item, cell), dz);
    });
  }

  // dz_t for the dense products, after the flag: nobody on the device waits for it.
  LSTMVID_DEVICE void store(const Item& item, int own, int n) const {
    const Recurrence& r = parameters.r;
    const LstmSequenceBwdCuda& p = parameters.p;
    const int64_t time = time_of(r, sums.place, parameters.forward_step(item.step));
    auto* grad_gates = static_cast<Operand*>(p.grad_gates[sums.place.group]);
    for_each(item, own, n, [&](const Cell& cell) {
      Operand dz[4];
      load_four(dz, exchanged(item, cell));
      Operand* to = grad_gates + (time * r.batch + cell.row) * 4 * p.hidden + cell.unit;
#pragma unroll
      for (int k = 0; k < 4; ++k) to[k * p.hidden] = dz[k];
    });
  }

  // Behind the first step: the gradients of the initial states.
  LSTMVID_DEVICE void store_initial(const Item& item, int own, int n) const {
    const LstmSequenceBwdCuda& p = parameters.p;
    const int group = sums.place.group;
    add_products(own, n);
    for_each(item, own, n, [&](const Cell& cell) {
      const int64_t at = cell.row * p.hidden + cell.unit;
      static_cast<Operand*>(p.grad_h_0[group])[at] = from_float<Operand>(*cell.grad_h + *cell.product);
      p.grad_c_0[group][at] = *cell.grad_c;
    });
  }

  LSTMVID_DEVICE void finalise(const Item& item) {
    sums.wait_partials();
    if (parameters.forward_step(item.step) < 0) {
      sums.for_cells(item, [&](int own, int n) { store_initial(item, own, n); });
    } else {
      sums.memory.inputs.wait_full(parameters.r.max_polls);
      sums.for_cells(item, [&](int own, int n) { compute(item, own, n); });
      sums.memory.inputs.release();
      sums.publish_item(item);
      sums.for_cells(item, [&](int own, int n) { store(item, own, n); });
    }
    sums.release_partials();
  }

  // The final states' gradients; an earlier launch has left what it carried in the workspace.
  LSTMVID_DEVICE void begin() const {
    const LstmSequenceBwdCuda& p = parameters.p;
    if (p.first_step != 0) return;
    const int group = sums.place.group;
    const auto* grad_h_n = static_cast<const Operand*>(p.grad_h_n[group]);
    sums.for_all_cells([&](const Item& item, int own, int n) {
      for_each(item, own, n, [&](const Cell& cell) {
        const int64_t at = cell.row * p.hidden + cell.unit;
        *cell.grad_h = grad_h_n != nullptr ? to_float(grad_h_n[at]) : 0.0f;
        *cell.grad_c = p.grad_c_n[group] != nullptr ? p.grad_c_n[group][at] : 0.0f;
      });
    });
  }

  LSTMVID_DEVICE void end() const {}
};

template <class Config>
__global__ void __launch_bounds__(kRecurrenceThreads, 1)
    lstm_sequence_bwd_kernel(const __grid_constant__ BwdParameters parameters) {
  run_recurrence<Config, BwdCells<Config>>(parameters, nullptr);
}

struct BwdKernels {
  using Parameters = BwdParameters;
  static constexpr int kMostAhead = 3;
  template <class Config>
  static constexpr void (*kKernel)(BwdParameters) = &lstm_sequence_bwd_kernel<Config>;
};

template <Precision precision>
void launch_bwd(const LstmSequenceBwdCuda& p, const Recurrence& r, void* stream) {
  launch_recurrence<precision, BwdKernels>(BwdParameters{r, p}, stream);
}

}  // namespace lstmvid
