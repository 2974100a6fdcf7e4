// One LSTM layer's recurrence over a whole sequence: what crosses from Python to a kernel.
//
// T steps, B sequences, H hidden units. "operand" is the tensors' dtype; "state" is float for bfloat16 operands, else
// the operand dtype. Every tensor is contiguous. Nothing here owns memory: Python allocates, kernels fill in.
#pragma once

#include <cstdint>

#include "lstmvid/dtype.h"

namespace lstmvid {

struct LstmSequenceFwd {
  int64_t steps, batch, hidden;
  DType dtype;
  bool reverse;  // run time backwards, each sequence from its own last step
  int threads;
  bool packed;             // the workspace is that of a call with the same weight_hh, sizes and dtype
  bool blind;              // the step that runs first sees nothing: the projection has T-1 steps, without that one
  const void* projection;  // [T, B, 4H] operand: W_ih x_t, or null without input
  const void* bias;        // [4H]       operand: added in every step, or null
  const void* weight_hh;   // [4H, H]    operand, or null: the projection holds the (only) step's product already
  const void* peephole;    // [3H]       operand, order i f o, or null
  const void* h_0;         // [B, H]     operand
  const void* c_0;         // [B, H]     state
  const int64_t* lengths;  // [B]        or null: every sequence has T steps
  void* output;            // [T, B, H]  operand; zeros in padding
  void* h_n;               // [B, H]     operand
  void* c_n;               // [B, H]     state
  void* cells;             // [T, B, H]  state, or null
  void* gates;             // [T, B, 4H] operand: activated gates, or null; may be the projection's own memory
  void* workspace;         // lstm_sequence_fwd_workspace() bytes, aligned to 64
};

struct LstmSequenceBwd {
  int64_t steps, batch, hidden;
  DType dtype;
  bool reverse;
  int threads;
  bool packed;
  const void* weight_hh;    // [4H, H]    operand
  const void* peephole;     // [3H]       operand, or null
  const void* c_0;          // [B, H]     state
  const void* cells;        // [T, B, H]  state
  const void* gates;        // [T, B, 4H] operand
  const int64_t* lengths;   // [B]        or null
  const void* grad_output;  // [T, B, H]  operand, or null
  const void* grad_h_n;     // [B, H]     operand, or null
  const void* grad_c_n;     // [B, H]     state, or null
  const void* grad_cells;   // [T, B, H]  state, or null
  void* grad_gates;         // [T, B, 4H] operand: gradients of the pre-activations, zeros in padding
  void* grad_h_0;           // [B, H]     operand
  void* grad_c_0;           // [B, H]     state
  void* grad_peephole;      // [3H]       operand, or null
  void* workspace;          // lstm_sequence_bwd_workspace() bytes, aligned to 64
};

// CPU: which instruction set serves ("amx", "avx512bf16", "avx512", "avx2" or "portable"), chosen once from what the processor has.
const char* cpu_instruction_set();

int64_t lstm_sequence_fwd_workspace(const LstmSequenceFwd& p);
int64_t lstm_sequence_bwd_workspace(const LstmSequenceBwd& p);
void lstm_sequence_fwd_cpu(const LstmSequenceFwd& p);
void lstm_sequence_bwd_cpu(const LstmSequenceBwd& p);

}  // namespace lstmvid
