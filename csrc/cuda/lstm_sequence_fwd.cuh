// The forward recurrence of an LSTM layer as one persistent kernel.
//
//   z_t = W_hh h_{t-1} + projection_t (or bias),   (gates, c_t, h_t) = cell(z_t, c_{t-1})        csrc/include/lstmvid/cell_math.h
//
// Parallel over hidden units (clusters), over K inside a cluster (its blocks) and inside a block (warps), over batch rows
// (replicas of the weights, and tiles that follow each other); sequential over steps. The tiles of a step are independent:
// while the h of one crosses the chip, the next one is multiplied.
//
// Where things live. W_hh: as fragments, the first rounds of K in registers, the next in shared memory, the rest streamed
// from L2 each step. h_{t-1}: in the exchange (global memory, two slots), read through a ring of stages. c_t: shared memory
// or workspace, always by the thread that owns the cell. Partial sums: shared memory of the block that finalises the unit.
//
// A block's warps 0-7 multiply and finalise; three more feed them: they watch the other blocks' flags and copy ahead. One
// work item is a step of a tile in a pass; rings and barriers count items in the same order in every warp and block.
//
// Floor of a step (KERNELS.md): max(8 B H^2 FLOP, bytes of h and of streamed weights from L2) + one exchange through L2.
#pragma once

#include "cuda/lstm_sequence_fwd_block.cuh"
#include "cuda/lstm_sequence_fwd_feed.cuh"
#include "cuda/lstm_sequence_fwd_launch.h"
#include "cuda/lstm_sequence_fwd_prepare.cuh"
#include "cuda/primitives/cluster.h"
#include "cuda/primitives/flags.h"
#include "cuda/primitives/launch.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"
#include "lstmvid/cell_math.h"

namespace lstmvid {

template <Precision precision, int tile_blocks, int register_rounds>
struct FwdConfig {
  static constexpr Precision kPrecision = precision;
  static constexpr int kTileBlocks = tile_blocks;  // of 8 batch rows
  static constexpr int kRounds = register_rounds;  // whose weights stay in registers
  static_assert(tile_blocks >= 1 && tile_blocks <= 6, "more than 48 columns of sums spill on some chip");
  // A round's weights while the one before is multiplied: a small tile's products are too few to hide the load otherwise.
  static constexpr bool kLoadsAhead = tile_blocks <= 5;
  // The sums and the weights fit beside each other only where the feeding warps can give registers away.
  static constexpr bool kIsServed = register_rounds == 0 || kCanMoveRegisters;
};

// A warp's weights of a round.
struct Fragments {
  FragmentA of[2][2];  // [k-step][i|f, g|o]

  LSTMVID_DEVICE void load(const uint8_t* packed) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      of[i / 2][i % 2] = reinterpret_cast<const FragmentA*>(packed)[i * kWarpSize + lane_idx()];
    }
  }
};

// A warp that multiplies its unit block with its pairs of K, and finalises its share of the cells.
template <class Config>
struct FwdWorker {
  using Operand = Element<Config::kPrecision>;
  static constexpr int kTileBlocks = Config::kTileBlocks;

  const FwdParameters& parameters;
  const FwdPlace& place;
  FwdShared shared;        // cursors of its own
  float* cells;            // [tile][pass][own][tile block][lane][2]
  const int32_t* lengths;  // [tile][row]
  const int unit_block, k_warp;
  const bool multiplies;  // 8 warps needn't divide by the unit blocks
  uint32_t parity = 0;    // of the item, for the partial sums' barriers
  Fragments in_registers[Config::kRounds > 0 ? Config::kRounds : 1];
  float sums[2][kTileBlocks][4];  // i|f and g|o: fragments D of matrix.h

