// What the kernels' sources offer for each instruction set that they are compiled for.
#pragma once

#include "lstmvid/closed_loop.h"
#include "lstmvid/lstm_sequence.h"

namespace lstmvid {

template <class Fwd, class Bwd>
struct CpuKernels {
  void (*forward)(const Fwd&);
  void (*backward)(const Bwd&);
  int64_t (*forward_workspace)(const Fwd&);
  int64_t (*backward_workspace)(const Bwd&);
};
using LstmSequenceKernels = CpuKernels<LstmSequenceFwd, LstmSequenceBwd>;
using ClosedLoopKernels = CpuKernels<ClosedLoopFwd, ClosedLoopBwd>;

#if LSTMVID_AMX
namespace amx {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
}  // namespace amx
#endif
#if LSTMVID_X86
namespace avx512bf16 {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
}  // namespace avx512bf16
namespace avx512 {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
}  // namespace avx512
namespace avx2 {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
}  // namespace avx2
#endif
namespace portable {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
}  // namespace portable

}  // namespace lstmvid
