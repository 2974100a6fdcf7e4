// The gate equations, forward and backward: one source for CPU, CUDA and emulation.
//
// `Real` is a scalar or a vector of units. `Math` has its sigmoid and tanh, since what is fast differs: polynomials on
// vectors here, hardware instructions there.
// Equations: Srivastava et al., 2015, section 2.1. Gate order i f g o; peephole order i f o.
#pragma once

#if defined(__CUDACC__)
#define LSTMVID_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LSTMVID_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace lstmvid {

template <class Real>
struct Gates {
  Real i, f, g, o;
};

template <class Real>
struct Peephole {
  Real i, f, o;
};

template <class Real>
struct Cell {
  Gates<Real> gates;  // after their activations
  Real c, h;
};

template <class Real>
struct CellGradient {
  Gates<Real> z;  // of the gates' pre-activations
  Real c_prev;
};

// z: pre-activations without the peepholes' part.
template <class Math, class Real>
LSTMVID_HOST_DEVICE Cell<Real> cell_forward(const Gates<Real>& z, const Peephole<Real>& w, Real c_prev) {
  Cell<Real> cell;
  cell.gates.i = Math::sigmoid(z.i + w.i * c_prev);
  cell.gates.f = Math::sigmoid(z.f + w.f * c_prev);
  cell.gates.g = Math::tanh(z.g);
  cell.c = cell.gates.f * c_prev + cell.gates.i * cell.gates.g;
  cell.gates.o = Math::sigmoid(z.o + w.o * cell.c);
  cell.h = cell.gates.o * Math::tanh(cell.c);
  return cell;
}

// dh, dc: gradients of h_t (from above and from the next step) and of c_t (from the next step and from outside).
template <class Math, class Real>
LSTMVID_HOST_DEVICE CellGradient<Real> cell_backward(const Gates<Real>& gates, const Peephole<Real>& w, Real c_prev,
                                                     Real c, Real dh, Real dc) {
  const Real tanh_c = Math::tanh(c);
  CellGradient<Real> grad;
  grad.z.o = dh * tanh_c * gates.o * (1 - gates.o);
  const Real dc_all = dc + dh * gates.o * (1 - tanh_c * tanh_c) + grad.z.o * w.o;
  grad.z.i = dc_all * gates.g * gates.i * (1 - gates.i);
  grad.z.f = dc_all * c_prev * gates.f * (1 - gates.f);
  grad.z.g = dc_all * gates.i * (1 - gates.g * gates.g);
  grad.c_prev = dc_all * gates.f + grad.z.i * w.i + grad.z.f * w.f;
  return grad;
}

}  // namespace lstmvid