  LSTMVID_DEVICE FwdWorker(const FwdParameters& parameters, const FwdPlace& place, const FwdShared& shared)
      : parameters(parameters),
        place(place),
        shared(shared),
        unit_block(warp_idx() % parameters.plan.unit_blocks),
        k_warp(warp_idx() / parameters.plan.unit_blocks),
        multiplies(k_warp < parameters.g.k_warps) {
    const auto& [p, plan, g] = parameters;
    cells = plan.cells_in_shared ? reinterpret_cast<float*>(shared_memory() + g.cells)
                                 : reinterpret_cast<float*>(static_cast<uint8_t*>(p.workspace) + g.cells_in_workspace) +
                                       block_idx() * g.cells_per_block;
    lengths = plan.cells_in_shared ? reinterpret_cast<const int32_t*>(shared_memory() + g.lengths)
                                   : row_lengths(parameters, place);
  }

  // This warp's fragments in a round of weights.
  LSTMVID_DEVICE const uint8_t* mine(const uint8_t* round) const {
    return round + (k_warp * parameters.plan.unit_blocks + unit_block) * kFragmentBytes;
  }

  LSTMVID_DEVICE void load_registers() {
    if constexpr (Config::kRounds > 0) {
      if (!multiplies) return;
      const uint8_t* packed = packed_weights(parameters, place, 0);
#pragma unroll
      for (int round = 0; round < Config::kRounds; ++round) {
        in_registers[round].load(mine(packed + round * parameters.g.round_bytes));
      }
    }
  }

  LSTMVID_DEVICE void multiply_round(const Fragments& weights, const uint8_t* hidden) {
#pragma unroll
    for (int n = 0; n < kTileBlocks; ++n) {
      uint32_t b[4];  // [K 64 bytes, 8 rows]
      load_matrices(b, hidden + n * 8 * parameters.g.stage_row_bytes);
#pragma unroll
      for (int k_step = 0; k_step < 2; ++k_step) {
        multiply<Config::kPrecision>(sums[0][n], weights.of[k_step][0].x, b[2 * k_step], b[2 * k_step + 1]);
        multiply<Config::kPrecision>(sums[1][n], weights.of[k_step][1].x, b[2 * k_step], b[2 * k_step + 1]);
      }
    }
  }

  // sums [32 rows, tile] = this warp's part of W_hh h_{t-1}.
  LSTMVID_DEVICE void multiply_item(const FwdItem& item) {
    const LstmSequencePlan& plan = parameters.plan;
    const FwdGeometry& g = parameters.g;
    const uint64_t polls = parameters.p.max_polls;
#pragma unroll
    for (int gates = 0; gates < 2; ++gates) {
#pragma unroll
      for (int n = 0; n < kTileBlocks; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[gates][n][i] = 0.0f;
      }
    }
    const int lane = lane_idx();
    const int lane_offset = lane % 8 * g.stage_row_bytes + lane / 8 * 16 + k_warp * kPairBytes;
    const uint8_t* hidden = nullptr;
    int left_in_stage = 0, left = g.rounds;
    const auto enter = [&] {
      if (left_in_stage == 0) {
        shared.hidden.wait_full(polls);
        hidden = shared.hidden.here() + lane_offset;
        left_in_stage = plan.hidden_stage_rounds;
      }
    };
    const auto leave = [&] {
      --left;
      hidden += g.k_warps * kPairBytes;
      if (--left_in_stage == 0 || left == 0) {
        shared.hidden.release();
        left_in_stage = 0;
      }
    };

    if constexpr (Config::kRounds > 0) {
#pragma unroll
      for (int round = 0; round < Config::kRounds; ++round) {
        enter();
        multiply_round(in_registers[round], hidden);
        leave();
      }
    }
    Fragments weights;
    const uint8_t* resident = mine(shared_memory() + g.resident + item.pass * plan.resident_rounds * g.round_bytes);
    if (Config::kLoadsAhead && plan.resident_rounds > 0) weights.load(resident);
#pragma unroll 1
    for (int round = 0; round < plan.resident_rounds; ++round) {
      Fragments next;
      if constexpr (Config::kLoadsAhead) {
        resident += g.round_bytes;
        if (round + 1 < plan.resident_rounds) next.load(resident);
      } else {
        weights.load(resident + round * g.round_bytes);
      }
      enter();
      multiply_round(weights, hidden);
      leave();
      if constexpr (Config::kLoadsAhead) weights = next;
    }
#pragma unroll 1
    for (int round = 0; round < g.streamed_rounds; ++round) {
      enter();
      shared.weights.wait_full(polls);
      weights.load(mine(shared.weights.here()));
      multiply_round(weights, hidden);
      shared.weights.release();
      leave();
    }
  }

