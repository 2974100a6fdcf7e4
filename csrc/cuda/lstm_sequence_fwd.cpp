// The forward recurrence on NVIDIA GPUs: checks the call, lays memory out, and calls the kernels of the operands' type.
#include <stdexcept>
#include <string>

#include "cuda/lstm_sequence_fwd_launch.h"
#include "cuda/recurrence_geometry.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {
namespace {

constexpr const char* kWhat = "lstm_sequence_fwd_cuda";

Recurrence checked(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan) {
  const int element = p.dtype == DType::kFloat32 ? 4 : 2;
  // Inputs: the four gates' projections. Carried: c of two cells a lane.
  return recurrence(p, p.steps, {p.hidden, p.batch, p.groups, element, 8, 1, 4 * element, 2, 2}, plan, kWhat);
}

}  // namespace

int64_t lstm_sequence_fwd_cuda_shared_bytes(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan) {
  return checked(p, plan).g.shared_bytes;
}

int64_t lstm_sequence_fwd_cuda_workspace(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan) {
  return checked(p, plan).g.workspace_bytes;
}

int64_t lstm_sequence_fwd_cuda_active_clusters(int cluster, int64_t shared_bytes) {
  return fwd_active_clusters<Precision::kBFloat16>(cluster, shared_bytes);  // all variants take as many registers
}

void lstm_sequence_fwd_cuda(const LstmSequenceFwdCuda& p, const LstmSequencePlan& plan, void* stream) {
  const Recurrence r = checked(p, plan);
  switch (p.dtype) {
    case DType::kBFloat16: return launch_fwd<Precision::kBFloat16>(p, r, stream);
    case DType::kFloat16: return launch_fwd<Precision::kFloat16>(p, r, stream);
    default:
      return p.allow_tf32 ? launch_fwd<Precision::kTf32>(p, r, stream) : launch_fwd<Precision::kFloat32>(p, r, stream);
  }
}

}  // namespace lstmvid
