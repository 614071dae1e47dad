#pragma once
// Rows of one head in memory, as the CPU's kernels read them.

#include <cstdint>

#include "runtime/tensor.h"

namespace longhaul::attention {

/// Rows [begin, begin + count) of one head of a view [rows, heads, dim], float32 or bfloat16.
struct HeadRows {
  const std::byte* data = nullptr;
  bool bf16 = false;
  std::int64_t stride = 0;  // elements between rows
  std::int64_t count = 0, dim = 0;
};

inline HeadRows rows_of(const runtime::ConstTensorView& view, std::int64_t head, std::int64_t begin,
                        std::int64_t count) {
  const std::int64_t at = begin * view.stride(0) + head * view.stride(1);
  return {view.data() + at * runtime::size_bytes(view.dtype()),
          view.dtype() == runtime::DType::bfloat16, view.stride(0), count, view.size(2)};
}

}  // namespace longhaul::attention