  // The partial sums [own][tile block][source][i|f, g|o][lane] of the first source.
  LSTMVID_DEVICE float4* partial(int own, int n) const {
    const int sources = parameters.plan.cluster * parameters.g.k_warps;
    return reinterpret_cast<float4*>(shared_memory() + parameters.g.partials) + (own * kTileBlocks + n) * sources * 64 +
           lane_idx();
  }

  // The sums to the block that finalises the unit block.
  LSTMVID_DEVICE void send_partials() {
    const auto& [p, plan, g] = parameters;
    const int to = unit_block / g.own;
    const int source = place.rank * g.k_warps + k_warp;
    wait(shared.partials_empty(to), parity ^ 1, p.max_polls);
#pragma unroll
    for (int n = 0; n < kTileBlocks; ++n) {
      float4* slot = partial(unit_block % g.own, n) + source * 64;
#pragma unroll
      for (int gates = 0; gates < 2; ++gates) {
        const float* x = sums[gates][n];
        store_remote(slot + gates * kWarpSize, to, make_float4(x[0], x[1], x[2], x[3]), shared.partials_full());
      }
    }
    finish_remote_stores(shared.partials_full(), to);
  }

  // Two cells of this lane: one unit, two neighbouring rows of a tile.
  struct CellPair {
    const float* constants;
    float4* slot;  // the first source's sums: i|f there, g|o kWarpSize further
    float* c;
    int64_t unit, row;  // of the layer, of the batch
    int unit_in_own, row_in_tile;
    const int32_t* lengths;  // of the two rows
  };

  LSTMVID_DEVICE CellPair cell_pair(const FwdItem& item, int own, int n) const {
    const auto& [p, plan, g] = parameters;
    const int lane = lane_idx();
    CellPair pair;
    pair.unit_in_own = own * kUnitBlock + lane / 4;
    pair.unit = place.own_unit_block(parameters, item.pass) * static_cast<int64_t>(kUnitBlock) + pair.unit_in_own;
    pair.row_in_tile = n * 8 + lane % 4 * 2;
    pair.row = place.first_row + static_cast<int64_t>(item.tile) * plan.tile_columns + pair.row_in_tile;
    pair.constants = shared_constants(parameters) + (item.pass * g.own * kUnitBlock + pair.unit_in_own) * kConstants;
    pair.slot = partial(own, n);
    const int64_t block = (static_cast<int64_t>(item.tile) * g.passes + item.pass) * g.own + own;
    pair.c = cells + ((block * kTileBlocks + n) * kWarpSize + lane) * 2;
    pair.lengths = lengths + item.tile * plan.tile_columns + pair.row_in_tile;
    return pair;
  }

  // -1 where there is no such cell.
  LSTMVID_DEVICE int32_t length(const CellPair& pair, int b) const {
    return pair.unit < parameters.p.hidden ? pair.lengths[b] : -1;
  }

