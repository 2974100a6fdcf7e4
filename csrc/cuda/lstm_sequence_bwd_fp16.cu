#include "cuda/lstm_sequence_bwd.cuh"

namespace lstmvid {

template void launch_bwd<Precision::kFloat16>(const LstmSequenceBwdCuda& p, const Recurrence& r, void* stream);

}  // namespace lstmvid
