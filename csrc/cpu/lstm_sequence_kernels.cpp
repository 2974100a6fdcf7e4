// The recurrence of one LSTM layer on a CPU, forward and backward, compiled once for each instruction set.
//
// Forward:  z_t = projection_t + W_hh h_{t-1}, then cell_math.h.        FLOP a step: 8 B H^2.
// Backward: dh_{t-1} = W_hh^T dz_t, with dz_t from cell_math.h.         FLOP a step: 8 B H^2.
// Threads own blocks of units for the whole sequence: their packed weights stay in their own caches as far as these
// reach, the gate arithmetic follows the product while it is in the first-level cache, and one barrier a step
// publishes h_t (or dz_t) through a workspace of two slots. Floor: 4 H^2 elements of weights a step from where they
// lie (nothing if in cache), and the FLOP above; small batches are bound by the first, large ones by the second.
//
// Dense products over all steps (W_ih x, weight gradients) come before and after: matrix_product_kernels.cpp.
#include "instruction_set.h"
#include "lstm_backward.h"
#include "lstm_forward.h"

namespace lstmvid {
namespace LSTMVID_ISA {
namespace {

template <template <class> class Kernel, class Parameters>
void run(const Parameters& p) {
  with_stored(p.dtype, [&](auto stored) {
    using Type = Kernel<decltype(stored)>;
    const Type kernel{p};
    ThreadTeam::run(team_size(p.threads, 8 * p.batch * p.hidden * p.hidden, kernel.blocks), &work<Type>, &kernel);
  });
}

template <template <class> class Kernel, class Parameters>
int64_t workspace(const Parameters& p) {
  int64_t bytes = 0;
  with_stored(p.dtype, [&](auto stored) { bytes = Kernel<decltype(stored)>{p}.bytes(); });
  return bytes;
}

}  // namespace

extern const LstmSequenceKernels kLstmSequence = {&run<Forward, LstmSequenceFwd>, &run<Backward, LstmSequenceBwd>,
                                                  &workspace<Forward, LstmSequenceFwd>,
                                                  &workspace<Backward, LstmSequenceBwd>};

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
