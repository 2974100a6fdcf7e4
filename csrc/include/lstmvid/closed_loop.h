// A stack of LSTM layers that reads a frame from its top layer at every step and sees it at the next one.
//
// T steps, B sequences, H hidden units, L layers, D values a frame; "operand" and "state" as in lstm_sequence.h:
//
//   z_t = W_out h_t + b_out (h_t of the top layer),  x_{t+1} = own_t ? link(z_t) : truth_t,  x_0 = first
#pragma once

#include <cstdint>

#include "lstmvid/lstm_sequence.h"

namespace lstmvid {

// From what the head says to the frame that the next step sees.
enum class Link : int { kIdentity = 0, kSigmoid = 1, kRectifier = 2 };

struct ClosedLoopFwd {
  int64_t frame, num_layers;
  Link link;
  const LstmSequenceFwd* layers;  // [L], all of one size; without projection, lengths and workspace
  const void* const* weight_ih;   // [L] of [4H, D], then [4H, H]   operand
  const void* head_weight;        // [D, H]       operand
  const void* head_bias;          // [D]          operand
  const void* first;              // [B, D]       operand, or null: nothing
  const void* truth;              // [T-1, B, D]  operand, or null: every frame is its own
  const uint8_t* own;             // [T-1, B]     0 or 1; null where `truth` is
  void* z;                        // [T, B, D]    operand
  void* workspace;                // closed_loop_fwd_workspace() bytes, aligned to 64
};

struct ClosedLoopBwd {
  int64_t frame, num_layers;
  Link link;
  const LstmSequenceBwd* layers;  // [L]; without grad_output, lengths and workspace
  const void* const* weight_ih;   // [L]          operand
  const void* head_weight;        // [D, H]       operand
  const uint8_t* own;             // [T-1, B]     or null: all
  const void* z;                  // [T, B, D]    operand
  const void* grad_z;             // [T, B, D]    operand, or null
  void* grad_frames;              // [T, B, D]    operand: of z through all that it leads to
  void* workspace;                // closed_loop_bwd_workspace() bytes, aligned to 64
};

int64_t closed_loop_fwd_workspace(const ClosedLoopFwd& p);
int64_t closed_loop_bwd_workspace(const ClosedLoopBwd& p);
void closed_loop_fwd_cpu(const ClosedLoopFwd& p);
void closed_loop_bwd_cpu(const ClosedLoopBwd& p);

}  // namespace lstmvid
