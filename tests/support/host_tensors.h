#pragma once
// Tensors from and to host vectors, for tests.

#include <initializer_list>
#include <vector>

#include "runtime/tensor.h"

namespace longhaul::test {

/// Seeded values in about [-1, 1), exactly representable in bfloat16 when asked for.
std::vector<double> random_values(std::int64_t count, unsigned seed, bool bfloat16 = false);

/// The values rounded to `dtype` (float32, bfloat16, float64, int32, int64).
runtime::Tensor make_tensor(const std::vector<double>& values,
                            std::initializer_list<std::int64_t> sizes, runtime::DType dtype,
                            const runtime::Stream& stream);

/// Waits for the stream, then reads a contiguous view.
std::vector<double> read(runtime::ConstTensorView view, const runtime::Stream& stream);
/// As read(), but the raw bytes: for bitwise comparisons.
std::vector<std::byte> read_bytes(runtime::ConstTensorView view, const runtime::Stream& stream);

/// Relative error in the Frobenius norm: |actual - expected| / |expected|, or |actual| where
/// expected is 0.
double relative_error(const std::vector<double>& actual, const std::vector<double>& expected);

}  // namespace longhaul::test
