#pragma once
// What the CPU's block kernels do with rows that are ready: write them, or merge and add them into
// what is there.

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attention/block_plan.h"
#include "attention/merge.h"

namespace longhaul::attention {

/// A row of a softmax: its weighted values and weights summed, and the LSE of those; -inf for a row
/// that has seen nothing.
struct RowSums {
  const float* values;
  float weights;
  Lse lse;
};

inline void put_row(const RowSums& own, const BlockForwardTensors& t, std::int64_t row,
                    std::int64_t head) {
  const std::int64_t dim = t.out.size(2);
  float* to = t.out.as<float>() + row * t.out.stride(0) + head * t.out.stride(1);
  float* row_lse = t.lse.as<float>() + row * t.lse.stride(0) + head * t.lse.stride(1);
  const bool seen = own.lse.high != -std::numeric_limits<float>::infinity();
  const float per_sum = seen ? 1 / own.weights : 0;
  if (t.mode == Mode::write) {
    own.lse.store(row_lse);
    for (std::int64_t d = 0; d < dim; ++d) to[d] = seen ? own.values[d] * per_sum : 0;
    return;
  }
  MergeWeights weights = merge_weights(Lse::load(row_lse), own.lse);
  weights.lse.store(row_lse);
  if (weights.b == 0) return;
  if (weights.a == 0) {
    for (std::int64_t d = 0; d < dim; ++d) to[d] = own.values[d] * per_sum;
  } else {
    weights.b /= static_cast<double>(own.weights);
    for (std::int64_t d = 0; d < dim; ++d) to[d] = weights.of(to[d], own.values[d]);
  }
}

/// Rows [begin, begin + rows) of a head's gradient <- or += `from`, whose rows are `ld` apart.
inline void put_gradients(const float* from, std::int64_t ld, const runtime::TensorView& to,
                          std::int64_t head, std::int64_t begin, std::int64_t rows, Mode mode) {
  const std::int64_t dim = to.size(2);
  for (std::int64_t row = 0; row < rows; ++row) {
    float* at = to.as<float>() + (begin + row) * to.stride(0) + head * to.stride(1);
    const float* source = from + row * ld;
    if (mode == Mode::write) {
      std::copy_n(source, dim, at);
    } else {
      for (std::int64_t d = 0; d < dim; ++d) at[d] += source[d];
    }
  }
}

/// Rows [begin, begin + rows) of every head <- 0.
inline void clear_rows(const runtime::TensorView& to, std::int64_t begin, std::int64_t rows) {
  for (std::int64_t row = begin; row < begin + rows; ++row) {
    for (std::int64_t head = 0; head < to.size(1); ++head)
      std::fill_n(to.as<float>() + row * to.stride(0) + head * to.stride(1), to.size(2), 0.0f);
  }
}

}  // namespace longhaul::attention
