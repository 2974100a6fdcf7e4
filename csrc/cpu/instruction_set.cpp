// Chooses the kernels for this processor, once.
#include <cstdlib>
#include <cstring>

#if LSTMVID_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "instruction_set.h"

namespace lstmvid {
namespace {

struct Choice {
  const char* name;
  const LstmSequenceKernels& lstm_sequence;
  const ClosedLoopKernels& closed_loop;
  const MatrixProductKernels& matrix_product;
};

#if LSTMVID_AMX
// Whether there are the tile registers, and Linux lets this process have them: it has to ask, once.
bool may_use_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kBf16) == 0 || (edx & kTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

const Choice& choice() {
  static const Choice chosen = [] {
#if LSTMVID_X86
    // LSTMVID_CPU=portable|avx2|avx512|avx512bf16 holds a machine below its best, to test or to compare.
    const char* limit = std::getenv("LSTMVID_CPU");
    const auto may = [&](const char* name) { return limit == nullptr || std::strcmp(limit, name) == 0; };
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#if LSTMVID_AMX
    if (avx512bf16 && may("amx") && may_use_amx())
      return Choice{"amx", amx::kLstmSequence, amx::kClosedLoop, amx::kMatrixProduct};
#endif
    if (avx512bf16 && may("avx512bf16")) {
      return Choice{"avx512bf16", avx512bf16::kLstmSequence, avx512bf16::kClosedLoop, avx512bf16::kMatrixProduct};
    }
    if (avx512 && may("avx512"))
      return Choice{"avx512", avx512::kLstmSequence, avx512::kClosedLoop, avx512::kMatrixProduct};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && may("avx2")) {
      return Choice{"avx2", avx2::kLstmSequence, avx2::kClosedLoop, avx2::kMatrixProduct};
    }
#endif
    return Choice{"portable", portable::kLstmSequence, portable::kClosedLoop, portable::kMatrixProduct};
  }();
  return chosen;
}

}  // namespace

const char* cpu_instruction_set() { return choice().name; }

int64_t lstm_sequence_fwd_workspace(const LstmSequenceFwd& p) { return choice().lstm_sequence.forward_workspace(p); }
int64_t lstm_sequence_bwd_workspace(const LstmSequenceBwd& p) { return choice().lstm_sequence.backward_workspace(p); }
void lstm_sequence_fwd_cpu(const LstmSequenceFwd& p) { choice().lstm_sequence.forward(p); }
void lstm_sequence_bwd_cpu(const LstmSequenceBwd& p) { choice().lstm_sequence.backward(p); }

int64_t closed_loop_fwd_workspace(const ClosedLoopFwd& p) { return choice().closed_loop.forward_workspace(p); }
int64_t closed_loop_bwd_workspace(const ClosedLoopBwd& p) { return choice().closed_loop.backward_workspace(p); }
void closed_loop_fwd_cpu(const ClosedLoopFwd& p) { choice().closed_loop.forward(p); }
void closed_loop_bwd_cpu(const ClosedLoopBwd& p) { choice().closed_loop.backward(p); }

int64_t matrix_product_workspace(const MatrixProduct& p) { return choice().matrix_product.workspace(p); }
void matrix_product_cpu(const MatrixProduct& p) { choice().matrix_product.run(p); }

}  // namespace lstmvid
