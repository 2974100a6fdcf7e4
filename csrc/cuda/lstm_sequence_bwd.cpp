// The backward recurrence on NVIDIA GPUs: checks the call, lays memory out, and calls the kernels of the operands' type.
#include <stdexcept>
#include <string>

#include "cuda/lstm_sequence_bwd_launch.h"
#include "cuda/recurrence_geometry.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {
namespace {

constexpr const char* kWhat = "lstm_sequence_bwd_cuda";

Recurrence checked(const LstmSequenceBwdCuda& p, const LstmSequencePlan& plan) {
  if ((p.first_step != 0 || p.end_step != p.steps + 1) && plan.cells_in_shared) {
    throw std::invalid_argument(std::string(kWhat) + ": in parts it runs only with cells_in_shared off");
  }
  const int element = p.dtype == DType::kFloat32 ? 4 : 2;
  // Inputs: gates, the output's gradient, c before and after the step and its gradient. Carried: the gradients of c and of h
  // of eight cells a lane.
  return recurrence(p, p.steps + 1, {p.hidden, p.batch, p.groups, element, 32, 4, 5 * element + 12, 1, 16}, plan,
                    kWhat);
}

}  // namespace

int64_t lstm_sequence_bwd_cuda_shared_bytes(const LstmSequenceBwdCuda& p, const LstmSequencePlan& plan) {
  return checked(p, plan).g.shared_bytes;
}

int64_t lstm_sequence_bwd_cuda_workspace(const LstmSequenceBwdCuda& p, const LstmSequencePlan& plan) {
  return checked(p, plan).g.workspace_bytes;
}

void lstm_sequence_bwd_cuda(const LstmSequenceBwdCuda& p, const LstmSequencePlan& plan, void* stream) {
  const Recurrence r = checked(p, plan);
  switch (p.dtype) {
    case DType::kBFloat16: return launch_bwd<Precision::kBFloat16>(p, r, stream);
    case DType::kFloat16: return launch_bwd<Precision::kFloat16>(p, r, stream);
    default:
      return p.allow_tf32 ? launch_bwd<Precision::kTf32>(p, r, stream) : launch_bwd<Precision::kFloat32>(p, r, stream);
  }
}

}  // namespace lstmvid