  // c_t into its place, h_t into the exchange, the activated gates over the sums.
  LSTMVID_DEVICE void compute_cells(const FwdItem& item, int own, int n) {
    const auto& [p, plan, g] = parameters;
    const CellPair pair = cell_pair(item, own, n);
    float4 z_if = pair.slot[0], z_go = pair.slot[kWarpSize];
    const int sources = plan.cluster * g.k_warps;
#pragma unroll 2
    for (int source = 1; source < sources; ++source) {
      const float4 x = pair.slot[source * 64], y = pair.slot[source * 64 + kWarpSize];
      z_if = make_float4(z_if.x + x.x, z_if.y + x.y, z_if.z + x.z, z_if.w + x.w);
      z_go = make_float4(z_go.x + y.x, z_go.y + y.y, z_go.z + y.z, z_go.w + y.w);
    }
    const float* k = pair.constants;
    Gates<float> z[2] = {{z_if.x, z_if.z, z_go.x, z_go.z}, {z_if.y, z_if.w, z_go.y, z_go.w}};
    const int64_t time = time_of(parameters, place, item.step);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int32_t steps = length(pair, b);
      if (steps < 0) continue;
      const int row = pair.row_in_tile + b;
      Gates<float> add{k[0], k[1], k[2], k[3]};
      if (p.projection.data != nullptr) {
        const auto* x = reinterpret_cast<const Operand*>(shared.projections.here() + row * g.projection_row_bytes) +
                        pair.unit_in_own;
        const int gate = g.own * kUnitBlock;
        add = {to_float(x[0]), to_float(x[gate]), to_float(x[2 * gate]), to_float(x[3 * gate])};
      }
      z[b] = {z[b].i + add.i, z[b].f + add.f, z[b].g + add.g, z[b].o + add.o};
      const Cell<float> cell = cell_forward<DeviceMath>(z[b], Peephole<float>{k[4], k[5], k[6]}, pair.c[b]);
      z[b] = cell.gates;
      const int64_t offset = as_bits(k[7]) + static_cast<int64_t>(row) * g.stage_row_bytes;
      auto* h = reinterpret_cast<Operand*>(exchange_tile(parameters, place, item.step + 1, item.tile) + offset);
      if (time < steps) {
        pair.c[b] = cell.c;
        store_exchanged(h, as_operand<Config::kPrecision>(from_float<Operand>(cell.h)));
      } else {
        const auto* before = exchange_tile(parameters, place, item.step, item.tile) + offset;
        store_exchanged(h, load_exchanged(reinterpret_cast<const Operand*>(before)));
      }
    }
    pair.slot[0] = make_float4(z[0].i, z[1].i, z[0].f, z[1].f);
    pair.slot[kWarpSize] = make_float4(z[0].g, z[1].g, z[0].o, z[1].o);
  }

  // What the caller gets of the step. Nobody on the device waits for it, so it comes after the flag.
  LSTMVID_DEVICE void store_cells(const FwdItem& item, int own, int n) {
    const auto& [p, plan, g] = parameters;
    const CellPair pair = cell_pair(item, own, n);
    const float4 gates_if = pair.slot[0], gates_go = pair.slot[kWarpSize];
    const Gates<float> gates[2] = {{gates_if.x, gates_if.z, gates_go.x, gates_go.z},
                                   {gates_if.y, gates_if.w, gates_go.y, gates_go.w}};
    const int64_t time = time_of(parameters, place, item.step);
    const bool is_reverse = (p.reverse >> place.group & 1) != 0;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int32_t steps = length(pair, b);
      if (steps < 0) continue;
      const float c = pair.c[b];
      const bool is_running = time < steps;
      const Operand h = from_float<Operand>(is_running ? gates[b].o * DeviceMath::tanh(c) : 0.0f);
      const int64_t row = pair.row + b, at_row = (time * p.batch + row) * p.hidden + pair.unit;
      static_cast<Operand*>(p.output.data)[place.group * p.output.stride + at_row] = h;
      if (is_running && time == (is_reverse ? 0 : steps - 1)) {
        static_cast<Operand*>(p.h_n.data)[place.group * p.h_n.stride + row * p.hidden + pair.unit] = h;
      }
      if (p.cells.data != nullptr) p.cells.data[place.group * p.cells.stride + at_row] = c;
      if (p.gates.data != nullptr) {
        auto* to = static_cast<Operand*>(p.gates.data) + place.group * p.gates.stride +
                   (time * p.batch + row) * 4 * p.hidden + pair.unit;
        to[0] = from_float<Operand>(gates[b].i);
        to[p.hidden] = from_float<Operand>(gates[b].f);
        to[2 * p.hidden] = from_float<Operand>(gates[b].g);
        to[3 * p.hidden] = from_float<Operand>(gates[b].o);
      }
    }
  }

  // Calls visit(own unit block, tile block) for this warp's share of an item's cells.
  template <class Visit>
  LSTMVID_DEVICE void for_cells(const FwdItem& item, const Visit& visit) const {
    const int blocks = (place.tile_rows(parameters, item.tile) + 7) / 8,
              count = place.existing(parameters, item.pass) * blocks;
#pragma unroll 1
    for (int i = warp_idx(); i < count; i += kConsumerWarps) visit(i / blocks, i % blocks);
  }

  LSTMVID_DEVICE void finalise(const FwdItem& item) {
    const auto& [p, plan, g] = parameters;
    if (thread_idx() == 0) {
      const int sums = place.owned(parameters, place.rank) * kTileBlocks * plan.cluster * g.k_warps;
      expect_remote_stores(shared.partials_full(), static_cast<uint32_t>(sums * 1024));
    }
    if (plan.cluster > 1) {
      wait_in_cluster(shared.partials_full(), parity, p.max_polls);
    } else {
      wait(shared.partials_full(), parity, p.max_polls);
    }
    if (p.projection.data != nullptr) shared.projections.wait_full(p.max_polls);
    for_cells(item, [&](int own, int n) { compute_cells(item, own, n); });
    if (p.projection.data != nullptr) shared.projections.release();
    sync_warps(1, kConsumerWarps * kWarpSize);
    if (item.is_last_pass() && thread_idx() == 0) {
      publish(tile_flags(parameters, place, item.tile) + place.cluster * g.owning_ranks + place.rank,
              static_cast<uint32_t>(item.step + 1));
    }
    for_cells(item, [&](int own, int n) { store_cells(item, own, n); });
    sync_lanes();
    if (lane_idx() == 0) {
      for (int rank = 0; rank < plan.cluster; ++rank) arrive_remote(shared.partials_empty(place.rank), rank);
    }
  }

  // c of all this warp's cells, from or to a [B, H] tensor.
  template <class Visit>
  LSTMVID_DEVICE void for_all_cells(const Visit& visit) const {
    FwdItem item(parameters, place);
    for (; !item.done() && item.step == parameters.p.first_step; item.advance()) {
      for_cells(item, [&](int own, int n) {
        const CellPair pair = cell_pair(item, own, n);
        for (int b = 0; b < 2; ++b) {
          if (length(pair, b) >= 0) visit(pair.c[b], (pair.row + b) * parameters.p.hidden + pair.unit);
        }
      });
    }
  }

  LSTMVID_DEVICE void run() {
    const LstmSequenceFwdCuda& p = parameters.p;
    load_registers();
    const float* before =
        p.first_step == 0 ? p.c_0.data + place.group * p.c_0.stride : p.c_n.data + place.group * p.c_n.stride;
    for_all_cells([&](float& c, int64_t at) { c = before[at]; });
    const bool finalises = place.owned(parameters, place.rank) > 0;
    for (FwdItem item(parameters, place); !item.done(); item.advance()) {
      if (multiplies) {
        multiply_item(item);
        send_partials();
      }
      if (finalises) finalise(item);
      parity ^= 1;
    }
    float* after = p.c_n.data + place.group * p.c_n.stride;
    for_all_cells([&](float& c, int64_t at) { after[at] = c; });
  }
};

