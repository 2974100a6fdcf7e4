// The forward recurrence of an LSTM layer as one persistent kernel.
//
//   z_t = W_hh h_{t-1} + projection_t (or bias),   (gates, c_t, h_t) = cell(z_t, c_{t-1})        csrc/include/lstmvid/cell_math.h
//
// Parallel over hidden units (clusters), over K inside a cluster (its blocks) and inside a block (warps), over batch rows
// (replicas of the weights, and tiles that follow each other); sequential over steps. The tiles of a step are independent:
// while the h of one crosses the chip, the next one is multiplied.
//
// Where things live. W_hh: as the matrix instructions take it, the first rounds of K in registers, the next in shared memory, the rest streamed
// from L2 each step. h_{t-1}: in the exchange (global memory, two slots), read through a ring of stages. c_t: shared memory
// or workspace, always by the thread that owns the cell. Partial sums: shared memory of the block that finalises the unit.
//
// A block's warps 0-7 multiply and finalise; three more feed them: they watch the other blocks' flags and copy ahead. One
// work item is a step of a tile in a pass; rings and barriers count items in the same order in every warp and block.
//
// Floor of a step (KERNELS.md): max(8 B H^2 FLOP, bytes of h and of streamed weights from L2) + one exchange through L2.
#pragma once

#include "cuda/lstm_sequence_fwd_launch.h"
#include "cuda/primitives/flags.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"
#include "cuda/recurrence_feed.cuh"
#include "cuda/recurrence_launch.cuh"
#include "cuda/recurrence_prepare.cuh"
#include "cuda/recurrence_sums.cuh"
#include "lstmvid/cell_math.h"

namespace lstmvid {

constexpr int kFwdUnitBlock = 8;

struct FwdParameters {
  Recurrence r;
  LstmSequenceFwdCuda p;

  // Rows of a unit block: 8 of each gate.
  template <class Operand>
  LSTMVID_DEVICE const Operand* weight(int64_t group, int64_t unit_block, int row, int64_t k) const {
    const int64_t unit = unit_block * kFwdUnitBlock + row % kFwdUnitBlock, gate = row / kFwdUnitBlock;
    if (unit >= p.hidden || k >= p.hidden) return nullptr;
    return static_cast<const Operand*>(p.weight_hh[group]) + (gate * p.hidden + unit) * p.hidden + k;
  }

  template <class Operand>
  LSTMVID_DEVICE const Operand* first_operand(int64_t group, int64_t row, int64_t k) const {
    return static_cast<const Operand*>(p.h_0[group]) + row * p.hidden + k;
  }
};

// The projections [row of the tile][gate][own units].
template <class Operand>
LSTMVID_DEVICE void feed_projections(const FwdParameters& parameters, const Place& place, Ring ring) {
  const auto& [r, p] = parameters;
  const auto* projection = static_cast<const Operand*>(p.projection[place.group]);
  if (projection == nullptr) return;
  const bool is_async = are_pieces(p.hidden) && is_aligned(projection);
  for (Item item(r, place); !item.done(); item.advance()) {
    const OwnUnits units(r, place, item);
    const int64_t row = place.first_row + static_cast<int64_t>(item.tile) * r.plan.tile_columns;
    const Operand* from = projection + (time_of(r, place, item.step) * r.batch + row) * 4 * p.hidden + units.first;
    const int gate_bytes = r.g.own * kFwdUnitBlock * static_cast<int>(sizeof(Operand));
    const InputRows<Operand> rows{from, 4 * p.hidden, p.hidden, 4, units.count, 0, gate_bytes};
    ring.wait_empty(r.max_polls);
    rows.copy(ring.here(), r.g.input_row_bytes, place.tile_rows(r, item.tile), is_async);
    finish_inputs(ring, is_async);
  }
}

// A warp's share of the cells, once their sums are there.
template <class Config>
struct FwdCells {
  using Operand = Element<Config::kPrecision>;
  static constexpr int kStateWords = 2;  // c of two cells
  static constexpr int kWorkerRegisters = 224;

  const FwdParameters& parameters;
  Sums<Config>& sums;

  static LSTMVID_DEVICE void feed(const FwdParameters& parameters, const Place& place, const Ring& ring) {
    feed_projections<Operand>(parameters, place, ring);
  }

  // Two cells of this lane: one unit, two neighbouring rows of a tile.
  struct Pair {
    const float* constants;
    float4* slot;       // the first source's sums: i|f there, g|o kWarpSize further
    float* c;           // the second one's kWarpSize further
    int64_t unit, row;  // of the layer, of the batch
    int unit_in_own, row_in_tile;
  };

