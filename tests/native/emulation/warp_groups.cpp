// Products of warp groups: against float64, and kernels with a fault each.
#include <cmath>

#include "check.h"
#include "cuda/primitives/warp_group.h"

namespace lstmvid {
namespace {

constexpr int kRows = 64, kThreads = 128;
constexpr int kSteps = 3, kDepth = 16 * kSteps;  // of K

// Where an element lies in a matrix of core matrices, as the PTX ISA draws them; [rows, K].
int64_t in_core_matrices(int row, int k, int rows) {
  const int core_row = row / 8, core_column = k / 8;
  return (core_column * (rows / 8) + core_row) * 64 + row % 8 * 8 + k % 8;
}

template <Precision precision>
struct ProductParameters {
  const Element<precision>* a;  // [64, K] in core matrices
  const Element<precision>* b;  // [N, K] likewise
  float* d;                     // [64, N]
  bool a_in_registers;
};

// Fragments filled element by element from PTX's tables, written here once more and not as in warp_group.h.
template <Precision precision, int tile_blocks>
void product_kernel(const ProductParameters<precision> p) {
  constexpr int kColumns = 8 * tile_blocks;
  auto* barrier = reinterpret_cast<Barrier*>(shared_memory());
  uint8_t* a = shared_memory() + 128;
  uint8_t* b = a + kRows * kDepth * 2;
  if (thread_idx() == 0) {
    init(barrier, kCopyArrivals);
    fence_init();
  }
  for (int i = thread_idx(); i < kRows * kDepth / 8; i += kThreads) {
    store_operand(reinterpret_cast<float4*>(a) + i, reinterpret_cast<const float4*>(p.a)[i]);
  }
  fence_operands();
  sync_block();
  if (warp_idx() == 0) copy_block(read_only_memory(), b, p.b, kColumns * kDepth * 2, barrier);
  wait(barrier, 0, 0);

  const int first_row = 16 * warp_idx() + lane_idx() / 4, first_column = lane_idx() % 4 * 2;
  FragmentA registers[kSteps];
  for (int step = 0; step < kSteps; ++step) {
    Element<precision> elements[8];
    for (int i = 0; i < 8; ++i) {
      const int row = first_row + (i < 2 || (4 <= i && i < 6) ? 0 : 8);
      const int k = 16 * step + first_column + (i & 1) + (i < 4 ? 0 : 8);
      elements[i] = p.a[in_core_matrices(row, k, kRows)];
    }
    std::memcpy(registers[step].x, elements, sizeof(elements));
  }
  float d[tile_blocks][4];
  const auto element = [&](int n, int i) {
    return p.d + (first_row + (i & 2) * 4) * kColumns + 8 * n + first_column + (i & 1);
  };
  for (int n = 0; n < tile_blocks; ++n) {
    for (int i = 0; i < 4; ++i) d[n][i] = *element(n, i);
  }
  fence_products(d);
  const uint64_t of_a = matrix_descriptor(a, kRows * 16), of_b = matrix_descriptor(b, kColumns * 16);
  for (int step = 0; step < kSteps; ++step) {
    if (p.a_in_registers) {
      multiply_group<precision>(d, registers[step], moved(of_b, 2 * step * kColumns * 16));
    } else {
      multiply_group<precision>(d, moved(of_a, 2 * step * kRows * 16), moved(of_b, 2 * step * kColumns * 16));
    }
    commit_products();
    if (step == 1) wait_products<1>();
  }
  wait_products(d);
  for (int n = 0; n < tile_blocks; ++n) {
    for (int i = 0; i < 4; ++i) *element(n, i) = d[n][i];
  }
}

template <Precision precision, int tile_blocks>
void check_products() {
  constexpr int kColumns = 8 * tile_blocks;
  std::normal_distribution<float> normal;
  std::vector<Element<precision>> a(kRows * kDepth), b(kColumns * kDepth);
  std::vector<float> start(kRows * kColumns);
  for (auto& x : a) x = from_float<Element<precision>>(normal(check::random()));
  for (auto& x : b) x = from_float<Element<precision>>(normal(check::random()));
  for (float& x : start) x = normal(check::random());
  for (const bool a_in_registers : {false, true}) {
    std::vector<float> d = start;
    check::launch(product_kernel<precision, tile_blocks>, 1, kThreads, 1, 128 + (kRows + kColumns) * kDepth * 2,
                  ProductParameters<precision>{a.data(), b.data(), d.data(), a_in_registers});
    for (int m = 0; m < kRows; ++m) {
      for (int n = 0; n < kColumns; ++n) {
        double expected = start[m * kColumns + n];
        for (int k = 0; k < kDepth; ++k) {
          expected += static_cast<double>(to_float(a[in_core_matrices(m, k, kRows)])) *
                      to_float(b[in_core_matrices(n, k, kColumns)]);
        }
        const double error = std::abs(d[m * kColumns + n] - expected);
        check::expect(error <= 3e-5, "row " + std::to_string(m) + ", column " + std::to_string(n) + " is off by " +
                                         std::to_string(error));
      }
    }
  }
}

template <Precision precision>
void check_all_widths() {
  if (!kHasWarpGroups) return;
  check_products<precision, 1>();
  check_products<precision, 2>();
  check_products<precision, 3>();
  check_products<precision, 4>();
  check_products<precision, 5>();
  check_products<precision, 6>();
}

CASE(multiply_group_bf16) { check_all_widths<Precision::kBFloat16>(); }
CASE(multiply_group_f16) { check_all_widths<Precision::kFloat16>(); }

enum class GroupFault {
  kNone,
  kReleasedEarly,       // what is read, while products may still read it
  kReadEarly,           // D, before the wait
  kWrittenEarly,        // D, before the wait
  kRegistersChanged,    // A's, before the wait
  kNoOperandFence,      // between storing A and reading it
  kStoredOtherwise,     // A, not by store_operand()
  kNoProductFence,      // after D was read
  kNotCommitted,        // before the wait
  kOtherDescriptor,     // in one of the warps
  kOneWarpLess,         // of the four
  kSwizzled,            // says a descriptor
  kBeyondSharedMemory,  // says a descriptor
};

struct FaultyParameters {
  GroupFault fault;
  const uint8_t* items;  // [4][8 columns, 16 of K] bfloat16
  float* out;            // [128]
};

// Four products one after the other, of ones by what a fifth warp copies into the one slot.
void faulty_kernel(const FaultyParameters p) {
  constexpr int kItems = 4, kItemBytes = 8 * 32;
  const auto is = [&p](GroupFault fault) { return p.fault == fault; };
  auto* barriers = reinterpret_cast<Barrier*>(shared_memory());  // full, empty
  auto* a = reinterpret_cast<float4*>(shared_memory() + 128);
  uint8_t* slot = shared_memory() + 128 + kRows * 32;
  if (thread_idx() == 0) {
    init(barriers, kCopyArrivals);
    init(barriers + 1, kThreads);
    fence_init();
  }
  float ones;
  const uint32_t two_ones = 0x3f803f80u;
  std::memcpy(&ones, &two_ones, 4);
  if (thread_idx() < kThreads) {
    const float4 value = make_float4(ones, ones, ones, ones);
    if (is(GroupFault::kStoredOtherwise)) {
      a[thread_idx()] = value;
    } else {
      store_operand(a + thread_idx(), value);
    }
    if (!is(GroupFault::kNoOperandFence)) fence_operands();
  }
  sync_block();
  if (warp_idx() == kGroupWarps) {
    for (int i = 0; i < kItems; ++i) {
      wait(barriers + 1, (i & 1) ^ 1, 0);
      sync_lanes();
      copy_block(fence_async_copies(), slot, p.items + i * kItemBytes, kItemBytes, barriers);
    }
    return;
  }
  float d[1][4] = {};
  FragmentA registers{{two_ones, two_ones, two_ones, two_ones}};
  fence_products(d);
  for (int i = 0; i < kItems; ++i) {
    wait(barriers, i & 1, 0);
    uint64_t of_a = matrix_descriptor(a, kRows * 16), of_b = matrix_descriptor(slot, 8 * 16);
    if (is(GroupFault::kOtherDescriptor) && warp_idx() == 2) of_a = moved(of_a, 16);
    if (is(GroupFault::kSwizzled)) of_b |= uint64_t{1} << 62;
    if (is(GroupFault::kBeyondSharedMemory)) of_b = moved(of_b, 16);
    if (!(is(GroupFault::kOneWarpLess) && warp_idx() == 3 && i == 2)) {
      if (i % 2 == 0) {
        multiply_group<Precision::kBFloat16>(d, of_a, of_b);
      } else {
        multiply_group<Precision::kBFloat16>(d, registers, of_b);
      }
    }
    if (!is(GroupFault::kNotCommitted)) commit_products();
    if (is(GroupFault::kRegistersChanged)) registers.x[0] += 0x10000;
    if (is(GroupFault::kReleasedEarly)) {
      arrive(barriers + 1);
      sync_warps(1, kThreads);
    }
    if (is(GroupFault::kWrittenEarly)) d[0][2] = 0.0f;
    if (is(GroupFault::kReadEarly)) p.out[thread_idx()] = d[0][3];
    wait_products(d);
    if (!is(GroupFault::kNoProductFence)) fence_products(d);
    if (!is(GroupFault::kReleasedEarly)) arrive(barriers + 1);
  }
  wait_products(d);
  if (!is(GroupFault::kReadEarly)) p.out[thread_idx()] = d[0][0] + d[0][1] + d[0][2] + d[0][3];
}

void run_faulty(GroupFault fault) {
  std::vector<uint16_t> items;
  for (float x : {1.0f, 2.0f, 3.0f, 4.0f}) items.insert(items.end(), 8 * 16, from_float<BFloat16>(x).bits);
  alignas(16) static uint8_t global[4 * 8 * 32];
  std::memcpy(global, items.data(), sizeof(global));
  std::vector<float> out(kThreads);
  check::launch(faulty_kernel, 1, kThreads + 32, 1, 128 + kRows * 32 + 8 * 32,
                FaultyParameters{fault, global, out.data()});
  for (float x : out) check::expect_equal(x, 4 * 16 * 10.0f, "a sum");
}

void expect_fault(const std::vector<std::string>& reports, GroupFault fault) {
  if (kHasWarpGroups) check::expect_report(reports, [fault] { run_faulty(fault); });
}

CASE(sound_products) {
  for (int i = 0; i < 10 && kHasWarpGroups; ++i) run_faulty(GroupFault::kNone);
}
CASE(wrong_order_products_read_what_is_released) {
  expect_fault({"neither a copy that has landed", "a sum"}, GroupFault::kReleasedEarly);
}
CASE(wrong_products_not_waited_for) { expect_fault({"a sum"}, GroupFault::kReadEarly); }
CASE(wrong_products_of_a_touched_sum) { expect_fault({"while products were running"}, GroupFault::kWrittenEarly); }
CASE(wrong_products_of_changed_registers) { expect_fault({"a sum"}, GroupFault::kRegistersChanged); }
CASE(wrong_products_without_a_proxy_fence) {
  expect_fault({"without a fence_operands() after it"}, GroupFault::kNoOperandFence);
}
CASE(wrong_products_of_a_plain_store) {
  expect_fault({"neither a copy that has landed nor store_operand()"}, GroupFault::kStoredOtherwise);
}
CASE(wrong_products_without_a_fence) { expect_fault({"without a fence_products()"}, GroupFault::kNoProductFence); }
CASE(wrong_products_without_a_commit) { expect_fault({"no commit_products() followed"}, GroupFault::kNotCommitted); }
CASE(wrong_products_of_a_group_at_odds) { expect_fault({"has issued another product"}, GroupFault::kOtherDescriptor); }
CASE(wrong_products_of_three_warps) {
  expect_fault({"products that its group hasn't issued", "has issued another product"}, GroupFault::kOneWarpLess);
}
CASE(wrong_products_by_a_swizzled_descriptor) { expect_fault({"bits of other layouts"}, GroupFault::kSwizzled); }
CASE(wrong_products_beyond_shared_memory) {
  expect_fault({"leaves the block's shared memory"}, GroupFault::kBeyondSharedMemory);
}

}  // namespace
}  // namespace lstmvid
