// Chooses the kernels for this processor, once.
#include <cstdlib>
#include <cstring>

#include "lstm_sequence_kernels.h"

namespace lstmvid {
namespace {

struct Choice {
  const char* name;
  const CpuKernels& kernels;
};

const Choice& choice() {
  static const Choice chosen = [] {
#if LSTMVID_X86
    // LSTMVID_CPU=portable|avx2|avx512 holds a machine below its best, to test or to compare.
    const char* limit = std::getenv("LSTMVID_CPU");
    const auto may = [&](const char* name) { return limit == nullptr || std::strcmp(limit, name) == 0; };
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16") && may("avx512bf16")) {
      return Choice{"avx512bf16", avx512bf16::kKernels};
    }
    if (avx512 && may("avx512")) return Choice{"avx512", avx512::kKernels};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && may("avx2")) {
      return Choice{"avx2", avx2::kKernels};
    }
#endif
    return Choice{"portable", portable::kKernels};
  }();
  return chosen;
}

}  // namespace

const char* cpu_instruction_set() { return choice().name; }
int64_t lstm_sequence_fwd_workspace(const LstmSequenceFwd& p) { return choice().kernels.forward_workspace(p); }
int64_t lstm_sequence_bwd_workspace(const LstmSequenceBwd& p) { return choice().kernels.backward_workspace(p); }
void lstm_sequence_fwd_cpu(const LstmSequenceFwd& p) { choice().kernels.forward(p); }
void lstm_sequence_bwd_cpu(const LstmSequenceBwd& p) { choice().kernels.backward(p); }

}  // namespace lstmvid
