// Element types that a caller may name, and what each is computed in.
#pragma once

namespace lstmvid {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };

}  // namespace lstmvid
