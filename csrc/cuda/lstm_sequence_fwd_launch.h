// The forward recurrence's kernels behind one function a precision, so that each is compiled by itself.
#pragma once

#include "cuda/recurrence_geometry.h"
#include "lstmvid/dtype.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {

template <Precision precision>
void launch_fwd(const LstmSequenceFwdCuda& p, const Recurrence& r, void* stream);

template <Precision precision>
int64_t fwd_active_clusters(int cluster, int64_t shared_bytes);

}  // namespace lstmvid
