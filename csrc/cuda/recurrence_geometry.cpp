#include "cuda/recurrence_geometry.h"

#include <stdexcept>
#include <string>

namespace lstmvid {
namespace {

class Requirements {
 public:
  explicit Requirements(const char* what) : what_(what) {}
  void operator()(bool holds, const std::string& wanted) const {
    if (!holds) throw std::invalid_argument(std::string(what_) + ": " + wanted);
  }

 private:
  const char* what_;
};

void check(const RecurrenceShape& shape, const LstmSequencePlan& plan, const Requirements& require) {
  require(shape.batch >= 1 && shape.batch < INT32_MAX / 2,
          "batch must be from 1 to 2^30, got " + std::to_string(shape.batch));
  require(shape.units >= 1 && shape.units <= (1 << 20),
          "hidden must be from 1 to 2^20, got " + std::to_string(shape.units));
  require(shape.groups >= 1 && shape.groups <= kMaxGroups, "groups must be from 1 to " + std::to_string(kMaxGroups));
  require(plan.cluster == 1 || plan.cluster == 2 || plan.cluster == 4 || plan.cluster == 8, "cluster: 1, 2, 4 or 8");
  require(plan.clusters >= 1 && plan.replicas >= 1, "clusters and replicas must be at least 1");
  require(plan.unit_blocks >= 1 && plan.unit_blocks <= kConsumerWarps, "unit_blocks must be from 1 to 8");
  require(plan.tile_columns >= 8 && plan.tile_columns % 8 == 0, "tile_columns must be a multiple of 8");
  require(plan.hidden_stage_rounds >= 1 && plan.hidden_stages >= 2, "the ring of operands needs two stages of a round");
  require(!plan.warp_groups || shape.element_bytes == 2, "warp_groups multiply operands of 2 bytes");
  require(!plan.warp_groups || plan.unit_blocks == 2 || plan.unit_blocks == 4, "unit_blocks of warp_groups: 2 or 4");
}

}  // namespace

RecurrenceGeometry recurrence_geometry(const RecurrenceShape& shape, const LstmSequencePlan& plan, const char* what) {
  const Requirements require(what);
  check(shape, plan, require);
  RecurrenceGeometry g{};
  g.element_bytes = shape.element_bytes;
  g.unit_block = shape.unit_block;
  g.k_of_unit = shape.k_of_unit;
  g.units = shape.units;
  g.teams = shape.groups * plan.replicas;

  g.total_unit_blocks = static_cast<int>(ceil_div(shape.units, shape.unit_block));
  g.cluster_unit_blocks = static_cast<int>(ceil_div(g.total_unit_blocks, plan.clusters));
  g.passes = static_cast<int>(ceil_div(g.cluster_unit_blocks, plan.unit_blocks));
  g.own = static_cast<int>(ceil_div(plan.unit_blocks, plan.cluster));
  g.owning_ranks = static_cast<int>(ceil_div(plan.unit_blocks, g.own));

  const int pair_elements = kPairBytes / g.element_bytes;
  g.k_warps = (plan.warp_groups ? kConsumerWarps / 2 : kConsumerWarps) / plan.unit_blocks;
  g.sending_warps = plan.warp_groups ? 2 * g.k_warps : g.k_warps;
  g.slice_pairs =
      static_cast<int>(ceil_div(shape.units * shape.k_of_unit, static_cast<int64_t>(pair_elements) * plan.cluster));
  g.slice = static_cast<int64_t>(g.slice_pairs) * pair_elements;
  g.rounds = static_cast<int>(ceil_div(g.slice_pairs, g.k_warps));
  g.stages = static_cast<int>(ceil_div(g.rounds, plan.hidden_stage_rounds));
  g.stage_k_bytes = plan.hidden_stage_rounds * g.k_warps * kPairBytes;
  g.stage_row_bytes = plan.warp_groups ? 16 : g.stage_k_bytes + 16;
  g.stage_chunk_bytes = plan.warp_groups ? plan.tile_columns * 16 : 16;
  g.stage_bytes = static_cast<int64_t>(plan.tile_columns) * (g.stage_k_bytes + (plan.warp_groups ? 0 : 16));
  g.round_bytes = static_cast<int64_t>(g.k_warps) * plan.unit_blocks * kFragmentBytes;
  g.streamed_rounds = g.rounds - plan.register_rounds - plan.resident_rounds;
  const int in_registers = plan.warp_groups ? kGroupRegisterRounds : kRegisterRounds;
  require(plan.register_rounds == 0 || (plan.register_rounds == in_registers && g.passes == 1),
          "register_rounds must be 0, or " + std::to_string(in_registers) + " with a single pass");
  require(plan.resident_rounds >= 0 && g.streamed_rounds >= 0, "more rounds are held than there are");
  require(g.streamed_rounds == 0 || plan.weight_stages >= 2, "streamed weights need two stages");

  g.replica_rows = static_cast<int>(ceil_div(shape.batch, plan.replicas));
  g.tiles = static_cast<int>(ceil_div(g.replica_rows, plan.tile_columns));
  g.tile_blocks = plan.tile_columns / 8;
  g.input_row_bytes = shape.input_bytes_of_unit * shape.unit_block * g.own + 16;
  g.input_slots = shape.input_slots;
  g.weight_slots = g.streamed_rounds > 0 ? plan.weight_stages : 0;

  const int barriers = 2 * plan.hidden_stages + 2 * g.weight_slots + 2 * g.input_slots + 1 + plan.cluster;
  const int64_t sources = static_cast<int64_t>(plan.cluster) * g.k_warps;
  const int64_t own_unit_blocks = static_cast<int64_t>(g.passes) * g.own;
  g.state_words_per_block = g.tiles * own_unit_blocks * g.tile_blocks * 32 * shape.state_words_of_lane;
  int64_t at = align_up(8 * barriers);
  const auto region = [&at](int64_t& offset, int64_t bytes) {
    offset = at;
    at += align_up(bytes);
  };
  region(g.operand_ring, plan.hidden_stages * g.stage_bytes);
  region(g.weight_ring, g.weight_slots * g.round_bytes);
  region(g.resident, g.passes * plan.resident_rounds * g.round_bytes);
  region(g.partials, g.own * g.tile_blocks * sources * 1024);
  region(g.inputs, static_cast<int64_t>(g.input_slots) * plan.tile_columns * g.input_row_bytes);
  region(g.constants, own_unit_blocks * shape.unit_block * kConstants * 4);
  region(g.state, plan.cells_in_shared ? g.state_words_per_block * 4 : 0);
  region(g.lengths, plan.cells_in_shared ? static_cast<int64_t>(g.tiles) * plan.tile_columns * 4 : 0);
  g.shared_bytes = at;

  const int64_t blocks = static_cast<int64_t>(g.teams) * plan.clusters * plan.cluster;
  g.flags_per_tile = static_cast<int64_t>(plan.clusters) * g.owning_ranks;
  g.exchange_tile_bytes = plan.cluster * g.stages * g.stage_bytes;
  g.exchange_slot_bytes = align_up(g.teams * g.tiles * g.exchange_tile_bytes);
  g.packed_group_bytes = static_cast<int64_t>(plan.clusters) * g.passes * plan.cluster * g.rounds * g.round_bytes;
  require(g.exchange_tile_bytes < INT32_MAX, "a tile's operands take more than 2^31 bytes");
  at = 0;
  region(g.flags, g.teams * g.tiles * g.flags_per_tile * 4);
  region(g.row_lengths, static_cast<int64_t>(plan.replicas) * g.tiles * plan.tile_columns * 4);
  region(g.exchange, 2 * g.exchange_slot_bytes);
  region(g.packed, shape.groups * g.packed_group_bytes);
  region(g.state_in_workspace, plan.cells_in_shared ? 0 : blocks * g.state_words_per_block * 4);
  g.workspace_bytes = at;
  return g;
}

}  // namespace lstmvid
