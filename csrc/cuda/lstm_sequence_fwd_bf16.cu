#include "cuda/lstm_sequence_fwd.cuh"

namespace lstmvid {

template void launch_fwd<Precision::kBFloat16>(const LstmSequenceFwdCuda& p, const Recurrence& r, void* stream);
template int64_t fwd_active_clusters<Precision::kBFloat16>(int cluster, int64_t shared_bytes);

}  // namespace lstmvid
