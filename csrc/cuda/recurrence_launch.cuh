// A recurrent kernel from its parts, and its launch.
#pragma once

#include <string>
#include <type_traits>

#include "cuda/primitives/cluster.h"
#include "cuda/primitives/launch.h"
#include "cuda/recurrence_block.cuh"
#include "cuda/recurrence_feed.cuh"
#include "cuda/recurrence_multiply.cuh"
#include "cuda/recurrence_multiply_groups.cuh"
#include "cuda/recurrence_prepare.cuh"

namespace lstmvid {

// The body of a recurrent kernel. `Cells` feeds the inputs, and computes what becomes of the sums; `bias`: of each group, or null.
template <class Config, class Cells, class Parameters>
LSTMVID_DEVICE void run_recurrence(const Parameters& parameters, const void* const* bias) {
  if constexpr (Config::kIsServed) {
    using Operand = Element<Config::kPrecision>;
    const Recurrence& r = parameters.r;
    const Place place(r);
    const BlockMemory memory(r);
    if (thread_idx() == 0) init_barriers(r, place, memory);
    load_constants<Operand>(r, place, bias == nullptr ? nullptr : static_cast<const Operand*>(bias[place.group]),
                            static_cast<const Operand*>(parameters.p.peephole[place.group]));
    load_lengths(r, place);
    load_resident_weights(r, place);
    sync_cluster();
    const bool finalises = place.owned(r, place.rank) > 0;
    // Of the 64 K registers each thread of the block's 12 warps gets 168 at first.
    constexpr int kWorker = Cells::kWorkerRegisters, kFeeder = 512 - 2 * kWorker;
    if (warp_idx() < kConsumerWarps) {
      raise_registers<kWorker>();
      std::conditional_t<Config::kWarpGroups, GroupMultiplier<Config>, WarpMultiplier<Config>> sums(r, place, memory);
      Cells cells{parameters, sums};
      sums.load_registers();
      cells.begin();
      for (Item item(r, place); !item.done(); item.advance()) {
        if (sums.multiplies) {
          sums.multiply_item(item);
          sums.send_partials();
        }
        if (finalises) cells.finalise(item);
        sums.parity ^= 1;
      }
      cells.end();
    } else {
      lower_registers<kFeeder>();
      switch (warp_idx() - kConsumerWarps) {
        case 0: feed_operands(r, place, memory.operands); break;
        case 1:
          if (r.g.streamed_rounds > 0) feed_weights(r, place, memory.weights);
          break;
        case 2:
          if (finalises) Cells::feed(parameters, place, memory.inputs);
      }
    }
    sync_lanes();
    sync_cluster();  // nobody leaves while another block may still reach its shared memory
  } else {
    trap();
  }
}

// The kernel of the plan's tile: of all widths up to `tile_blocks`. Null if there is none.
template <Precision precision, class Kernels, int tile_blocks>
auto recurrence_kernel(const Recurrence& r) -> void (*)(typename Kernels::Parameters) {
  if constexpr (tile_blocks > 0) {
    if (r.g.tile_blocks < tile_blocks) return recurrence_kernel<precision, Kernels, tile_blocks - 1>(r);
    if (r.g.tile_blocks == tile_blocks) {
      constexpr int kAhead = Kernels::kMostAhead;
      const bool in_registers = r.plan.register_rounds > 0;
      if constexpr (sizeof(Element<precision>) == 2) {
        if (r.plan.warp_groups) {
          return in_registers ? Kernels::template kKernel<
                                    RecurrenceConfig<precision, tile_blocks, kGroupRegisterRounds, 0, true>>
                              : Kernels::template kKernel<RecurrenceConfig<precision, tile_blocks, 0, 0, true>>;
        }
        if (in_registers) {
          return Kernels::template kKernel<RecurrenceConfig<precision, tile_blocks, kRegisterRounds, kAhead, false>>;
        }
      }
      if (!in_registers) {
        return Kernels::template kKernel<RecurrenceConfig<precision, tile_blocks, 0, kAhead, false>>;
      }
    }
  }
  return nullptr;
}

inline Launch prepare_launch(int64_t items, void* stream) {
  const int64_t blocks = ceil_div(items, kPrepareThreads);
  return {blocks < kPrepareBlocks ? blocks : kPrepareBlocks, kPrepareThreads, 1, 0, false, stream};
}

// Prepares, if these are the first steps, and launches.
template <Precision precision, class Kernels>
void launch_recurrence(const typename Kernels::Parameters& parameters, void* stream) {
  const Recurrence& r = parameters.r;
  constexpr int kTileBlocks = sizeof(Element<precision>) == 2 ? kNarrowTileBlocks : kWideTileBlocks;
  const auto kernel = recurrence_kernel<precision, Kernels, kTileBlocks>(r);
  if (kernel == nullptr) {
    throw std::invalid_argument("lstm_sequence on CUDA: no kernel for " + std::to_string(r.plan.tile_columns) +
                                " columns a tile with " + std::to_string(r.plan.register_rounds) +
                                " rounds of weights in registers");
  }
  const int64_t grid = static_cast<int64_t>(r.g.teams) * r.plan.clusters * r.plan.cluster;
  const Launch launch{grid, kRecurrenceThreads, r.plan.cluster, r.g.shared_bytes, true, stream};
  check_launch(kernel, launch);  // before the preparations write anything
  if (r.first_step == 0) {
    using Parameters = typename Kernels::Parameters;
    launch_kernel(&prepare_kernel<precision, Parameters>,
                  prepare_launch(2 * r.g.exchange_slot_bytes / r.g.element_bytes, stream), parameters);
    launch_kernel(&pack_weights_kernel<precision, Parameters>,
                  prepare_launch(parameters.p.groups * r.g.packed_group_bytes / 16, stream), parameters);
  }
  launch_kernel(kernel, launch, parameters);
}

}  // namespace lstmvid
