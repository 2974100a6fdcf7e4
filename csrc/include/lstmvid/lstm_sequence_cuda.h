// One LSTM layer's recurrence on an NVIDIA GPU, for G groups at once: what crosses from Python to the kernels.
//
// T steps, B sequences, H hidden units, G groups (independent recurrences of equal size, side by side on the chip).
// "operand" is the tensors' dtype: bfloat16, float16 or float32. Each group has tensors of its own, contiguous. Nothing here
// owns memory; kernels never allocate and never synchronise.
#pragma once

#include <cstdint>

#include "lstmvid/dtype.h"

namespace lstmvid {

constexpr int kMaxGroups = 8;

// How a launch divides the work; backends/plan.py makes it. K: the hidden units forward, the four gates' gradients of each
// backward. A "pair" is 64 bytes of K: two matrix instructions' worth. A "round" is one pair for each warp along K, a "pass"
// what a cluster multiplies at once of its units, a "unit block" 8 units forward and 32 backward.
struct LstmSequencePlan {
  int cluster;       // blocks that split K between them: 1, 2, 4 or 8; 1 before sm_90
  int clusters;      // that share the hidden units of one replica
  int replicas;      // of the weights, each with batch rows of its own
  int unit_blocks;   // in a pass of a cluster: 1 to 8; as many warps along M, 8 / that along K; of warp groups 2 or 4
  int tile_columns;  // batch rows in a tile: 8 to 48, or for float32 to 32, in eights
  int register_rounds;  // whose weights stay in registers: 0, or 6, of warp groups 16 (2-byte operands, one pass, sm_90)
  int resident_rounds;      // the next ones, whose weights stay in shared memory; the rest is streamed each step
  int hidden_stage_rounds;  // of h, or of the gradients, in one stage of its ring
  int hidden_stages;        // of that ring, at least 2
  int weight_stages;        // of the streamed weights' ring, each one round; at least 2 where any are streamed
  bool cells_in_shared;     // what is carried, and the rows' lengths, in shared memory, else in the workspace
  bool warp_groups;  // four warps multiply two unit blocks together (2-byte operands, sm_90), and count as two along M
};

struct LstmSequenceFwdCuda {
  int64_t steps, batch, hidden;
  int64_t first_step, end_step;  // run [first, end) of the steps; from the second chunk on, the workspace has the state
  int groups;
  DType dtype;
  bool allow_tf32;                     // float32: round operands to tf32
  uint32_t reverse;                    // bit g: group g runs backwards in time, each sequence from its own last step
  uint64_t max_polls;                  // of a wait before the kernel gives up with a trap; 0: without end
  const void* weight_hh[kMaxGroups];   // of each group [4H, H] operand
  const void* bias[kMaxGroups];        // of each group [4H]    operand: added where there is no projection; or null
  const void* peephole[kMaxGroups];    // of each group [3H]    operand, order i f o; all or none, null
  const void* projection[kMaxGroups];  // [T, B, 4H] operand: W_ih x_t + b, or null without input
  const void* h_0[kMaxGroups];         // [B, H]     operand
  const float* c_0[kMaxGroups];        // [B, H]
  const int64_t* lengths;              // [B] or null: every sequence has T steps
  void* output[kMaxGroups];            // [T, B, H]  operand; zeros in padding
  void* h_n[kMaxGroups];               // [B, H]     operand
  float* c_n[kMaxGroups];              // [B, H]
  float* cells[kMaxGroups];            // [T, B, H]  or null
  void* gates[kMaxGroups];  // [T, B, 4H] operand: activated gates, or null; may be the projection's own memory
  void* workspace;          // lstm_sequence_fwd_cuda_workspace() bytes, aligned to 256
};

// Backward through the recurrence. Its steps count from the last one back, and there is one more than the forward pass has,
// which leaves the gradients of the initial states: first_step and end_step run from 0 to steps + 1.
struct LstmSequenceBwdCuda {
  int64_t steps, batch, hidden;
  int64_t first_step, end_step;
  int groups;
  DType dtype;
  bool allow_tf32;
  uint32_t reverse;  // as the forward pass ran
  uint64_t max_polls;
  const void* weight_hh[kMaxGroups];    // of each group [4H, H] operand
  const void* peephole[kMaxGroups];     // of each group [3H]    operand; all or none, null
  const int64_t* lengths;               // [B] or null
  const float* c_0[kMaxGroups];         // [B, H]
  const float* cells[kMaxGroups];       // [T, B, H]
  const void* gates[kMaxGroups];        // [T, B, 4H] operand: activated gates
  const void* grad_output[kMaxGroups];  // [T, B, H]  operand, or null
  const void* grad_h_n[kMaxGroups];     // [B, H]     operand, or null
  const float* grad_c_n[kMaxGroups];    // [B, H]     or null
  const float* grad_cells[kMaxGroups];  // [T, B, H]  or null
  void* grad_gates[kMaxGroups];         // [T, B, 4H] operand: gradients of the pre-activations, zeros in padding
  void* grad_h_0[kMaxGroups];           // [B, H]     operand
  float* grad_c_0[kMaxGroups];          // [B, H]
  void* workspace;                      // lstm_sequence_bwd_cuda_workspace() bytes, aligned to 256
};

// The gates and cell states of the steps [first, end) again, where the forward pass kept neither.
struct LstmGatesCuda {
  int64_t steps, batch, hidden;
  int64_t first_step, end_step;
  int groups;
  DType dtype;
  uint32_t reverse;                  // as the forward pass ran
  const void* peephole[kMaxGroups];  // of each group [3H] operand; all or none, null
  const int64_t* lengths;            // [B] or null
  const float* c_0[kMaxGroups];      // [B, H]     that step `first` starts from
  float* cells[kMaxGroups];          // [T, B, H]
  void* gates[kMaxGroups];           // [T, B, 4H] operand: pre-activations but for the peepholes' part, then the gates
};

// Bytes of shared memory that a block of the plan's launch takes. Throws std::invalid_argument if the plan isn't one.
int64_t lstm_sequence_fwd_cuda_shared_bytes(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan);
int64_t lstm_sequence_fwd_cuda_workspace(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan);
int64_t lstm_sequence_bwd_cuda_shared_bytes(const LstmSequenceBwdCuda& p, const LstmSequencePlan& plan);
int64_t lstm_sequence_bwd_cuda_workspace(const LstmSequenceBwdCuda& p, const LstmSequencePlan& plan);

// How many clusters of so many blocks the current device runs at once, as this process may use it (MPS, MIG).
// Throws std::runtime_error.
int64_t lstm_sequence_fwd_cuda_active_clusters(int cluster, int64_t shared_bytes);

// On the current device, in `stream`. Throws std::invalid_argument or std::runtime_error before anything is launched.
void lstm_sequence_fwd_cuda(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan, void* stream);
void lstm_sequence_bwd_cuda(const LstmSequenceBwdCuda& p, const LstmSequencePlan& plan, void* stream);
void lstm_gates_cuda(const LstmGatesCuda& p, void* stream);

}  // namespace lstmvid
