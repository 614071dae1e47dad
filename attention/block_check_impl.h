#pragma once
// What the block contract demands of every operand. Private to attention/.

#include <initializer_list>

#include "runtime/tensor.h"

namespace longhaul::attention::detail {

/// rows x heads (x dim): sizes, dtype, device, contiguous last dim. Throws Error naming `what`.
void check(const char* what, const runtime::ConstTensorView& view,
           std::initializer_list<std::int64_t> sizes, runtime::DType dtype,
           const runtime::Stream& stream);

}  // namespace longhaul::attention::detail
