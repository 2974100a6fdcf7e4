#include "cuda/lstm_sequence_fwd.cuh"

namespace lstmvid {

template void launch_fwd<Precision::kTf32>(const LstmSequenceFwdCuda& p, const Recurrence& r, void* stream);
template void launch_fwd<Precision::kFloat32>(const LstmSequenceFwdCuda& p, const Recurrence& r, void* stream);

}  // namespace lstmvid
