// Element types that a caller may name, and what each is computed in.
#pragma once

namespace lstmvid {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

// How a GPU's kernel stores operands and multiplies them; sums, cell states and gate arithmetic are float32 throughout.
enum class Precision : int {
  kBFloat16 = 0,
  kFloat16 = 1,
  kTf32 = 2,     // float32 in memory, rounded to 10 bits of mantissa for the product
  kFloat32 = 3,  // each operand as a sum of two tf32, three products: float32's accuracy
};

}  // namespace lstmvid