  LSTMVID_DEVICE Pair pair_of(const Item& item, int own, int n) const {
    const Recurrence& r = parameters.r;
    const Place& place = sums.place;
    Pair pair;
    pair.unit_in_own = own * kFwdUnitBlock + lane_idx() / 4;
    pair.unit = place.own_unit_block(r, item.pass) * static_cast<int64_t>(kFwdUnitBlock) + pair.unit_in_own;
    pair.row_in_tile = n * 8 + lane_idx() % 4 * 2;
    pair.row = place.first_row + static_cast<int64_t>(item.tile) * r.plan.tile_columns + pair.row_in_tile;
    pair.constants = shared_constants(r) + (item.pass * r.g.own * kFwdUnitBlock + pair.unit_in_own) * kConstants;
    pair.slot = sums.partial(own, n);
    pair.c = sums.template state<kStateWords>(item, own, n);
    return pair;
  }

  // -1 where there is no such cell.
  LSTMVID_DEVICE int32_t length(const Item& item, const Pair& pair, int b) const {
    return pair.unit < parameters.p.hidden ? sums.length(item, pair.row_in_tile + b) : -1;
  }

  // c_t into its place, h_t into the exchange, the activated gates over the sums.
  LSTMVID_DEVICE void compute(const Item& item, int own, int n) {
    const auto& [r, p] = parameters;
    const Pair pair = pair_of(item, own, n);
    float4 z_if, z_go;
    sums.add_partials(pair.slot, z_if, z_go);
    const float* k = pair.constants;
    Gates<float> z[2] = {{z_if.x, z_if.z, z_go.x, z_go.z}, {z_if.y, z_if.w, z_go.y, z_go.w}};
    const int64_t time = time_of(r, sums.place, item.step);
    const int group = sums.place.group;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int32_t steps = length(item, pair, b);
      if (steps < 0) continue;
      const int row = pair.row_in_tile + b;
      Gates<float> add{k[0], k[1], k[2], k[3]};
      if (p.projection[group] != nullptr) {
        const auto* x =
            reinterpret_cast<const Operand*>(sums.memory.inputs.here() + row * r.g.input_row_bytes) + pair.unit_in_own;
        const int gate = r.g.own * kFwdUnitBlock;
        add = {to_float(x[0]), to_float(x[gate]), to_float(x[2 * gate]), to_float(x[3 * gate])};
      }
      z[b] = {z[b].i + add.i, z[b].f + add.f, z[b].g + add.g, z[b].o + add.o};
      const Cell<float> cell = cell_forward<DeviceMath>(z[b], Peephole<float>{k[4], k[5], k[6]}, pair.c[b * kWarpSize]);
      z[b] = cell.gates;
      const int64_t offset = as_bits(k[7]) + static_cast<int64_t>(row) * r.g.stage_row_bytes;
      auto* h = reinterpret_cast<Operand*>(exchange_tile(r, sums.place, item.step + 1, item.tile) + offset);
      if (time < steps) {
        pair.c[b * kWarpSize] = cell.c;
        store_exchanged(h, as_operand<Config::kPrecision>(from_float<Operand>(cell.h)));
      } else {
        const auto* before = exchange_tile(r, sums.place, item.step, item.tile) + offset;
        store_exchanged(h, load_exchanged(reinterpret_cast<const Operand*>(before)));
      }
    }
    pair.slot[0] = make_float4(z[0].i, z[1].i, z[0].f, z[1].f);
    pair.slot[kWarpSize] = make_float4(z[0].g, z[1].g, z[0].o, z[1].o);
  }

