// The backward recurrence's kernels behind one function a precision, so that each is compiled by itself.
#pragma once

#include "cuda/recurrence_geometry.h"
#include "lstmvid/dtype.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {

template <Precision precision>
void launch_bwd(const LstmSequenceBwdCuda& p, const Recurrence& r, void* stream);

}  // namespace lstmvid
