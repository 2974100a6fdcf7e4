// Element types of the operands, and the gates' nonlinearities.
#pragma once

#include <cstdint>

#include "cuda/primitives/platform.h"
#include "lstmvid/dtype.h"

namespace lstmvid {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

template <Precision>
struct ElementOf {
  using Type = float;
};
template <>
struct ElementOf<Precision::kBFloat16> {
  using Type = BFloat16;
};
template <>
struct ElementOf<Precision::kFloat16> {
  using Type = Float16;
};
template <Precision precision>
using Element = typename ElementOf<precision>::Type;

}  // namespace lstmvid

#if LSTMVID_EMULATED
#include "emulation/numeric.h"
#else

namespace lstmvid {

LSTMVID_DEVICE float to_float(float x) { return x; }
LSTMVID_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
LSTMVID_DEVICE float to_float(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

template <class T>
LSTMVID_DEVICE T from_float(float x);  // to nearest even
template <>
LSTMVID_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
LSTMVID_DEVICE BFloat16 from_float<BFloat16>(float x) {
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
LSTMVID_DEVICE Float16 from_float<Float16>(float x) {
  Float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// To tf32, nearest, ties away from zero; still a float32 whose low bits are zero.
LSTMVID_DEVICE float round_to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y & 0xffffe000u);
}

// 2^x and 1/x by the special function unit, to about 1 unit in the last place; exact at the ends (2^-inf = 0, 1/inf = 0).
LSTMVID_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LSTMVID_DEVICE float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace lstmvid
#endif

namespace lstmvid {

// For cell_math.h. Absolute errors of some 1e-7; NaN goes through.
struct DeviceMath {
  static LSTMVID_DEVICE float sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp2(-1.4426950408889634f * x)); }
  static LSTMVID_DEVICE float tanh(float x) {
    return 1.0f - 2.0f * fast_reciprocal(1.0f + fast_exp2(2.8853900817779268f * x));
  }
};

}  // namespace lstmvid
