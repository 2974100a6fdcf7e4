// Weights into panels (panel.h): by rows of registers that are turned where the weight's own rows run along k.
#pragma once

#include <utility>

#include "panel.h"

namespace lstmvid {
namespace LSTMVID_ISA {

// ---- A register of packs: V packs that lie side by side in memory, `count` operands of them, the rest is zero. ----

template <class Product, class Stored>
inline __attribute__((always_inline)) typename Product::Packs load_packs(const Stored* from, int64_t count) {
  using Packs = typename Product::Packs;
  constexpr int64_t kWidth = kLanes<typename Product::Scalar> * Product::kPack;
  const int some = static_cast<int>(count < 0 ? 0 : (count < kWidth ? count : kWidth));
  if constexpr (Product::kPack == 1) {
    return load(from, some);
  } else {
    return load_bits<Packs>(from, some);
  }
}

// V packs of one k each, from the rows of k that make up a pack.
template <class Product, class Stored>
inline __attribute__((always_inline)) typename Product::Packs load_across(const Stored* from, int64_t k_stride,
                                                                          int64_t depth, int count) {
  if constexpr (Product::kPack == 1) {
    return load(from, depth > 0 ? count : 0);
  } else {
    static_assert(Product::kPack == 2, "pairs, the even one in the lower half");
    const UintVec even = __builtin_convertvector(load_bits<HalfBits>(from, depth > 0 ? count : 0), UintVec);
    const UintVec odd = __builtin_convertvector(load_bits<HalfBits>(from + k_stride, depth > 1 ? count : 0), UintVec);
    return even | odd << 16;
  }
}

// ---- Turning V registers of V lanes. ----

// One of two registers' lanes each: of a pair that is `kStep` apart, the upper one's low parts for the lower one's high ones.
template <int kStep, bool kUpper, class Vector, size_t... kLane>
inline __attribute__((always_inline)) Vector exchanged(const Vector& a, const Vector& b,
                                                       std::index_sequence<kLane...>) {
  constexpr int kV = sizeof...(kLane);
  constexpr auto kFrom = [](int lane) {
    const bool is_high = (lane & kStep) != 0;
    return kUpper ? (is_high ? kV + lane : lane + kStep) : (is_high ? kV + lane - kStep : lane);
  };
  return __builtin_shufflevector(a, b, kFrom(kLane)...);
}

template <int kStep, int kV, class Vector>
inline __attribute__((always_inline)) void turn(Vector (&rows)[kV]) {
  if constexpr (kStep < kV) {
    using Lanes = std::make_index_sequence<kV>;
    for (int i = 0; i < kV; ++i) {
      if ((i & kStep) != 0) continue;
      const Vector lower = rows[i], upper = rows[i + kStep];
      rows[i] = exchanged<kStep, false>(lower, upper, Lanes{});
      rows[i + kStep] = exchanged<kStep, true>(lower, upper, Lanes{});
    }
    turn<2 * kStep>(rows);
  }
}

// Packs four sources into a panel: source j's column v at lane v of register j, zeros from count[j] on and behind the
// last k. Element (k, v) of source j is from[j][k * k_stride + v * v_stride]; one of the strides is 1.
template <class Product, class Stored>
inline void pack_panel(const Stored* const from[4], const int count[4], int64_t k_stride, int64_t v_stride,
                       int64_t depth, typename Product::Operand* panel) {
  using Packs = typename Product::Packs;
  constexpr int kV = kLanes<typename Product::Scalar>, kPack = Product::kPack;
  constexpr int64_t kRun =
      64;  // packs of each column at a time: long enough to stream, and what they fill stays in cache
  const int64_t packs = packs_of<Product>(depth);
  for (int64_t first = 0; first < packs; first += kRun) {
    const int64_t end = first + kRun < packs ? first + kRun : packs;
    for (int j = 0; j < 4; ++j) {
      const Stored* const source = count[j] > 0 ? from[j] : from[0];  // of nothing, nothing is read
      const auto place = [&](int64_t at, const Packs& value) {
        store_bits(panel + (at * 4 + j) * kV * kPack, value, kV * kPack);
      };
      if (v_stride == 1) {
        for (int64_t at = first; at < end; ++at) {
          place(at, load_across<Product>(source + at * kPack * k_stride, k_stride, depth - at * kPack, count[j]));
        }
        continue;
      }
      for (int64_t at = first; at < end; at += kV) {
        Packs rows[kV];
        for (int v = 0; v < kV; ++v) {
          const int64_t there = v < count[j] ? depth - at * kPack : 0;
          const Stored* const row = source + v * v_stride + at * kPack;
          __builtin_prefetch(row + kRun * kPack, 0, 3);  // rows are too many streams for the processor to follow
          rows[v] = load_packs<Product>(row, there);
        }
        turn<1>(rows);
        for (int i = 0; i < kV && at + i < end; ++i) place(at + i, rows[i]);
      }
    }
  }
}

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
