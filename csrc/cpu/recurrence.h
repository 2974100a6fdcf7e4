// What the two directions of a layer's recurrence have in common: operands, the shares of threads, rows of gates.
#pragma once

#include "lstmvid/cell_math.h"
#include "lstmvid/dtype.h"
#include "panel.h"
#include "thread_team.h"

namespace lstmvid {
namespace LSTMVID_ISA {

template <class Stored>
using Compute = typename Product<Stored>::Scalar;  // of gates and states
template <class Stored>
using Operand = typename Product<Stored>::Operand;  // of the recurrent product

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t first_of(int64_t items, int rank, int size) { return items * rank / size; }

// Rows of the exchanged workspace are padded to a whole register and one more, so that a power of two does not put
// every row on the same cache set.
template <class Scalar>
constexpr int64_t padded(int64_t width) {
  return (ceil_div(width, kLanes<Scalar>) + 1) * kLanes<Scalar>;
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

// sums[rows, 4V] of one block: a first product, where there is one, and a second; zeros where there is none.
template <class Stored, class Operand, class Scalar>
inline void multiply_factors(const Factor<Operand>& first, const Factor<Operand>& second, int64_t block, int64_t row,
                             int64_t rows, Scalar* sums) {
  const Factor<Operand>* const factors[2] = {&first, &second};
  bool add = false;
  for (const Factor<Operand>* factor : factors) {
    if (factor->rows == nullptr) continue;
    multiply_panel<Product<Stored>>(factor->rows + row * factor->stride, factor->stride, rows,
                                    factor->packed + block * factor->panel, factor->depth, sums, add);
    add = true;
  }
  if (!add) std::memset(sums, 0, rows * kAccWidth<Scalar> * sizeof(Scalar));
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
inline Gates<Vec<Compute<Stored>>> load_gates(const Stored* row, int64_t hidden, int64_t unit, int count) {
  return {load(row + unit, count), load(row + hidden + unit, count), load(row + 2 * hidden + unit, count),
          load(row + 3 * hidden + unit, count)};
}

template <class Vector>
inline Gates<Vector> operator+(const Gates<Vector>& a, const Gates<Vector>& b) {
  return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o};
}

template <class Stored, class Vector>
inline void store_gates(Stored* row, int64_t hidden, int64_t unit, int count, const Gates<Vector>& gates) {
  store(row + unit, gates.i, count);
  store(row + hidden + unit, gates.f, count);
  store(row + 2 * hidden + unit, gates.g, count);
  store(row + 3 * hidden + unit, gates.o, count);
}

}  // namespace LSTMVID_ISA
}  // namespace lstmvid
