// Gates and cells once more: all operand types; see lstm_gates.cuh.
#include <stdexcept>

#include "cuda/lstm_gates.cuh"

namespace lstmvid {

void lstm_gates_cuda(const LstmGatesCuda& p, void* stream) {
  if (p.groups < 1 || p.groups > kMaxGroups || p.batch < 1 || p.hidden < 1 || p.first_step < 0 ||
      p.first_step >= p.end_step || p.end_step > p.steps) {
    throw std::invalid_argument("lstm_gates_cuda: sizes out of range");
  }
  switch (p.dtype) {
    case DType::kBFloat16: return launch_gates<Precision::kBFloat16>(p, stream);
    case DType::kFloat16: return launch_gates<Precision::kFloat16>(p, stream);
    case DType::kFloat32: return launch_gates<Precision::kFloat32>(p, stream);
    default: throw std::invalid_argument("lstm_gates_cuda: it computes in float32, bfloat16 and float16");
  }
}

}  // namespace lstmvid
