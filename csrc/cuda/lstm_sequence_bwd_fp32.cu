#include "cuda/lstm_sequence_bwd.cuh"

namespace lstmvid {

template void launch_bwd<Precision::kTf32>(const LstmSequenceBwdCuda& p, const Recurrence& r, void* stream);
template void launch_bwd<Precision::kFloat32>(const LstmSequenceBwdCuda& p, const Recurrence& r, void* stream);

}  // namespace lstmvid
