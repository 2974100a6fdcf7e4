// Matrix fragments: where elements lie, and products against float64.
#include <cmath>

#include "check.h"

namespace lstmvid {
namespace {

struct LoadParameters {
  const uint8_t* matrices;  // [32 rows, 16 bytes]
  uint32_t* fragments;      // [32 lanes, 4]
  int row_bytes;            // in shared memory
};

void load_kernel(const LoadParameters p) {
  const int lane = lane_idx();
  uint8_t* row = shared_memory() + lane * p.row_bytes;
  for (int i = 0; i < 16; ++i) row[i] = p.matrices[16 * lane + i];
  sync_lanes();
  uint32_t x[4];
  load_matrices(x, row);
  for (int m = 0; m < 4; ++m) p.fragments[4 * lane + m] = x[m];
}

void check_load(int row_bytes, uint64_t conflicts) {
  std::vector<uint8_t> matrices(512);
  for (uint8_t& x : matrices) x = static_cast<uint8_t>(check::random()());
  std::vector<uint32_t> fragments(128);
  emulation::statistics() = {};
  check::launch(load_kernel, 1, 32, 1, 32 * row_bytes, LoadParameters{matrices.data(), fragments.data(), row_bytes});
  for (int lane = 0; lane < 32; ++lane) {
    for (int m = 0; m < 4; ++m) {
      uint32_t expected;
      std::memcpy(&expected, matrices.data() + 16 * (8 * m + lane / 4) + 4 * (lane % 4), 4);
      check::expect_equal(fragments[4 * lane + m], expected, "lane " + std::to_string(lane));
    }
  }
  check::expect_equal(emulation::statistics().matrix_loads, 1u, "loads");
  check::expect_equal(emulation::statistics().matrix_load_conflicts, conflicts, "conflicts");
}

CASE(load_matrices_layout_and_conflicts) {
  check_load(16, 0);
  check_load(80, 0);
  check_load(128, 4 * 7);
  check_load(64, 4 * 3);
}

template <Precision precision>
struct MultiplyParameters {
  const Element<precision>* a;  // [16, K]
  const Element<precision>* b;  // [K, 8]
  float* d;                     // [16, 8]
};

template <Precision precision>
constexpr int kDepth = 32 / sizeof(Element<precision>);

// Fragments filled element by element from PTX's tables, written here once more and not as in matrix.h.
template <Precision precision>
void multiply_kernel(const MultiplyParameters<precision> p) {
  constexpr int kInRegister = 4 / sizeof(Element<precision>);
  const int group = lane_idx() >> 2, in_group = lane_idx() % 4;
  Element<precision> a[4 * kInRegister], b[2 * kInRegister];
  for (int i = 0; i < 4 * kInRegister; ++i) {
    int row, column;
    if constexpr (kInRegister == 2) {  // m16n8k16
      row = (i < 2 || (4 <= i && i < 6)) ? group : group + 8;
      column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    } else {  // m16n8k8
      row = i == 0 || i == 2 ? group : group + 8;
      column = i < 2 ? in_group : in_group + 4;
    }
    a[i] = p.a[row * kDepth<precision> + column];
  }
  for (int i = 0; i < 2 * kInRegister; ++i) {
    const int row = kInRegister == 2 ? in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0) : in_group + 4 * i;
    b[i] = p.b[row * 8 + group];
  }
  uint32_t x[4], y[2];
  std::memcpy(x, a, sizeof(x));
  std::memcpy(y, b, sizeof(y));
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = p.d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
  multiply<precision>(d, x, y[0], y[1]);
  for (int i = 0; i < 4; ++i) p.d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = d[i];
}

template <Precision precision>
void check_multiply(double tolerance) {
  constexpr int kK = kDepth<precision>;
  std::normal_distribution<float> normal;
  std::vector<Element<precision>> a(16 * kK), b(kK * 8);
  std::vector<float> d(128);
  const auto draw = [&normal] {
    const float x = normal(check::random());
    return from_float<Element<precision>>(precision == Precision::kTf32 ? round_to_tf32(x) : x);
  };
  for (auto& x : a) x = draw();
  for (auto& x : b) x = draw();
  for (auto& x : d) x = normal(check::random());
  std::vector<double> expected(d.begin(), d.end());
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      for (int k = 0; k < kK; ++k) {
        expected[m * 8 + n] += static_cast<double>(to_float(a[m * kK + k])) * to_float(b[k * 8 + n]);
      }
    }
  }
  check::launch(multiply_kernel<precision>, 1, 32, 1, 0, MultiplyParameters<precision>{a.data(), b.data(), d.data()});
  for (int i = 0; i < 128; ++i) {
    check::expect(std::abs(d[i] - expected[i]) <= tolerance,
                  "element " + std::to_string(i) + " is off by " + std::to_string(d[i] - expected[i]));
  }
  check::expect_equal(emulation::statistics().products, precision == Precision::kFloat32 ? 3u : 1u, "products");
}

CASE(multiply_bf16) { check_multiply<Precision::kBFloat16>(1e-5); }
CASE(multiply_f16) { check_multiply<Precision::kFloat16>(1e-5); }
CASE(multiply_tf32) { check_multiply<Precision::kTf32>(1e-5); }
CASE(multiply_float32_as_three_tf32) { check_multiply<Precision::kFloat32>(1e-5); }

// The hardware ignores what tf32 has no room for.
CASE(multiply_tf32_ignores_low_bits) {
  std::vector<float> a(16 * 8, emulation::float_of(0x3f801fffu)), b(64, emulation::float_of(0x40001fffu)), d(128, 0.0f);
  check::launch(multiply_kernel<Precision::kTf32>, 1, 32, 1, 0,
                MultiplyParameters<Precision::kTf32>{a.data(), b.data(), d.data()});
  for (float x : d) check::expect_equal(x, 16.0f, "sum of eight 1 * 2");
}

struct VoteParameters {
  int dissenter;
  uint32_t* votes;  // [32]
};

void vote_kernel(const VoteParameters p) {
  uint32_t votes = 0;
  for (int i = 0; i < 10; ++i) votes += all_lanes(!(lane_idx() == p.dissenter && i % 3 == 0));
  p.votes[lane_idx()] = votes;
}

CASE(all_lanes_agree) {
  for (int dissenter : {0, 17, 31, 32}) {
    std::vector<uint32_t> votes(32);
    check::launch(vote_kernel, 1, 32, 1, 0, VoteParameters{dissenter, votes.data()});
    for (uint32_t x : votes) check::expect_equal(x, dissenter < 32 ? 6u : 10u, "votes");
  }
}

}  // namespace
}  // namespace lstmvid
