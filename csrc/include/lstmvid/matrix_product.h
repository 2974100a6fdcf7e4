// A dense product on a CPU, of factors that lie by rows or by columns.
#pragma once

#include <cstdint>

#include "lstmvid/dtype.h"

namespace lstmvid {

// A matrix that others own: element (i, j) is at data[i * row_stride + j * column_stride]; one of the strides is 1.
template <class Data>
struct Strided {
  Data* data;
  int64_t row_stride, column_stride;

  Strided turned() const { return {data, column_stride, row_stride}; }
};

// out [M, N] = left [M, K] right [K, N], or out += it; all "operand" as in lstm_sequence.h.
struct MatrixProduct {
  int64_t rows, depth, columns;
  DType dtype;
  int threads;
  bool add;
  Strided<const void> left, right;
  Strided<void> out;
  void* workspace;  // matrix_product_workspace() bytes, aligned to 64
};

int64_t matrix_product_workspace(const MatrixProduct& p);
void matrix_product_cpu(const MatrixProduct& p);

}  // namespace lstmvid
