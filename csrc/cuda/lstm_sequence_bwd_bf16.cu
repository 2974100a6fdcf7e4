#include "cuda/lstm_sequence_bwd.cuh"

namespace lstmvid {

template void launch_bwd<Precision::kBFloat16>(const LstmSequenceBwdCuda& p, const Recurrence& r, void* stream);

}  // namespace lstmvid
