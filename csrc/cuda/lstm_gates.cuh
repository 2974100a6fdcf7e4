// Gates and cell states of a stretch of steps once more, for a backward pass that kept neither.
//
//   gates_t = activations(z_t + peepholes),   c_t = f_t c_{t-1} + i_t g_t           csrc/include/lstmvid/cell_math.h
//
// z_t, the pre-activations of all the steps, come from one dense product, as the hidden states are there; only the scan of c
// is sequential, and that by itself for each unit and sequence: a thread has one of them and runs through the steps, its
// next pre-activations on their way from memory. c is float32.
//
// Floor of a step: memory, G B H (8 operands + 4 bytes).
#pragma once

#include "cuda/primitives/launch.h"
#include "cuda/primitives/numeric.h"
#include "cuda/primitives/platform.h"
#include "lstmvid/cell_math.h"
#include "lstmvid/lstm_sequence_cuda.h"

namespace lstmvid {

constexpr int kGatesThreads = 256;
constexpr int kGatesAhead = 4;  // steps on their way from memory

template <Precision precision>
struct GatesScan {
  using Operand = Element<precision>;

  const LstmGatesCuda& p;
  int64_t group, row, unit;

  LSTMVID_DEVICE int64_t time(int64_t step) const { return p.reverse >> group & 1 ? p.steps - 1 - step : step; }

  LSTMVID_DEVICE Operand* gates(int64_t step) const {
    return static_cast<Operand*>(p.gates[group]) + (time(step) * p.batch + row) * 4 * p.hidden + unit;
  }

  LSTMVID_DEVICE Gates<float> load(int64_t step) const {
    const Operand* z = gates(step);
    return {to_float(z[0]), to_float(z[p.hidden]), to_float(z[2 * p.hidden]), to_float(z[3 * p.hidden])};
  }

  LSTMVID_DEVICE void store(int64_t step, const Gates<float>& x) const {
    Operand* to = gates(step);
    to[0] = from_float<Operand>(x.i);
    to[p.hidden] = from_float<Operand>(x.f);
    to[2 * p.hidden] = from_float<Operand>(x.g);
    to[3 * p.hidden] = from_float<Operand>(x.o);
  }

  LSTMVID_DEVICE void run() const {
    const auto* w = static_cast<const Operand*>(p.peephole[group]);
    Peephole<float> peephole{0.0f, 0.0f, 0.0f};
    if (w != nullptr) {
      peephole = {to_float(w[unit]), to_float(w[p.hidden + unit]), to_float(w[2 * p.hidden + unit])};
    }
    const int64_t length = p.lengths != nullptr ? p.lengths[row] : p.steps;
    float c = p.c_0[group][row * p.hidden + unit];
    float* const cells = p.cells[group];
    Gates<float> ahead[kGatesAhead];
#pragma unroll
    for (int i = 0; i < kGatesAhead; ++i) {
      if (p.first_step + i < p.end_step) ahead[i] = load(p.first_step + i);
    }
    for (int64_t first = p.first_step; first < p.end_step; first += kGatesAhead) {
#pragma unroll
      for (int i = 0; i < kGatesAhead; ++i) {
        const int64_t step = first + i;
        if (step >= p.end_step) break;
        const Gates<float> z = ahead[i];
        if (step + kGatesAhead < p.end_step) ahead[i] = load(step + kGatesAhead);
        const Cell<float> cell = cell_forward<DeviceMath>(z, peephole, c);
        if (time(step) < length) c = cell.c;
        store(step, cell.gates);
        cells[(time(step) * p.batch + row) * p.hidden + unit] = c;
      }
    }
  }
};

template <Precision precision>
__global__ void __launch_bounds__(kGatesThreads) lstm_gates_kernel(const __grid_constant__ LstmGatesCuda p) {
  const int64_t at = block_idx() * kGatesThreads + thread_idx(), size = p.batch * p.hidden;
  if (at >= p.groups * size) return;
  GatesScan<precision>{p, at / size, at % size / p.hidden, at % p.hidden}.run();
}

template <Precision precision>
void launch_gates(const LstmGatesCuda& p, void* stream) {
  const int64_t threads = p.groups * p.batch * p.hidden;
  const Launch launch{(threads + kGatesThreads - 1) / kGatesThreads, kGatesThreads, 1, 0, false, stream};
  check_launch(&lstm_gates_kernel<precision>, launch);
  launch_kernel(&lstm_gates_kernel<precision>, launch, p);
}

}  // namespace lstmvid
