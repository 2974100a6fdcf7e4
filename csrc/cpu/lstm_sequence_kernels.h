// What lstm_sequence_kernels.cpp offers for each instruction set it is compiled for.
#pragma once

#include "lstmvid/lstm_sequence.h"

namespace lstmvid {

struct CpuKernels {
  void (*forward)(const LstmSequenceFwd&);
  void (*backward)(const LstmSequenceBwd&);
  int64_t (*forward_workspace)(const LstmSequenceFwd&);
  int64_t (*backward_workspace)(const LstmSequenceBwd&);
};

#if LSTMVID_X86
namespace avx512bf16 {
extern const CpuKernels kKernels;
}
namespace avx512 {
extern const CpuKernels kKernels;
}
namespace avx2 {
extern const CpuKernels kKernels;
}
#endif
namespace portable {
extern const CpuKernels kKernels;
}

}  // namespace lstmvid
