// Emulated: conversions and the special function unit, bit by bit as PTX defines them where it does.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation/runtime.h"

namespace lstmvid {

namespace emulation {

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// ".ftz": numbers below the normal ones become zero.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// Without branches: the matrix product calls it in its inner loop.
inline float float_of_half(uint16_t half) {
  const uint32_t shifted = (half & 0x7fffu) << 13;
  const float rescaled = float_of(shifted) * 0x1p112f;  // subnormals come out right, infinity and NaN as 2^16 and up
  const uint32_t special = rescaled >= 65536.0f ? 0x7f800000u : 0u;
  return float_of(bits_of(rescaled) | special | static_cast<uint32_t>(half & 0x8000u) << 16);
}

inline uint16_t half_of_float(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;                                  // PTX has one NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and up round to infinity
  if (magnitude < 0x38800000u) {                                               // a subnormal half, or zero
    const float aligned = float_of(magnitude) + 0.5f;                          // its lowest bit is now 2^-24
    return static_cast<uint16_t>(sign | (bits_of(aligned) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

inline uint16_t bfloat16_of_float(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace emulation

LSTMVID_DEVICE float to_float(float x) { return x; }
LSTMVID_DEVICE float to_float(BFloat16 x) { return emulation::float_of(static_cast<uint32_t>(x.bits) << 16); }
LSTMVID_DEVICE float to_float(Float16 x) { return emulation::float_of_half(x.bits); }

template <class T>
LSTMVID_DEVICE T from_float(float x);
template <>
LSTMVID_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
LSTMVID_DEVICE BFloat16 from_float<BFloat16>(float x) {
  return {emulation::bfloat16_of_float(x)};
}
template <>
LSTMVID_DEVICE Float16 from_float<Float16>(float x) {
  return {emulation::half_of_float(x)};
}

LSTMVID_DEVICE float round_to_tf32(float x) {
  const uint32_t bits = emulation::bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return emulation::float_of(0x7fffe000u);
  if ((bits & 0x7fffffffu) == 0x7f800000u) return x;
  return emulation::float_of((bits + 0x1000u) & 0xffffe000u);
}

LSTMVID_DEVICE float fast_exp2(float x) { return emulation::flushed(std::exp2(emulation::flushed(x))); }
LSTMVID_DEVICE float fast_reciprocal(float x) { return emulation::flushed(1.0f / emulation::flushed(x)); }

}  // namespace lstmvid
