#include "cuda/lstm_sequence_fwd.cuh"

namespace lstmvid {

template void launch_fwd<Precision::kTf32>(const FwdParameters& parameters, void* stream);
template void launch_fwd<Precision::kFloat32>(const FwdParameters& parameters, void* stream);

}  // namespace lstmvid