  // What the caller gets of the step. Nobody on the device waits for it, so it comes after the flag.
  LSTMVID_DEVICE void store(const Item& item, int own, int n) {
    const auto& [r, p] = parameters;
    const Pair pair = pair_of(item, own, n);
    const float4 gates_if = pair.slot[0], gates_go = pair.slot[kWarpSize];
    const Gates<float> gates[2] = {{gates_if.x, gates_if.z, gates_go.x, gates_go.z},
                                   {gates_if.y, gates_if.w, gates_go.y, gates_go.w}};
    const int64_t time = time_of(r, sums.place, item.step);
    const int group = sums.place.group;
    const bool is_reverse = (r.reverse >> group & 1) != 0;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int32_t steps = length(item, pair, b);
      if (steps < 0) continue;
      const float c = pair.c[b * kWarpSize];
      const bool is_running = time < steps;
      const Operand h = from_float<Operand>(is_running ? gates[b].o * DeviceMath::tanh(c) : 0.0f);
      const int64_t row = pair.row + b, at_row = (time * r.batch + row) * p.hidden + pair.unit;
      static_cast<Operand*>(p.output[group])[at_row] = h;
      if (is_running && time == (is_reverse ? 0 : steps - 1)) {
        static_cast<Operand*>(p.h_n[group])[row * p.hidden + pair.unit] = h;
      }
      if (p.cells[group] != nullptr) p.cells[group][at_row] = c;
      if (p.gates[group] != nullptr) {
        auto* to = static_cast<Operand*>(p.gates[group]) + (time * r.batch + row) * 4 * p.hidden + pair.unit;
        to[0] = from_float<Operand>(gates[b].i);
        to[p.hidden] = from_float<Operand>(gates[b].f);
        to[2 * p.hidden] = from_float<Operand>(gates[b].g);
        to[3 * p.hidden] = from_float<Operand>(gates[b].o);
      }
    }
  }

  LSTMVID_DEVICE void finalise(const Item& item) {
    const auto& [r, p] = parameters;
    const bool has_input = p.projection[sums.place.group] != nullptr;
    sums.wait_partials();
    if (has_input) sums.memory.inputs.wait_full(r.max_polls);
    sums.for_cells(item, [&](int own, int n) { compute(item, own, n); });
    if (has_input) sums.memory.inputs.release();
    sums.publish_item(item);
    sums.for_cells(item, [&](int own, int n) { store(item, own, n); });
    sums.release_partials();
  }

  // visit(c, its place in a [B, H] tensor) of all this warp's cells.
  template <class Visit>
  LSTMVID_DEVICE void for_all(const Visit& visit) const {
    sums.for_all_cells([&](const Item& item, int own, int n) {
      const Pair pair = pair_of(item, own, n);
      for (int b = 0; b < 2; ++b) {
        if (length(item, pair, b) >= 0) visit(pair.c[b * kWarpSize], (pair.row + b) * parameters.p.hidden + pair.unit);
      }
    });
  }

  LSTMVID_DEVICE void begin() const {
    const LstmSequenceFwdCuda& p = parameters.p;
    const int group = sums.place.group;
    const float* before = p.first_step == 0 ? p.c_0[group] : p.c_n[group];
    for_all([&](float& c, int64_t at) { c = before[at]; });
  }

  LSTMVID_DEVICE void end() const {
    float* after = parameters.p.c_n[sums.place.group];
    for_all([&](float& c, int64_t at) { after[at] = c; });
  }
};

template <class Config>
__global__ void __launch_bounds__(kRecurrenceThreads, 1)
    lstm_sequence_fwd_kernel(const __grid_constant__ FwdParameters parameters) {
  run_recurrence<Config, FwdCells<Config>>(parameters, parameters.p.bias);
}

// h_n of sequences without a step.
template <Precision precision>
__global__ void __launch_bounds__(kPrepareThreads)
    empty_sequences_kernel(const __grid_constant__ FwdParameters parameters) {
  const LstmSequenceFwdCuda& p = parameters.p;
  const int64_t size = p.batch * p.hidden, stride = grid_blocks() * kPrepareThreads;
  for (int64_t at = block_idx() * kPrepareThreads + thread_idx(); at < p.groups * size; at += stride) {
    const int64_t group = at / size, in_group = at % size;
    if (p.lengths[in_group / p.hidden] > 0) continue;
    static_cast<Element<precision>*>(p.h_n[group])[in_group] =
        static_cast<const Element<precision>*>(p.h_0[group])[in_group];
  }
}

struct FwdKernels {
  using Parameters = FwdParameters;
  static constexpr int kMostAhead = 5;
  template <class Config>
  static constexpr void (*kKernel)(FwdParameters) = &lstm_sequence_fwd_kernel<Config>;
};

template <Precision precision>
void launch_fwd(const LstmSequenceFwdCuda& p, const Recurrence& r, void* stream) {
  const FwdParameters parameters{r, p};
  launch_recurrence<precision, FwdKernels>(parameters, stream);
  if (p.lengths != nullptr && p.first_step == 0) {
    launch_kernel(&empty_sequences_kernel<precision>, prepare_launch(p.groups * p.batch * p.hidden, stream),
                  parameters);
  }
}

template <Precision precision>
int64_t fwd_active_clusters(int cluster, int64_t shared_bytes) {
  const Launch launch{cluster, kRecurrenceThreads, cluster, shared_bytes, true, nullptr};
  return active_clusters(&lstm_sequence_fwd_kernel<RecurrenceConfig<precision, 1, 0, FwdKernels::kMostAhead, false>>,
                         launch);
}

}  // namespace lstmvid
