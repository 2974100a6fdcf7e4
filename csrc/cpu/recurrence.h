// What the two directions of a layer's recurrence have in common: operands, the shares of threads, rows of gates.
#pragma once

#include "lstmvid/cell_math.h"
#include "lstmvid/dtype.h"
#include "packing.h"
#include "panel.h"
#include "thread_team.h"

namespace lstmvid {
namespace LSTMVID_ISA {

template <class Stored>
using Compute = typename Product<Stored>::Scalar;  // of gates and states
template <class Stored>
using Operand = typename Product<Stored>::Operand;  // of the recurrent product

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t aligned(int64_t bytes) { return ceil_div(bytes, kCacheLine) * kCacheLine; }
inline int64_t first_of(int64_t items, int rank, int size) { return items * rank / size; }

// Rows of the exchanged workspace are padded to a whole cache line and one more, so that a power of two does not put
// every row on the same cache set, and no load of 64 bytes takes two lines.
template <class Operand>
constexpr int64_t padded(int64_t width) {
  constexpr int64_t kLine = kCacheLine / sizeof(Operand);
  return (ceil_div(width, kLine) + 1) * kLine;
}

// What a product reads of exchanged rows without anybody's writing it: zeros behind `width` columns.
template <class Operand>
inline void clear_padding(Operand* rows, int64_t count, int64_t width, int64_t stride) {
  for (int64_t row = 0; row < count; ++row)
    std::memset(rows + row * stride + width, 0, (stride - width) * sizeof(Operand));
}

// Below this many FLOP a step, a barrier costs more than a second thread saves.
constexpr int64_t kFlopsWorthAThread = 400'000;

inline int team_size(int threads, int64_t flops_a_step, int64_t blocks) {
  const int64_t useful = flops_a_step / kFlopsWorthAThread + 1;
  const int64_t most = useful < blocks ? useful : blocks;
  return static_cast<int>(threads < most ? threads : (most < 1 ? 1 : most));
}

// A product's left operand [rows, depth] and its packed right one, a panel for each block of columns.
template <class Operand>
struct Factor {
  const Operand* rows = nullptr;  // null: there is no such product
  int64_t stride = 0;
  const Operand* packed = nullptr;
  int64_t panel = 0, depth = 0;
};

// A block that a product is of, and the one whose weights are read after it.
struct Block {
  int64_t at, next;
};

// A thread's blocks. Every other step goes through them backwards: what a step has read last is what its cache still
// has, and what the next one reads first.
struct Share {
  int64_t begin, end;
  Share(int64_t items, int rank, int size) : begin(first_of(items, rank, size)), end(first_of(items, rank + 1, size)) {}

  template <class Call>
  void each(const Call& call) const {
    for (int64_t block = begin; block < end; ++block) call(block);
  }
  template <class Call>
  void each_of_step(int64_t step, const Call& call) const {
    const int64_t way = step % 2 == 0 ? 1 : -1, last = way > 0 ? end - 1 : begin;
    for (int64_t i = begin, block = begin + end - 1 - last; i < end; ++i, block += way) {
      call(Block{block, block == last ? block : block + way});
    }
  }
};

// sums[rows, 4V] of one block: a first product, where there is one, and a second; zeros where there is none.
template <class Stored, class Operand, class Scalar>
inline void multiply_factors(const Factor<Operand>& first, const Factor<Operand>& second, Block block, int64_t row,
                             int64_t rows, Scalar* sums) {
  const Factor<Operand>* factors[2];
  int count = 0;
  if (first.rows != nullptr) factors[count++] = &first;
  if (second.rows != nullptr) factors[count++] = &second;
  for (int i = 0; i < count; ++i) {
    const Factor<Operand>&factor = *factors[i], &after = *factors[(i + 1) % count];
    multiply_panel<Product<Stored>>(factor.rows + row * factor.stride, factor.stride, rows,
                                    factor.packed + block.at * factor.panel, factor.depth, sums, i > 0,
                                    after.packed + (i + 1 < count ? block.at : block.next) * after.panel);
  }
  if (count == 0) std::memset(sums, 0, rows * kAccWidth<Scalar> * sizeof(Scalar));
}

// What a team's threads run: a kernel's part, and then the thread is as it was.
template <class Kernel>
void work(const void* kernel, ThreadTeam& team, int rank) {
  [[maybe_unused]] const MatrixUnit unit;
  static_cast<const Kernel*>(kernel)->body(team, rank);
}

// call(an element of the dtype that tensors have in memory)
template <class Call>
void with_stored(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::kFloat32: return call(float{});
    case DType::kFloat64: return call(double{});
    case DType::kBFloat16: return call(bfloat16{});
    case DType::kFloat16: return;  // not computed here: backends/cpu refuses it
  }
}

template <class Scalar>
inline Peephole<Vec<Scalar>> no_peephole() {
  return {Vec<Scalar>{}, Vec<Scalar>{}, Vec<Scalar>{}};
}

template <class Stored>
inline Peephole<Vec<Compute<Stored>>> load_peephole(const Stored* weights, int64_t hidden, int64_t unit, int count) {
  if (weights == nullptr) return no_peephole<Compute<Stored>>();
  return {load(weights + unit, count), load(weights + hidden + unit, count), load(weights + 2 * hidden + unit, count)};
}

template <class Stored>
inline __attribute__((always_inline)) Gates<Vec<Compute<Stored>>> load_gates(const Stored* row, int64_t hidden,
                                                                             int64_t unit, int count) {
  return {load(row + unit, count), load(row + hidden + unit, count), load(row + 2 * hidden + unit, count),
          load(row + 3 * hidden + unit, count)};
}

template <class Vector>
inline __attribute__((always_inline)) Gates<Vector> operator+(const Gates<Vector>& a, const Gates<Vector>& b) {
  return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o};
}

template <class Stored, class Vector>
inline __attribute__((always_inline)) void store_gates(Stored* row, int64_t hidden, int64_t unit, int count,
                                                       const Gates<Vector>& gates) {
  store(row + unit, gates.i, count);
  store(row + hidden + unit, gates.f, count);
  store(row + 2 * hidden + unit, gates.g, count);
  store(row + 3 * hidden + unit, gates.o, count);
}

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
