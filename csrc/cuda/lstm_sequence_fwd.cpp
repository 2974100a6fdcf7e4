// The forward recurrence on NVIDIA GPUs: checks a plan, lays memory out, and calls the kernels of the operands' type.
#include <stdexcept>
#include <string>

#include "cuda/lstm_sequence_fwd_geometry.h"
#include "cuda/lstm_sequence_fwd_launch.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {
namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("lstm_sequence_fwd_cuda: " + what);
}

void check(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan) {
  require(p.steps >= 1 && p.steps < INT32_MAX, "steps must be from 1 to 2^31 - 2, got " + std::to_string(p.steps));
  require(p.batch >= 1 && p.batch < INT32_MAX / 2, "batch must be from 1 to 2^30, got " + std::to_string(p.batch));
  require(p.hidden >= 1 && p.hidden <= (1 << 20), "hidden must be from 1 to 2^20, got " + std::to_string(p.hidden));
  require(p.groups >= 1 && p.groups <= kMaxGroups, "groups must be from 1 to " + std::to_string(kMaxGroups));
  require(0 <= p.first_step && p.first_step < p.end_step && p.end_step <= p.steps, "no such steps to run");
  require(p.dtype != DType::kFloat64, "float64 isn't computed here");
  require(plan.cluster == 1 || plan.cluster == 2 || plan.cluster == 4 || plan.cluster == 8, "cluster: 1, 2, 4 or 8");
  require(plan.clusters >= 1 && plan.replicas >= 1, "clusters and replicas must be at least 1");
  require(plan.unit_blocks >= 1 && plan.unit_blocks <= kConsumerWarps, "unit_blocks must be from 1 to 8");
  require(plan.tile_columns >= 8 && plan.tile_columns % 8 == 0, "tile_columns must be a multiple of 8");
  require(plan.hidden_stage_rounds >= 1 && plan.hidden_stages >= 2, "the ring of h needs two stages of a round");
}

}  // namespace

