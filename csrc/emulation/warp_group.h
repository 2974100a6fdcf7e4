// Emulated: a warp's rows of a product come at a random moment before its wait. Until then D is poison, and what is read may
// still be overwritten.
#pragma once

#include "emulation/runtime.h"

namespace lstmvid {

LSTMVID_DEVICE uint32_t shared_address(const void* shared) { return emulation::shared_address(shared); }

LSTMVID_DEVICE void store_operand(float4* shared, float4 value) {
  emulation::before_operand_store(shared);
  *shared = value;
}
LSTMVID_DEVICE void fence_operands() { emulation::fence_operands(); }

LSTMVID_DEVICE void fence_products() { emulation::fence_products(); }
template <int tile_blocks>
LSTMVID_DEVICE void fence_products(float (&)[tile_blocks][4]) {
  emulation::fence_products();
}
LSTMVID_DEVICE void commit_products() { emulation::commit_products(); }
template <int pending>
LSTMVID_DEVICE void wait_products() {
  emulation::wait_products(pending);
}
template <int tile_blocks>
LSTMVID_DEVICE void wait_products(float (&d)[tile_blocks][4]) {
  emulation::wait_products(0);
  emulation::take_sums(&d[0][0], tile_blocks);
}

template <int tile_blocks>
struct GroupProduct {
  static LSTMVID_DEVICE void bf16(float (&d)[tile_blocks][4], const FragmentA& a, uint64_t b) {
    emulation::multiply_group(emulation::Operands::kBFloat16, &d[0][0], tile_blocks, a.x, 0, b);
  }
  static LSTMVID_DEVICE void bf16(float (&d)[tile_blocks][4], uint64_t a, uint64_t b) {
    emulation::multiply_group(emulation::Operands::kBFloat16, &d[0][0], tile_blocks, nullptr, a, b);
  }
  static LSTMVID_DEVICE void f16(float (&d)[tile_blocks][4], const FragmentA& a, uint64_t b) {
    emulation::multiply_group(emulation::Operands::kFloat16, &d[0][0], tile_blocks, a.x, 0, b);
  }
  static LSTMVID_DEVICE void f16(float (&d)[tile_blocks][4], uint64_t a, uint64_t b) {
    emulation::multiply_group(emulation::Operands::kFloat16, &d[0][0], tile_blocks, nullptr, a, b);
  }
};

}  // namespace lstmvid
