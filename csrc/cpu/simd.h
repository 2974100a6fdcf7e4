// Vectors of one register's width, by GCC's and Clang's vector extension: one source for every instruction set.
//
// Everything lives in namespace LSTMVID_ISA, which differs between the translation units compiled for different
// processors, so that the linker can never mix them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace lstmvid {
namespace LSTMVID_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 6;  // rows x 4 accumulators + 4 operands + broadcasts fit the 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 3;
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 2;
#endif

template <class Scalar>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class Scalar>
using Vec = typename VectorOf<Scalar>::type;
template <class Scalar>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Scalar));

using FloatVec = Vec<float>;
using DoubleVec = Vec<double>;
typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UintVec __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));

// The same bits as another type.
template <class To, class From>
inline __attribute__((always_inline)) To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as keeps every bit");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct bfloat16 {
  uint16_t bits;
};

// ---- Memory: `count` of a register's lanes, the rest is zero. Converts bfloat16 to and from float. ----

template <class Vector, class Stored>
inline __attribute__((always_inline)) Vector load_bits(const Stored* from, int count) {
  Vector v{};
  constexpr int kWidth = sizeof(Vector) / sizeof(Stored);
  if (count == kWidth) {
    std::memcpy(&v, from, sizeof v);
  } else {
    std::memcpy(&v, from, count * sizeof(Stored));
  }
  return v;
}

template <class Vector, class Stored>
inline __attribute__((always_inline)) void store_bits(Stored* to, const Vector& v, int count) {
  constexpr int kWidth = sizeof(Vector) / sizeof(Stored);
  if (count == kWidth) {
    std::memcpy(to, &v, sizeof v);
  } else {
    std::memcpy(to, &v, count * sizeof(Stored));
  }
}

inline __attribute__((always_inline)) FloatVec load(const float* from, int count) {
  return load_bits<FloatVec>(from, count);
}
inline __attribute__((always_inline)) DoubleVec load(const double* from, int count) {
  return load_bits<DoubleVec>(from, count);
}
inline __attribute__((always_inline)) FloatVec load(const bfloat16* from, int count) {
  const UintVec wide = __builtin_convertvector(load_bits<HalfBits>(from, count), UintVec) << 16;
  return bits_as<FloatVec>(wide);
}

inline __attribute__((always_inline)) void store(float* to, FloatVec v, int count) { store_bits(to, v, count); }
inline __attribute__((always_inline)) void store(double* to, DoubleVec v, int count) { store_bits(to, v, count); }
inline __attribute__((always_inline)) void store(bfloat16* to, FloatVec v, int count) {
  const UintVec bits = bits_as<UintVec>(v);
  const UintVec nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UintVec quiet_nan = (bits >> 16) | 0x40;  // rounding could carry a NaN's bits into infinity
  store_bits(to, __builtin_convertvector(v == v ? nearest_even : quiet_nan, HalfBits), count);
}

// ---- Functions ----

// exp: 2^n * p(r), |r| <= ln2 / 2, degree 6 minimax-like Taylor; 1 ulp or so; saturates instead of overflowing, since
// its callers divide by 1 + exp. NaN passes through.
inline __attribute__((always_inline)) FloatVec exp(FloatVec x) {
  constexpr float kLow = -87.0f, kHigh = 88.0f;
  x = x < kLow ? FloatVec{} + kLow : x;
  x = x > kHigh ? FloatVec{} + kHigh : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const FloatVec shifted = x * 1.44269504f + kRound;
  const FloatVec n = shifted - kRound;
  const FloatVec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  FloatVec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec scale = (bits_as<IntVec>(shifted) + 127) << 23;  // kRound's own low bits are zero
  return p * bits_as<FloatVec>(scale);
}

// 1 / x of what exp leads to, 1 <= x < 2^128. A step has five a unit, as long as its products where there are few units.
inline __attribute__((always_inline)) FloatVec reciprocal(FloatVec x) {
#if defined(__AVX512F__)
  const FloatVec guess = bits_as<FloatVec>(_mm512_maskz_rcp14_ps(0xffff, bits_as<__m512>(x)));  // to 2^-14
  return guess + guess * (1.0f - x * guess);                                                    // Newton: to an ulp
#else
  return 1.0f / x;
#endif
}

// What cell_math.h needs.
struct VectorMath {
  static inline __attribute__((always_inline)) FloatVec sigmoid(FloatVec x) { return reciprocal(1.0f + exp(-x)); }

  static inline __attribute__((always_inline)) FloatVec tanh(FloatVec x) {
    const FloatVec magnitude = x < 0.0f ? -x : x;
    const FloatVec away = 1.0f - 2.0f * reciprocal(exp(2.0f * magnitude) + 1.0f);
    // Near zero the difference above cancels; Cephes' odd polynomial keeps the relative error.
    const FloatVec s = x * x;
    FloatVec p = s * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * s + -5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s + -3.33332819422e-1f;
    const FloatVec near = p * s * x + x;
    return magnitude < 0.625f ? near : (x < 0.0f ? -away : away);
  }

  // Double precision is for checking, not for speed: the C library's functions, lane by lane.
  static DoubleVec sigmoid(DoubleVec x) {
    for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = 1.0 / (1.0 + std::exp(-x[lane]));
    return x;
  }
  static DoubleVec tanh(DoubleVec x) {
    for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::tanh(x[lane]);
    return x;
  }
};

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