FwdGeometry fwd_geometry(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan) {
  check(p, plan);
  FwdGeometry g{};
  g.element_bytes = p.dtype == DType::kFloat32 ? 4 : 2;
  g.teams = p.groups * plan.replicas;

  g.total_unit_blocks = static_cast<int>(ceil_div(p.hidden, kUnitBlock));
  g.cluster_unit_blocks = static_cast<int>(ceil_div(g.total_unit_blocks, plan.clusters));
  g.passes = static_cast<int>(ceil_div(g.cluster_unit_blocks, plan.unit_blocks));
  g.own = static_cast<int>(ceil_div(plan.unit_blocks, plan.cluster));
  g.owning_ranks = static_cast<int>(ceil_div(plan.unit_blocks, g.own));

  const int pair_units = kPairBytes / g.element_bytes;
  g.k_warps = kConsumerWarps / plan.unit_blocks;
  g.slice_pairs = static_cast<int>(ceil_div(p.hidden, static_cast<int64_t>(pair_units) * plan.cluster));
  g.slice_units = static_cast<int64_t>(g.slice_pairs) * pair_units;
  g.rounds = static_cast<int>(ceil_div(g.slice_pairs, g.k_warps));
  g.stages = static_cast<int>(ceil_div(g.rounds, plan.hidden_stage_rounds));
  g.stage_row_bytes = plan.hidden_stage_rounds * g.k_warps * kPairBytes + 16;
  g.stage_bytes = static_cast<int64_t>(plan.tile_columns) * g.stage_row_bytes;
  g.round_bytes = static_cast<int64_t>(g.k_warps) * plan.unit_blocks * kFragmentBytes;
  g.streamed_rounds = g.rounds - plan.register_rounds - plan.resident_rounds;
  require(plan.register_rounds == 0 || (plan.register_rounds == kRegisterRounds && g.passes == 1),
          "register_rounds must be 0, or 6 with a single pass");
  require(plan.resident_rounds >= 0 && g.streamed_rounds >= 0, "more rounds are held than there are");
  require(g.streamed_rounds == 0 || plan.weight_stages >= 2, "streamed weights need two stages");

  g.replica_rows = static_cast<int>(ceil_div(p.batch, plan.replicas));
  g.tiles = static_cast<int>(ceil_div(g.replica_rows, plan.tile_columns));
  g.tile_blocks = plan.tile_columns / 8;
  g.projection_row_bytes = 4 * kUnitBlock * g.own * g.element_bytes + 16;

  g.weight_slots = g.streamed_rounds > 0 ? plan.weight_stages : 0;
  const int barriers = 2 * plan.hidden_stages + 2 * g.weight_slots + 2 * kProjectionSlots + 1 + plan.cluster;
  const int64_t sources = static_cast<int64_t>(plan.cluster) * g.k_warps;
  g.cells_per_block = static_cast<int64_t>(g.tiles) * g.passes * g.own * g.tile_blocks * 64;
  int64_t at = align_up(8 * barriers);
  const auto region = [&at](int64_t& offset, int64_t bytes) {
    offset = at;
    at += align_up(bytes);
  };
  region(g.hidden_ring, plan.hidden_stages * g.stage_bytes);
  region(g.weight_ring, g.weight_slots * g.round_bytes);
  region(g.resident, g.passes * plan.resident_rounds * g.round_bytes);
  region(g.partials, g.own * g.tile_blocks * sources * 1024);
  region(g.projections, static_cast<int64_t>(kProjectionSlots) * plan.tile_columns * g.projection_row_bytes);
  region(g.constants, static_cast<int64_t>(g.passes) * g.own * kUnitBlock * kConstants * 4);
  region(g.cells, plan.cells_in_shared ? g.cells_per_block * 4 : 0);
  region(g.lengths, plan.cells_in_shared ? static_cast<int64_t>(g.tiles) * plan.tile_columns * 4 : 0);
  g.shared_bytes = at;

  const int64_t blocks = static_cast<int64_t>(g.teams) * plan.clusters * plan.cluster;
  g.flags_per_tile = static_cast<int64_t>(plan.clusters) * g.owning_ranks;
  g.exchange_tile_bytes = plan.cluster * g.stages * g.stage_bytes;
  g.exchange_slot_bytes = align_up(g.teams * g.tiles * g.exchange_tile_bytes);
  g.packed_group_bytes = static_cast<int64_t>(plan.clusters) * g.passes * plan.cluster * g.rounds * g.round_bytes;
  at = 0;
  region(g.flags, g.teams * g.tiles * g.flags_per_tile * 4);
  region(g.row_lengths, static_cast<int64_t>(plan.replicas) * g.tiles * plan.tile_columns * 4);
  region(g.exchange, 2 * g.exchange_slot_bytes);
  region(g.packed, p.groups * g.packed_group_bytes);
  region(g.cells_in_workspace, plan.cells_in_shared ? 0 : blocks * g.cells_per_block * 4);
  g.workspace_bytes = at;
  return g;
}

int64_t lstm_sequence_fwd_cuda_shared_bytes(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan) {
  return fwd_geometry(p, plan).shared_bytes;
}

int64_t lstm_sequence_fwd_cuda_workspace(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan) {
  return fwd_geometry(p, plan).workspace_bytes;
}

int64_t lstm_sequence_fwd_cuda_active_clusters(int cluster, int64_t shared_bytes) {
  return fwd_active_clusters<Precision::kBFloat16>(cluster, shared_bytes);  // all variants take as many registers
}

void lstm_sequence_fwd_cuda(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan, void* stream) {
  const FwdParameters parameters{p, plan, fwd_geometry(p, plan)};
  switch (p.dtype) {
    case DType::kBFloat16: return launch_fwd<Precision::kBFloat16>(parameters, stream);
    case DType::kFloat16: return launch_fwd<Precision::kFloat16>(parameters, stream);
    default:
      return p.allow_tf32 ? launch_fwd<Precision::kTf32>(parameters, stream)
                          : launch_fwd<Precision::kFloat32>(parameters, stream);
  }
}

}  // namespace lstmvid
