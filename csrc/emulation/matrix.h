// Emulated: matrix loads and products. The 32 lanes meet; the last to come does the work of all.
#pragma once

#include "emulation/runtime.h"

namespace lstmvid {

LSTMVID_DEVICE void load_matrices(uint32_t (&x)[4], const void* shared_row) { emulation::load_matrices(x, shared_row); }

LSTMVID_DEVICE void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::multiply(emulation::Operands::kBFloat16, d, a, b0, b1);
}
LSTMVID_DEVICE void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::multiply(emulation::Operands::kFloat16, d, a, b0, b1);
}
LSTMVID_DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::multiply(emulation::Operands::kTf32, d, a, b0, b1);
}

LSTMVID_DEVICE float as_float(uint32_t bits) { return emulation::float_of(bits); }
LSTMVID_DEVICE uint32_t as_bits(float x) { return emulation::bits_of(x); }

}  // namespace lstmvid
