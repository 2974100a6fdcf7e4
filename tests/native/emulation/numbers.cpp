// Conversions at their edges, and the gates' nonlinearities over a sweep.
#include <cmath>
#include <limits>

#include "check.h"

namespace lstmvid {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::string hex(uint32_t bits) {
  char text[16];
  std::snprintf(text, sizeof(text), "%08x", bits);
  return text;
}

// The nearest of the finite values with `bits_of_mantissa` in the range of exponents, ties to even; by double arithmetic.
double nearest(float x, int bits_of_mantissa, int lowest_exponent) {
  int exponent;
  std::frexp(x, &exponent);  // |x| in [2^(exponent - 1), 2^exponent)
  const double unit = std::ldexp(1.0, std::max(exponent - 1, lowest_exponent) - bits_of_mantissa);
  return std::nearbyint(x / unit) * unit;
}

template <class T>
void check_conversion(int bits_of_mantissa, int lowest_exponent, double largest) {
  std::vector<float> xs = {0.0f,      -0.0f,       1.0f,        65504.0f,   65519.996f,      65520.0f,
                           0x1p-24f,  0x1p-25f,    0x1.8p-25f,  0x1p-149f,  0x1.fffffep127f, 0x1p-126f,
                           0x1p-133f, 0x1.8p-134f, 1.00390625f, 1.01171875f};
  for (int i = 0; i < 20000; ++i) {
    const float x = emulation::float_of(static_cast<uint32_t>(check::random()()));
    if (std::isfinite(x)) xs.push_back(x);
    xs.push_back(std::ldexp(static_cast<float>(check::random()() % 8192) / 4096.0f, i % 40 - 28));  // with many ties
  }
  for (float x : xs) {
    for (float signed_x : {x, -x}) {
      const double rounded = nearest(signed_x, bits_of_mantissa, lowest_exponent);
      const double expected = std::abs(rounded) > largest ? std::copysign(INFINITY, rounded) : rounded;
      const float got = to_float(from_float<T>(signed_x));
      check::expect(got == expected && std::signbit(got) == std::signbit(signed_x),
                    "conversion of " + hex(emulation::bits_of(signed_x)) + " gives " + std::to_string(got));
    }
  }
  check::expect(to_float(from_float<T>(kInfinity)) == kInfinity, "infinity");
  check::expect(to_float(from_float<T>(-kInfinity)) == -kInfinity, "-infinity");
  check::expect(std::isnan(to_float(from_float<T>(kNaN))), "NaN");
  check::expect(std::isnan(to_float(from_float<T>(emulation::float_of(0xff800001u)))), "signalling NaN");
}

CASE(conversion_to_bf16) { check_conversion<BFloat16>(7, -126, 0x1.fep127); }
CASE(conversion_to_f16) { check_conversion<Float16>(10, -14, 65504.0); }

// Each half is some float's conversion.
CASE(conversion_of_every_half) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = to_float(Float16{static_cast<uint16_t>(bits)});
    const uint16_t back = from_float<Float16>(x).bits;
    if (std::isnan(x)) {
      check::expect((bits & 0x7fff) > 0x7c00 && back == 0x7fff, "NaN from " + hex(bits));
    } else {
      check::expect_equal(back, bits, "there and back");
    }
  }
}

CASE(rounding_to_tf32) {
  const auto rounded = [](uint32_t bits) { return emulation::bits_of(round_to_tf32(emulation::float_of(bits))); };
  for (const auto& [from, to] :
       std::vector<std::pair<uint32_t, uint32_t>>{{0x3f800fffu, 0x3f800000u},
                                                  {0x3f801000u, 0x3f802000u},  // ties away from zero
                                                  {0xbf801000u, 0xbf802000u},
                                                  {0x3f803000u, 0x3f804000u},
                                                  {0x7f7fffffu, 0x7f800000u},
                                                  {0x7f800000u, 0x7f800000u},
                                                  {0xff800000u, 0xff800000u},
                                                  {0x00000fffu, 0x00000000u},
                                                  {0x00001000u, 0x00002000u},
                                                  {0x80000000u, 0x80000000u}}) {
    check::expect_equal(rounded(from), to, hex(from));
  }
  check::expect(std::isnan(round_to_tf32(kNaN)), "NaN");
  for (int i = 0; i < 20000; ++i) {
    const float x = emulation::float_of(static_cast<uint32_t>(check::random()()));
    if (!std::isnormal(x) || std::abs(x) > 1e38f) continue;
    const float y = round_to_tf32(x);
    check::expect((emulation::bits_of(y) & 0x1fffu) == 0 && std::abs(x - y) <= std::ldexp(std::abs(x), -11), "nearest");
    const Tf32Pair pair = split_tf32(emulation::bits_of(x));
    const double sum = static_cast<double>(as_float(pair.large)) + as_float(pair.small);
    if (std::abs(x) > 1e-30f) check::expect(std::abs(sum - x) <= std::ldexp(std::abs(x), -22), "the split's sum");
  }
}

CASE(nonlinearities) {
  double worst = 0;
  for (float x = -100.0f; x <= 100.0f; x += 0.0078125f) {
    worst = std::max(worst, std::abs(DeviceMath::sigmoid(x) - 1 / (1 + std::exp(-static_cast<double>(x)))));
    worst = std::max(worst, std::abs(DeviceMath::tanh(x) - std::tanh(static_cast<double>(x))));
  }
  for (float x = 1e-6f; x < 1.0f; x *= 1.01f) {
    worst = std::max(worst, std::abs(DeviceMath::tanh(x) - std::tanh(static_cast<double>(x))));
  }
  check::expect(worst < 4e-7, "off by " + std::to_string(worst * 1e7) + "e-7");
  for (float large : {1e4f, kInfinity}) {
    check::expect_equal(DeviceMath::sigmoid(large), 1.0f, "sigmoid");
    check::expect_equal(DeviceMath::sigmoid(-large), 0.0f, "sigmoid");
    check::expect_equal(DeviceMath::tanh(large), 1.0f, "tanh");
    check::expect_equal(DeviceMath::tanh(-large), -1.0f, "tanh");
  }
  check::expect_equal(DeviceMath::sigmoid(0.0f), 0.5f, "sigmoid");
  check::expect_equal(DeviceMath::tanh(0.0f), 0.0f, "tanh");
  check::expect(std::isnan(DeviceMath::sigmoid(kNaN)) && std::isnan(DeviceMath::tanh(kNaN)), "NaN goes through");
}

}  // namespace
}  // namespace lstmvid