template <class Config>
__global__ void __launch_bounds__(kFwdThreads, 1)
    lstm_sequence_fwd_kernel(const __grid_constant__ FwdParameters parameters) {
  if constexpr (Config::kIsServed) {
    const FwdPlace place(parameters);
    const FwdShared shared(parameters);
    if (thread_idx() == 0) init_barriers(parameters, place, shared);
    load_constants<Element<Config::kPrecision>>(parameters, place);
    load_lengths(parameters, place);
    load_resident_weights(parameters, place);
    sync_cluster();
    // 8 warps of 224 and 4 of 64: the 64 K registers that a block of 12 warps has, of which each warp gets 168 at first.
    if (warp_idx() < kConsumerWarps) {
      raise_registers<224>();
      FwdWorker<Config>(parameters, place, shared).run();
    } else {
      lower_registers<64>();
      feed<Element<Config::kPrecision>>(parameters, place, shared);
    }
    sync_lanes();
    sync_cluster();  // nobody leaves while another block may still reach its shared memory
  } else {
    trap();
  }
}

using FwdKernel = void (*)(FwdParameters);

// The kernel of the plan's tile: of all widths up to `tile_blocks`. Null if there is none.
template <Precision precision, int tile_blocks>
FwdKernel fwd_kernel(const FwdParameters& parameters) {
  if constexpr (tile_blocks > 0) {
    if (parameters.g.tile_blocks < tile_blocks) return fwd_kernel<precision, tile_blocks - 1>(parameters);
    if (parameters.g.tile_blocks == tile_blocks) {
      if (parameters.plan.register_rounds == 0) return &lstm_sequence_fwd_kernel<FwdConfig<precision, tile_blocks, 0>>;
      if constexpr (sizeof(Element<precision>) == 2) {
        return &lstm_sequence_fwd_kernel<FwdConfig<precision, tile_blocks, kRegisterRounds>>;
      }
    }
  }
  return nullptr;
}

