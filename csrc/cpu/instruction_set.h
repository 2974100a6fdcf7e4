// What the kernels' sources offer for each instruction set that they are compiled for.
#pragma once

#include "lstmvid/closed_loop.h"
#include "lstmvid/lstm_sequence.h"
#include "lstmvid/matrix_product.h"

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
struct MatrixProductKernels {
  void (*run)(const MatrixProduct&);
  int64_t (*workspace)(const MatrixProduct&);
};

#if LSTMVID_AMX
namespace amx {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
extern const MatrixProductKernels kMatrixProduct;
}  // namespace amx
#endif
#if LSTMVID_X86
namespace avx512bf16 {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
extern const MatrixProductKernels kMatrixProduct;
}  // namespace avx512bf16
namespace avx512 {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
extern const MatrixProductKernels kMatrixProduct;
}  // namespace avx512
namespace avx2 {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
extern const MatrixProductKernels kMatrixProduct;
}  // namespace avx2
#endif
namespace portable {
extern const LstmSequenceKernels kLstmSequence;
extern const ClosedLoopKernels kClosedLoop;
extern const MatrixProductKernels kMatrixProduct;
}  // namespace portable

}  // namespace lstmvid
