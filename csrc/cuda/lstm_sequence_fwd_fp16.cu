#include "cuda/lstm_sequence_fwd.cuh"

namespace lstmvid {

template void launch_fwd<Precision::kFloat16>(const LstmSequenceFwdCuda& p, const Recurrence& r, void* stream);

}  // namespace lstmvid