template <Precision precision>
void launch_fwd(const FwdParameters& parameters, void* stream) {
  const auto& [p, plan, g] = parameters;
  constexpr int kTileBlocks = sizeof(Element<precision>) == 2 ? kNarrowTileBlocks : kWideTileBlocks;
  const FwdKernel kernel = fwd_kernel<precision, kTileBlocks>(parameters);
  if (kernel == nullptr) {
    throw std::invalid_argument("lstm_sequence_fwd_cuda: no kernel for " + std::to_string(plan.tile_columns) +
                                " columns a tile with " + std::to_string(plan.register_rounds) +
                                " rounds of weights in registers");
  }
  const int64_t grid = static_cast<int64_t>(g.teams) * plan.clusters * plan.cluster;
  const Launch launch{grid, kFwdThreads, plan.cluster, g.shared_bytes, true, stream};
  if (p.first_step == 0) {
    check_launch(kernel, launch);  // before the preparations write anything
    const auto prepare = [&](int64_t items) {
      const int64_t blocks = ceil_div(items, kPrepareThreads);
      return Launch{blocks < kPrepareBlocks ? blocks : kPrepareBlocks, kPrepareThreads, 1, 0, false, stream};
    };
    launch_kernel(&prepare_state_kernel<precision>, prepare(2 * g.exchange_slot_bytes / g.element_bytes), parameters);
    launch_kernel(&pack_weights_kernel<precision>, prepare(p.groups * g.packed_group_bytes / 16), parameters);
  }
  launch_kernel(kernel, launch, parameters);
}

template <Precision precision>
int64_t fwd_active_clusters(int cluster, int64_t shared_bytes) {
  const Launch launch{cluster, kFwdThreads, cluster, shared_bytes, true, nullptr};
  return active_clusters(&lstm_sequence_fwd_kernel<FwdConfig<precision, 1, 0>>, launch);
}

}  // namespace lstmvid
